"""Help, lists and plans start fast because they import nothing heavy."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "img2dataset", "webdataset", "accelerate", "pandas", "numpy", "PIL", "pyarrow")
HEAVY += ("omegaconf", "urllib3")
PROBE = """
import json, sys
from lavis_ext.cli import main
for words in {verbs!r}:
    code = main([*words, "--options", "env.cache_root=" + sys.argv[1]])
    print("\\n" + json.dumps(["probe", words, code, [m for m in {heavy!r} if m in sys.modules]]))
"""


def test_verbs_leave_heavy_modules_alone(tmp_path: Path) -> None:
    verbs = [["list"], ["show", "coco_caption"], ["prepare", "coco", "--dry-run"], ["status", "coco"]]
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY, verbs=verbs), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = [json.loads(line)[1:] for line in done.stdout.splitlines() if line.startswith('["probe"')]
    assert [words for words, *_ in told] == verbs, done.stderr
    # 6: this disk is too small for all of COCO, which is what the plan is for
    assert [(words, heavy) for words, code, heavy in told if heavy or code not in (0, 6)] == []


def test_help_comes_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "lavis_ext", "--help"], check=True, capture_output=True, timeout=30)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 5  # a bound against gross mistakes; benchmarks/ has the figure


@pytest.mark.parametrize(("verb", "group"), [("", ""), ("list", "data"), ("completion", "tools")])
def test_help_imports_no_other_verb_and_no_configuration(verb: str, group: str) -> None:
    words = [*([verb] if verb else []), "--help"]
    code = f"import sys; from lavis_ext.cli import main; main({words!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"omegaconf", "yaml", "urllib3", "jinja2", "numpy"}
    groups = {name for name in loaded if name.startswith("lavis_ext.cli.")}
    assert groups <= {"lavis_ext.cli.verb", f"lavis_ext.cli.{group}"}


@pytest.mark.parametrize("torch", [False, True])
def test_a_command_ends_without_a_search_for_cycles(torch: bool) -> None:
    """The search takes longer than many a command; a training's libraries may count on it."""
    before = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count()))"  # which runs last
    loaded = f"sys.modules.update(torch=None) if {torch} else None"
    code = f"{before}; {loaded}; from lavis_ext.cli import main; main(['--version'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (int(done.stdout.split()[-1]) > 0) is not torch
