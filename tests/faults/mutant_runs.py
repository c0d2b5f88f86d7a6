"""Which tests a mutant has, and running them: pytest in forks of a process that has the libraries loaded."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WARM = (
    *("hypothesis", "numpy", "torch", "torch._dynamo", "torch.utils.tensorboard", "pyarrow.parquet", "pandas"),
    *("PIL.Image", "yaml", "omegaconf", "accelerate", "safetensors.torch", "transformers", "urllib3", "webdataset"),
    *(
        "transformers.models.blip_2.modeling_blip_2",
        "transformers.models.opt.modeling_opt",
        "pycocoevalcap.cider.cider",
    ),
    *("transformers.models.auto.processing_auto", "transformers.convert_slow_tokenizer", "simplejpeg", "jinja2"),
)
"""Libraries that are imported once; each mutant then runs in a fork."""
LIMIT_S = 1200
"""For all tests of a mutant, a net below TEST_S."""
TEST_S = 100
"""For one test, which then has killed the mutant: several times what the slowest takes on two busy cores."""
QUICK_S = 15
"""For the quick tests of a mutant, by what they took when the map was made; what survives them is for `--again`."""
NEIGHBOURS = {"lavis_ext.metrics": "tasks", "lavis_ext.processors": "datasets"}
"""Packages whose members others find in the registry → the folder of tests that does."""
KILLED, SURVIVED, TIMED_OUT, UNTESTED = "killed", "survived", "timeout", "no test"


# Which tests a module has


@cache
def imports_of(path: Path) -> frozenset[str]:
    """The modules that a file of ours imports; those of tests.support are followed."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for name in [name for name in found if name.startswith("tests.support.")]:
        if (support := ROOT / f"{name.replace('.', '/')}.py").is_file() and support != path:
            found |= imports_of(support)
    return frozenset(found)


@cache
def tests_of(path: str) -> tuple[tuple[int, str], ...]:
    """The test files of a module, the likeliest first: named after it (0), importing it (1), or through tests.support
    (2), then the others of its folder (3), those of modules that import it or look it up by name, and tests of faults
    (4), and of whole journeys (5)."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    package, stem = module.rpartition(".")[0], module.rpartition(".")[2]
    mirror = ROOT / "tests" / Path(path).relative_to("lavis_ext").parent

    def rank(file: Path) -> int:
        if file.parent.name in ("end_to_end", "world", "demo", "studies"):  # minutes each
            return 5 if module in imports_of(file) else 9
        if file.parent == mirror and file.stem.startswith(f"test_{stem}"):
            return 0
        names = imports_of(file)
        if module in names or any(name.startswith(f"{module}.") for name in names):
            return 1 if module in direct_imports(file) else 2
        if file.parent == mirror or (package in names and mirror in file.parents):
            return 3
        if file.parent.name == "faults" and any(name.startswith(package) for name in names):
            return 4
        known = NEIGHBOURS.get(package) == file.parent.name or any(
            file.parent == folder and file.stem.startswith(f"test_{name}") for folder, name in importers(module)
        )
        return 4 if known else 9

    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "architecture" not in file.parts]
    ranked = sorted((rank(file), file.relative_to(ROOT).as_posix()) for file in files)
    return tuple((number, name) for number, name in ranked if number < 9)


@cache
def importers(module: str) -> list[tuple[Path, str]]:
    """The folders and names of tests of modules that import this one."""
    files = [file for file in (ROOT / "lavis_ext").rglob("*.py") if module in direct_imports(file)]
    return [(ROOT / "tests" / file.parent.relative_to(ROOT / "lavis_ext"), file.stem) for file in files]


@cache
def direct_imports(path: Path) -> frozenset[str]:
    text = path.read_text(encoding="utf-8")
    return frozenset(re.findall(r"^\s*(?:from|import) ([\w.]+)", text, re.MULTILINE))


# Which tests call a function


class Ends:
    """Pytest's plugin that leaves as soon as the last test has ended: nothing of the session is looked at."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, exitstatus: int) -> Iterator[None]:
        self.last()
        os._exit(int(exitstatus))
        yield

    def last(self) -> None:
        """What is kept of the session."""


class Calls(Ends):
    """Pytest's plugin that notes which functions of the package each test calls, in this process and its threads."""

    def __init__(self, package: Path, out: Path) -> None:
        self.prefix, self.out = f"{package}/", out
        self.called: set[CodeType] = set()
        self.tests: dict[str, dict[str, Any]] = {}

    def trace(self, frame: FrameType, event: str, arg: Any) -> None:
        """Called for each call of a Python function; None: its lines are not looked at."""
        if frame.f_code.co_filename.startswith(self.prefix):
            self.called.add(frame.f_code)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Watch one test, its fixtures included."""
        self.called, begun = set(), time.monotonic()
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        names = sorted({f"{code.co_filename.removeprefix(self.prefix)}::{code.co_qualname}" for code in self.called})
        self.tests[item.nodeid] = {"seconds": round(time.monotonic() - begun, 3), "calls": names}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that fails, or was skipped, without a mutant says nothing about one."""
        if not report.passed:
            self.tests.setdefault(report.nodeid, {})["bad"] = True

    def last(self) -> None:
        """What was found."""
        self.out.write_text(json.dumps(self.tests))


@dataclass
class CallMap:
    """The functions that each test calls, kept by the content of the test files in `folder`."""

    copy: Path
    folder: Path
    wide: bool = False
    """All tests that call a function, not only QUICK_S of those that are nearest to it."""
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of_file(self, name: str) -> dict[str, Any]:
        """Node id → {seconds, calls} of the quick tests of a file that pass."""
        if name not in self.known:
            digest = hashlib.sha256((self.copy / name).read_bytes()).hexdigest()[:16]
            kept = self.folder / f"{name.replace('/', '.')}.{digest}.json"
            if not kept.is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                forked_pytest(self.copy, [name], "not slow", LIMIT_S, kept)
            found = json.loads(kept.read_text()) if kept.is_file() else {}
            self.known[name] = {node: one for node, one in found.items() if "calls" in one and "bad" not in one}
        return self.known[name]

    def tests(self, path: str, function: str) -> list[str]:
        """The tests that call a function of a file, the likeliest and quickest first; for a module's body all."""
        mirror = f"tests/{Path(path).relative_to('lavis_ext').parent.as_posix()}/"
        files = [
            (number, name)
            for number, name in tests_of(path)
            if number <= (4 if self.wide else 1) or name.startswith(mirror)
        ]
        wanted = f"{path.removeprefix('lavis_ext/')}::{function}"
        found = sorted(
            (number, one["seconds"], node)
            for number, name in files
            for node, one in self.of_file(name).items()
            if (wanted in one["calls"] if function else number <= 1)
        )
        spent = accumulate(seconds for _, seconds, _ in found)
        near = sum(1 for until in spent if until < QUICK_S)
        return [node for _, _, node in (found if self.wide else found[: max(near, 1)])]


# Running them


def warm() -> None:
    """Import the libraries; the forks then have them."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in WARM:
        importlib.import_module(name)


def run_mutant(copy: Path, path: str, source: bytes, function: str, calls: CallMap | None) -> tuple[str, float]:
    """The outcome of a file with this content, and the seconds that it took; the copy is as before afterwards.

    With `calls` only quick tests of the file's own folder that call the function, else all that might.
    """
    target, begun = copy / path, time.monotonic()
    files = tests_of(path)
    quick = calls.tests(path, function) if calls is not None else []
    if not files:
        return UNTESTED, 0.0
    everything = [(9, "not slow"), (2, "slow")]  # slow tests of other modules cost minutes and tell little
    rounds = [([name for number, name in files if number <= most], marks) for most, marks in everything]
    if calls is not None:
        rounds = [(quick, "not slow")] if quick else []
    before = target.read_bytes()
    target.write_bytes(source)
    try:
        for names, marks in rounds:
            code = forked_pytest(copy, names, marks, LIMIT_S)
            if code not in (0, 5):
                return TIMED_OUT if code is None else KILLED, time.monotonic() - begun
        return SURVIVED, time.monotonic() - begun
    finally:
        target.write_bytes(before)


def forked_pytest(copy: Path, names: Sequence[str], marks: str, limit: float, calls: Path | None = None) -> int | None:
    """Pytest's exit code, of a process group that is killed after `limit` seconds (None); `calls` gets a map."""
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1"}
        sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "lavis_ext")]:
            del sys.modules[name]
        said = os.open(copy.with_name("said.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        words = ["-q", "-p", "no:cacheprovider", "-m", marks, "--rootdir", str(copy), "--tb=line"]
        words += ["-o", f"timeout={TEST_S}", *([] if calls else ["-x"])]
        words += ["--basetemp", str(copy.with_name("tmp"))]
        os._exit(int(pytest.main([*words, *names], plugins=[Calls(copy / "lavis_ext", calls) if calls else Ends()])))
    deadline = time.monotonic() + limit
    try:
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return None
    finally:
        try:
            os.killpg(child, signal.SIGKILL)  # also what a test left behind
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
