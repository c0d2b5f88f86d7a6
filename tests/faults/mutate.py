"""Which small faults in our own code the tests would let through: `python -m tests.faults.mutate --count 400`.

A seeded sample of mutants (one operator, number, condition, argument or statement changed) of the modules that matter
is tried, one after the other, in a copy of the checkout: the tests of the module run until one fails. What survives is
printed with its place and its change, and at the end the score. Outcomes are kept, so that the same command goes on
where it was stopped. Mutants that no test can kill are listed, with the reason, in equivalent.tsv, and do not count.

`--only metrics runner` takes some of the groups, `--list` shows a sample without running it. `--quick` runs only tests
that call the function which is mutated, by a map that is made once: a few seconds of those of the module's own folder;
with `--again`, the survivors meet all that call it, those of faults too. `--again` alone tries them with everything.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import csv
import hashlib
import json
import py_compile
import re
import shutil
import signal
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tests.faults.mutant_runs import KILLED, ROOT, SURVIVED, TIMED_OUT, UNTESTED, CallMap, run_mutant, warm

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
    function: str = ""
    """The function that it is in, by its qualified name; "" in the body of the module or a class."""
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
        self.names: list[str] = []
        self.function = ""
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def at(self, line: int, column: int) -> int:
        return self.starts[line - 1] + column

    def span(self, node: Any) -> tuple[int, int]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def add(self, begin: int, end: int, new: str) -> None:
        """A mutant, which may be no program."""
        line = bisect_right(self.starts, begin)
        start, rest = self.starts[line - 1], self.source[end:].partition(b"\n")[0]
        now = (self.source[start:begin] + new.encode() + rest).partition(b"\n")[0].decode().strip()
        old = self.source[start : self.starts[line]].decode().strip()
        self.found.append(Mutant(self.path, line, begin, end, new, old, now, self.function))

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
        self.names.append(node.name)
        for one in node.body:
            self.visit(one)
        self.names.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before, self.function = self.function, ".".join([*self.names, node.name])
        self.names += [node.name, "<locals>"]
        for one in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(one)
        del self.names[-2:]
        self.function = before

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """What a message says is nobody's contract."""


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_log(node: ast.Call) -> bool:
    return ast.unparse(node.func).startswith(("log.", "warnings."))


def mutants_of(path: Path, root: Path = ROOT) -> list[Mutant]:
    """All mutants of a file, each once, in the order of their places; some are no programs."""
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
    found.sort(key=lambda one: hashlib.blake2b(f"{seed}|{one.key}".encode()).digest())
    return list(islice((mutant for mutant in found if is_program(mutant, root)), count))


def is_program(mutant: Mutant, root: Path) -> bool:
    """Whether Python reads it: ten thousand mutants would take a minute, those of a sample take a second."""
    source = (root / mutant.path).read_bytes()
    try:
        compile(source[: mutant.begin] + mutant.new.encode() + source[mutant.end :], mutant.path, "exec")
    except (SyntaxError, ValueError):
        return False
    return True


# Running them


def copied(folder: Path) -> Path:
    """A fresh copy of the checkout, compiled, without caches and history."""
    target = folder / "checkout"
    shutil.rmtree(target, ignore_errors=True)
    skipped = shutil.ignore_patterns(
        ".git", "__pycache__", "*.pyc", ".mypy_cache", ".ruff_cache", "*.egg-info", "output"
    )
    shutil.copytree(ROOT, target, ignore=skipped, symlinks=True)
    # By hash: a mutant may have the size of the original, and be put back within the second.
    compileall.compile_dir(target / "lavis_ext", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
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
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the same command goes on")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lavis_ext-mutants")
    parser.add_argument("--least", type=float, default=0.0, help="the score in per cent that is asked for")
    parser.add_argument("--list", action="store_true", help="show the sample, run nothing")
    parser.add_argument("--quick", action="store_true", help="only tests that call the mutated function")
    parser.add_argument("--again", action="store_true", help="try survivors again")
    given = parser.parse_args(words)
    chosen, same = sample(given.only, given.count, given.seed), equivalents()
    if given.list:
        sys.stdout.writelines(f"{mutant}\n" for mutant in chosen)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the tests of a mutant end too
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
    until, copy, calls = time.monotonic() + 60 * given.minutes, None, None
    for number, mutant in enumerate(chosen, 1):
        if (mutant.path, mutant.before, mutant.after) in same:
            yield mutant.key, "equivalent"
            continue
        state = done.get(mutant.key)
        if state is None:
            if time.monotonic() > until:
                return
            if copy is None:
                copy = copied(given.folder)
                calls = CallMap(copy, given.folder / "calls", wide=given.again) if given.quick else None
                warm()
            source = (copy / mutant.path).read_bytes()
            mutated = source[: mutant.begin] + mutant.new.encode() + source[mutant.end :]
            state, seconds = run_mutant(copy, mutant.path, mutated, mutant.function, calls)
            line = {**asdict(mutant), "key": mutant.key, "state": state, "seconds": round(seconds, 1)}
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if state in (SURVIVED, UNTESTED):
            sys.stdout.write(f"[{number}/{len(chosen)}] {state}: {mutant}\n")
            sys.stdout.flush()
        yield mutant.key, state


if __name__ == "__main__":
    sys.exit(main())
