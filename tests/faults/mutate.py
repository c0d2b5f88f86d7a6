"""Which small faults in our own code the tests would let through: `python -m tests.faults.mutate --count 400`.

A seeded sample of mutants (one operator, number, condition, argument or statement changed) of the modules that matter
is tried, one after the other, in a copy of the checkout: the tests of the module run until one fails. What survives is
printed with its place and its change, and at the end the score. Outcomes are kept, so that the same command goes on
where it was stopped. Mutants that no test can kill are listed, with the reason, in equivalent.tsv, and do not count.

`--only metrics runner` takes some of the groups, `--list` shows a sample without running it. `--quick` leaves out slow
tests and those of other folders, most of the cost of a mutant that survives; `--again` tries the survivors with all.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.tsv")
GROUPS: Mapping[str, Sequence[str]] = {
    "fetch": ("fetch/*.py",),
    "prepare": ("prepare/*.py", "prepare/urls/*.py"),
    "readers": ("datasets/readers/*.py",),
    "mixture": tuple(f"datasets/{name}.py" for name in ("mixture", "order", "loader", "collate")),
    "metrics": ("metrics/*.py",),
    "objectives": ("models/losses.py", "distill/*.py"),
    "runner": ("runners/*.py",),
}
"""Globs below lavis_ext/ of the modules that are mutated."""
WARM = (
    *(
        "pytest",
        "hypothesis",
        "numpy",
        "torch",
        "torch._dynamo",
        "torch.utils.tensorboard",
        "pyarrow.parquet",
        "pandas",
    ),
    *("PIL.Image", "yaml", "omegaconf", "accelerate", "safetensors.torch", "transformers", "urllib3", "webdataset"),
    *(
        "transformers.models.blip_2.modeling_blip_2",
        "transformers.models.opt.modeling_opt",
        "pycocoevalcap.cider.cider",
    ),
    *("transformers.models.auto.processing_auto", "transformers.convert_slow_tokenizer", "simplejpeg", "jinja2"),
)
"""Libraries that are imported once; each mutant then runs in a fork."""
NEIGHBOURS = {"lavis_ext.metrics": "tasks", "lavis_ext.processors": "datasets"}
"""Packages whose members others find in the registry → the folder of tests that does."""
LIMIT_S = 1200
"""For all tests of a mutant, a net below TEST_S."""
TEST_S = 100
"""For one test, which then has killed the mutant: several times what the slowest takes on two busy cores."""
KILLED, SURVIVED, TIMED_OUT, UNTESTED = "killed", "survived", "timeout", "no test"
HARMLESS = ("strict", "frozen", "kw_only", "daemon", "exist_ok", "ignore_errors", "encoding")
"""Keywords that guard against what does not happen in a test."""
SWAPS: Mapping[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: (r"is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
    ast.Add: (r"\+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: (r"\*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: (r"\*\*", "*"),
    ast.BitOr: (r"\|", "&"),
    ast.BitAnd: ("&", "|"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
"""Operator → (its text, what replaces it)."""


@dataclass(frozen=True)
class Mutant:
    """`begin` and `end` are bytes of the file, `line` counts from 1."""

    path: str
    line: int
    begin: int
    end: int
    new: str
    before: str
    after: str
    """The line, or the first of several, as it is and as it becomes."""
    number: int = 0
    """Of those of a file that are alike, counted from 0."""

    @property
    def key(self) -> str:
        """What names it as long as its line does not change."""
        return f"{self.path}|{self.before}|{self.after}|{self.number}"

    def __str__(self) -> str:
        return f"{self.path}:{self.line}\n  - {self.before}\n  + {self.after}"


class Mutator(ast.NodeVisitor):
    """Collects the mutants of a file; messages, annotations, logs and docstrings are left alone."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source, self.found = path, source, []  # type: tuple[Any, Any, list[Mutant]]
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def at(self, line: int, column: int) -> int:
        return self.starts[line - 1] + column

    def span(self, node: Any) -> tuple[int, int]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def add(self, begin: int, end: int, new: str) -> None:
        """A mutant, if Python still reads it as another program."""
        mutated = self.source[:begin] + new.encode() + self.source[end:]
        try:
            compile(mutated, self.path, "exec")
        except (SyntaxError, ValueError):
            return
        line = self.source.count(b"\n", 0, begin) + 1
        old, now = (text.splitlines()[line - 1].decode().strip() for text in (self.source, mutated))
        self.found.append(Mutant(self.path, line, begin, end, new, old, now))

    def between(self, left: Any, right: Any, operator: ast.AST) -> None:
        """Replace an operator between two nodes."""
        if type(operator) not in SWAPS:
            return
        old, new = SWAPS[type(operator)]
        begin, end = self.span(left)[1], self.span(right)[0]
        word = rb"\b" if old[0].isalpha() else b""
        if match := re.search(word + old.encode() + word, self.source[begin:end]):
            self.add(begin + match.start(), begin + match.end(), new)

    def visit_Compare(self, node: ast.Compare) -> None:
        places = [node.left, *node.comparators]
        for left, operator, right in zip(places, node.ops, places[1:], strict=False):
            self.between(left, right, operator)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = (ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.ListComp)
        strings = [one for one in (node.left, node.right) if isinstance(one, texts) or is_text(one)]
        if not strings:  # of texts, lists and paths another operator is a TypeError, which says nothing of the tests
            self.between(node.left, node.right, node.op)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, node.op)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)):
            self.add(self.span(node)[0], self.span(node.operand)[0], "")
        if not isinstance(node.operand, ast.Constant):
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add(*self.span(node), str(not value))
        elif isinstance(value, int):
            self.add(*self.span(node), str(value + 1))
        elif isinstance(value, float):
            self.add(*self.span(node), repr(value * 2 or 1.0))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.between(node.target, node.value, node.op)
        self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            return
        self.condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.add(*self.span(node.test), "False")
        self.generic_visit(node)

    def condition(self, test: ast.expr) -> None:
        for value in ("True", "False"):
            self.add(*self.span(test), value)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.add(*self.span(node.value), "None")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and not is_log(node.value):
            self.add(*self.span(node), "pass")
            self.generic_visit(node)
        elif isinstance(node.value, (ast.Yield, ast.YieldFrom)):
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add(*self.span(node), "pass")

    def visit_Break(self, node: ast.Break) -> None:
        self.add(*self.span(node), "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.add(*self.span(node), "break")

    def visit_Call(self, node: ast.Call) -> None:
        if is_log(node):
            return
        kept = [one for one in node.keywords if one.arg not in HARMLESS]
        for keyword in kept:
            if keyword.arg and len(node.keywords) + len(node.args) > 1:
                begin, end = self.at(keyword.lineno, keyword.col_offset), self.span(keyword.value)[1]
                after = re.match(rb"\s*,", self.source[end:])
                before = re.search(rb",\s*$", self.source[:begin])
                if after:
                    self.add(begin, end + after.end(), "")
                elif before:
                    self.add(before.start(), end, "")
        for one in (node.func, *node.args, *kept):
            self.visit(one)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for one in node.body:
            self.visit(one)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for one in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(one)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """What a message says is nobody's contract."""


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_log(node: ast.Call) -> bool:
    return ast.unparse(node.func).startswith(("log.", "warnings."))


def mutants_of(path: Path, root: Path = ROOT) -> list[Mutant]:
    """All mutants of a file, each once, in the order of their places."""
    source = path.read_bytes()
    mutator = Mutator(path.relative_to(root).as_posix(), source)
    mutator.visit(ast.parse(source))
    alike: Counter[str] = Counter()
    found = []
    for mutant in sorted(dict.fromkeys(mutator.found), key=lambda one: (one.begin, one.end, one.new)):
        found.append(replace(mutant, number=alike[mutant.key]))
        alike[mutant.key] += 1
    return found


def sample(only: Sequence[str], count: int, seed: int, root: Path = ROOT) -> list[Mutant]:
    """`count` mutants of the groups, drawn without replacement: those whose key has the smallest hash with the seed.

    So a change of one line exchanges the mutants of that line, and leaves the others of the sample.
    """
    globs = [glob for name in only or GROUPS for glob in GROUPS[name]]
    files = sorted({file for glob in globs for file in (root / "lavis_ext").glob(glob)})
    found = [mutant for file in files for mutant in mutants_of(file, root)]
    return sorted(found, key=lambda one: hashlib.blake2b(f"{seed}|{one.key}".encode()).digest())[:count]


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


# Running them


def run(mutant: Mutant, copy: Path, limit: float, quick: bool) -> tuple[str, float]:
    """The outcome of one mutant, and the seconds that it took; the copy is as before afterwards."""
    target, begun = copy / mutant.path, time.monotonic()
    source = target.read_bytes()
    files = tests_of(mutant.path)
    if not files:
        return UNTESTED, 0.0
    target.write_bytes(source[: mutant.begin] + mutant.new.encode() + source[mutant.end :])
    try:
        state = SURVIVED
        # slow tests of other modules cost minutes and tell little
        for marks, most in [("not slow", 3)] if quick else [("not slow", 9), ("slow", 2)]:
            code = forked_pytest(copy, [name for number, name in files if number <= most], marks, limit)
            state = {None: TIMED_OUT, 0: SURVIVED, 5: SURVIVED}.get(code, KILLED)
            if state != SURVIVED:
                break
        return state, time.monotonic() - begun
    finally:
        target.write_bytes(source)


def forked_pytest(copy: Path, files: Sequence[str], marks: str, limit: float) -> int | None:
    """Pytest's exit code, of a process group that is killed after `limit` seconds (None)."""
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
        sys.dont_write_bytecode = True
        sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "lavis_ext")]:
            del sys.modules[name]
        said = os.open(copy.with_name("said.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        import pytest

        words = ["-x", "-q", "-p", "no:cacheprovider", "-m", marks, "--rootdir", str(copy), "--tb=line"]
        words += ["-o", f"timeout={TEST_S}"]
        os._exit(int(pytest.main([*words, *files])))
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


def copied(folder: Path) -> Path:
    """A fresh copy of the checkout, without caches and history."""
    target = folder / "checkout"
    shutil.rmtree(target, ignore_errors=True)
    skipped = shutil.ignore_patterns(
        ".git", "__pycache__", "*.pyc", ".mypy_cache", ".ruff_cache", "*.egg-info", "output"
    )
    shutil.copytree(ROOT, target, ignore=skipped, symlinks=True)
    return target


def equivalents() -> dict[tuple[str, str, str], str]:
    """(file, line, line as mutated) → why no test can tell the two apart."""
    if not EQUIVALENT.is_file():
        return {}
    with EQUIVALENT.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {(row["file"], row["line"], row["mutated"]): row["why"] for row in rows}


def known(path: Path) -> dict[str, str]:
    """The outcomes that were kept."""
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["key"]: line["state"] for line in lines}


def score(states: Iterable[str]) -> str:
    """`N mutants · N killed (N by time) · N survived · score`; those without a test have survived."""
    count = Counter(states)
    killed, survived = count[KILLED] + count[TIMED_OUT], count[SURVIVED] + count[UNTESTED]
    share = f"{100 * killed / (killed + survived):.1f} %" if killed + survived else "–"
    more = f" · {count['equivalent']} equivalent" if count["equivalent"] else ""
    return f"{killed} killed ({count[TIMED_OUT]} by time) · {survived} survived{more} · {share}"


def main(words: Sequence[str] | None = None) -> int:
    """0 unless the score is below `--least`."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutate", description=__doc__)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--only", nargs="*", default=[], choices=sorted(GROUPS), metavar="GROUP")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for the tests of one mutant")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the same command goes on")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lavis_ext-mutants")
    parser.add_argument("--least", type=float, default=0.0, help="the score in per cent that is asked for")
    parser.add_argument("--list", action="store_true", help="show the sample, run nothing")
    parser.add_argument("--quick", action="store_true", help="without slow tests and those of other folders")
    parser.add_argument("--again", action="store_true", help="try survivors again")
    given = parser.parse_args(words)
    chosen, same = sample(given.only, given.count, given.seed), equivalents()
    if given.list:
        sys.stdout.writelines(f"{mutant}\n" for mutant in chosen)
        return 0
    given.folder.mkdir(parents=True, exist_ok=True)
    kept, begun = given.folder / "outcomes.jsonl", time.monotonic()
    done = known(kept)
    if given.again:
        done = {key: state for key, state in done.items() if state not in (SURVIVED, UNTESTED)}
    states = dict(outcomes(chosen, same, done, kept, given))
    sys.stdout.write(f"{len(states)} of {len(chosen)} mutants: {score(states.values())} (seed {given.seed})\n")
    for name in given.only or GROUPS:
        mine = [states[one.key] for one in chosen if one.key in states and belongs(one.path, name)]
        sys.stdout.write(f"  {name}: {len(mine)}: {score(mine)}\n")
    counted = [state for state in states.values() if state != "equivalent"]
    killed = sum(state in (KILLED, TIMED_OUT) for state in counted)
    sys.stdout.write(f"{(time.monotonic() - begun) / 60:.1f} minutes\n")
    return int(bool(counted) and 100 * killed / len(counted) < given.least)


def belongs(path: str, group: str) -> bool:
    """Whether a file is of a group."""
    return any(Path(path).match(f"lavis_ext/{glob}") for glob in GROUPS[group])


def outcomes(
    chosen: Sequence[Mutant], same: Mapping[Any, str], done: Mapping[str, str], kept: Path, given: Any
) -> Iterator[tuple[str, str]]:
    """The state of each mutant by its key; new ones are kept as they come, survivors printed."""
    until, copy = time.monotonic() + 60 * given.minutes, None
    for number, mutant in enumerate(chosen, 1):
        if (mutant.path, mutant.before, mutant.after) in same:
            yield mutant.key, "equivalent"
            continue
        state = done.get(mutant.key)
        if state is None:
            if time.monotonic() > until:
                return
            if copy is None:
                os.environ["OMP_NUM_THREADS"] = "1"
                copy = copied(given.folder)
                for name in WARM:
                    importlib.import_module(name)
            state, seconds = run(mutant, copy, given.limit, given.quick)
            line = {**asdict(mutant), "key": mutant.key, "state": state, "seconds": round(seconds, 1)}
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if state in (SURVIVED, UNTESTED):
            sys.stdout.write(f"[{number}/{len(chosen)}] {state}: {mutant}\n")
            sys.stdout.flush()
        yield mutant.key, state


if __name__ == "__main__":
    sys.exit(main())
