"""Prepare scripts are thin: they import one name and call it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "prepare_data").rglob("*.py"))
STEPS = ("extract_coco_image.py", "merge_coco_image.py", "convert_coco_lmdb.py", "extract_captions.py")
"""These work on what is there already; tests/end_to_end/test_volta_coco.py runs them."""
ENTRY = [ROOT / "train.py", ROOT / "evaluate.py"]


@pytest.mark.parametrize("path", [*SCRIPTS, *ENTRY], ids=lambda p: p.name)
def test_script_is_thin(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 10
    assert sum("lavis_ext" in line and "import" in line for line in lines) == 1


FORKS = """
import json, os, runpy, sys, traceback
sys.path.insert(0, sys.argv[2])
import lavis_ext.cli.data, lavis_ext.prepare  # once, for the forks
ends = {}
for path, *words in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        os.dup2(os.open(os.path.basename(path) + ".out", os.O_CREAT | os.O_WRONLY), 1)
        sys.argv = [path, *words]
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)
        except BaseException:
            traceback.print_exc()
        os._exit(99)
    ends[path] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(ends))
"""


def test_script_plans_from_any_folder(tmp_path: Path) -> None:
    """Each as `python SCRIPT`; all but the first in forks of one process, which has imported what they import."""
    own = {"LAVIS_EXT_CACHE_ROOT": str(tmp_path / "data"), "PYTHONPATH": ""}
    names = {"download_oscar.py": ["vqa"], "download_vinvl.py": ["vqa"]}
    paths = [path for path in SCRIPTS if path.name not in STEPS]
    first, *others = ([str(path), *names.get(path.name, []), "--dry-run", "--json"] for path in paths)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command, env = [sys.executable, *words], {**os.environ, **own}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    alone, forks = run(*first), run("-c", FORKS, json.dumps(others), str(ROOT))
    ends = {first[0]: alone.returncode, **json.loads(forks.stdout)}
    told = {first[0]: alone.stdout, **{one: (tmp_path / f"{Path(one).name}.out").read_text() for one, *_ in others}}
    assert len(ends) == len(paths) > 15
    for path, code in ends.items():
        # 6: this disk is too small for all of it · 7: the folder of blobs can only be listed with a token
        assert code in (0, 6, 7), (path, alone.stderr, forks.stderr)
        assert json.loads(told[path].splitlines()[-1])["exit_code"] == code, path
    assert not (tmp_path / "data").exists()


def test_coco_has_its_script() -> None:
    assert "download_coco.py" in [p.name for p in SCRIPTS]
