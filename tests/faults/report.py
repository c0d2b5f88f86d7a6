"""Which of the catalogued faults were injected by a test here, and survived: `python -m tests.faults.report`.

The tests carry `@pytest.mark.fault("T01", …)`. A fault counts as survived only where every test of it passed; where one
of them was skipped, or none injects it, it was not run, and the reason is printed. `--write` puts the figures of this
run into docs/guarantees.md and keeps them in outcomes.json, against which a test holds both.

A session of all tests writes what it gave to the file that LAVIS_EXT_FAULT_OUTCOMES names (also one of several
workers), and `--read FILE` reports that, so that no test runs twice.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import platform
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CATALOGUE = Path(__file__).with_name("catalogue.csv")
OUTCOMES = Path(__file__).with_name("outcomes.json")
PAGE = ROOT / "docs" / "guarantees.md"
BEGIN, END = "<!-- made by python -m tests.faults.report --write -->", "<!-- end of what is made -->"
SURVIVED, LOST, NOT_RUN = "survived", "lost", "not run"


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue: what is injected, and what must happen then."""

    id: str
    group: str
    fault: str
    must: str


@dataclass
class Outcome:
    """What became of one fault in a run: `tests` are the files that inject it."""

    state: str
    reason: str = ""
    tests: list[str] = field(default_factory=list)


@dataclass
class Run:
    """The outcomes of one run by id, and where and how it was made."""

    outcomes: dict[str, Outcome]
    tests: int = 0
    seconds: int = 0
    where: str = ""
    broken: list[str] = field(default_factory=list)
    """Test files that could not be collected."""
    again: list[str] = field(default_factory=list)
    """Ids that were run once more after that."""

    @classmethod
    def load(cls, path: Path = OUTCOMES) -> Run:
        """The run that the page tells of."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**kept, "outcomes": {name: Outcome(**found) for name, found in kept["outcomes"].items()}})

    def save(self, path: Path = OUTCOMES) -> None:
        """Keep it for the test that holds the page against it."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def catalogue() -> list[Entry]:
    """All faults, in the order of the file."""
    with CATALOGUE.open(encoding="utf-8", newline="") as file:
        return [Entry(**row) for row in csv.DictReader(file)]


def marks(tests: Path = ROOT / "tests") -> tuple[dict[str, list[str]], set[str]]:
    """The test files of each id that is written out in a mark, and the files whose marks are made some other way.

    Read from the source, so that it costs no import.
    """
    found: dict[str, set[str]] = defaultdict(set)
    made: set[str] = set()
    for path in sorted(tests.rglob("test_*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(tests.parent).as_posix()
        if "mark.fault" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.fault")):
                continue
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found[argument.value].add(name)
                else:
                    made.add(name)
    return {name: sorted(files) for name, files in sorted(found.items())}, made


class Collector:
    """Pytest's plugin that keeps the outcome of every marked test, by the ids that it injects.

    With `target` the other tests run too, and the session's outcomes are written to that file at its end. Of pytest's
    workers (`-n`) each, given as `worker`, tells the main process which ids its tests have.
    """

    def __init__(
        self, only: Iterable[str] = (), target: Path | None = None, worker: pytest.Config | None = None
    ) -> None:
        self.only = set(only)
        self.target = target
        self.worker: Any = worker
        self.begun = time.monotonic()
        self.ids: dict[str, set[str]] = {}
        self.reports: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.broken: list[str] = []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep what carries one of the ids that are asked for (none: any)."""
        kept, left = [], []
        for item in items:
            ids = {str(name) for mark in item.iter_markers("fault") for name in mark.args}
            if ids & self.only or (ids and not self.only):
                self.ids[item.nodeid] = ids
                kept.append(item)
            else:
                left.append(item)
        if self.target is None and self.worker is None:
            config.hook.pytest_deselected(items=left)
            items[:] = kept

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported injects nothing."""
        if report.failed:
            self.broken.append(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker tells at its end; its reports came as they were made."""
        self.ids |= {name: set(ids) for name, ids in getattr(node, "workeroutput", {}).get("fault ids", {}).items()}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, call and tear-down each count; a failure that was expected is a failure."""
        if hasattr(report, "wasxfail"):
            self.reports[report.nodeid].append((LOST, f"expected to fail: {report.wasxfail}"))
        elif report.failed:
            self.reports[report.nodeid].append((LOST, f"{report.nodeid} failed"))
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.reports[report.nodeid].append((NOT_RUN, reason.removeprefix("Skipped: ")))
        elif report.when == "call":
            self.reports[report.nodeid].append((SURVIVED, ""))

    def pytest_sessionfinish(self) -> None:
        """Write what a session of all tests gave."""
        if self.worker is not None:
            self.worker.workeroutput["fault ids"] = {node: sorted(ids) for node, ids in self.ids.items()}
        if self.target is not None:
            self.result(catalogue()).save(self.target)

    def result(self, entries: Sequence[Entry]) -> Run:
        """The outcomes of these faults, and where and when they were made."""
        where = f"{platform.system()} {platform.release().partition('-')[0]}, Python {platform.python_version()}"
        today = datetime.now(timezone.utc).date().isoformat()
        return Run(
            outcomes=self.outcomes(entries),
            tests=len(self.reports.keys() & self.ids.keys()),
            seconds=round(time.monotonic() - self.begun),
            where=f"{today}, {where}",
            broken=self.broken,
        )

    def outcomes(self, entries: Sequence[Entry]) -> dict[str, Outcome]:
        """By id: lost where any test failed, survived where all passed, else not run."""
        found = {}
        for entry in entries:
            nodes = [node for node, ids in self.ids.items() if entry.id in ids]
            files = sorted({node.partition("::")[0] for node in nodes})
            states = [report for node in nodes for report in self.reports.get(node) or [(NOT_RUN, "did not start")]]
            worst = next((s for s in states if s[0] == LOST), None) or next(
                (s for s in states if s[0] == NOT_RUN), None
            )
            if not nodes:
                found[entry.id] = Outcome(NOT_RUN, "no test injects it")
            else:
                found[entry.id] = Outcome(*(worst or (SURVIVED, "")), files)
        return found


def run(only: Sequence[str] = (), more: Sequence[str] = ()) -> Run:
    """Run the marked tests in this process."""
    entries = catalogue()
    by_id, made = marks()
    unknown = sorted(set(by_id) - {entry.id for entry in entries})
    if unknown:
        raise SystemExit(f"not in {CATALOGUE.name}: {', '.join(f'{name} ({by_id[name][0]})' for name in unknown)}")
    files = sorted({file for name, files in by_id.items() if not only or name in only for file in files} | made)
    collector = Collector(only)
    words = ["-m", "fault", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--rootdir", str(ROOT), *more]
    if files:
        pytest.main([*words, *(str(ROOT / file) for file in files)], plugins=[collector])
    return collector.result([entry for entry in entries if not only or entry.id in only])


def counts(outcomes: Iterable[Outcome]) -> str:
    """`N listed · N run · N survived · 0 lost · N not run`."""
    states = [outcome.state for outcome in outcomes]
    survived, lost, idle = (states.count(state) for state in (SURVIVED, LOST, NOT_RUN))
    return f"{len(states)} listed · {survived + lost} run · {survived} survived · {lost} lost · {idle} not run"


def groups(entries: Sequence[Entry], outcomes: Mapping[str, Outcome]) -> dict[str, list[Entry]]:
    """The entries that a run tells of, by group."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.id in outcomes:
            found.setdefault(entry.group, []).append(entry)
    return found


def lines(entries: Sequence[Entry], ran: Run) -> list[str]:
    """What is printed: the headline, its two halves, each group, and every fault that was lost or not run."""
    outcomes = ran.outcomes
    half = {
        "of the catalogue": [outcome for name, outcome in outcomes.items() if not name.startswith("H")],
        "that once got through": [outcome for name, outcome in outcomes.items() if name.startswith("H")],
    }
    out = [counts(outcomes.values()), *(f"  {counts(found)}  {name}" for name, found in half.items() if found)]
    for group, members in groups(entries, outcomes).items():
        out.append(f"  {counts(outcomes[entry.id] for entry in members)}  {group}")
    for entry in entries:
        outcome = outcomes.get(entry.id)
        if outcome is not None and outcome.state != SURVIVED:
            out.append(f"{outcome.state}: {entry.id} {entry.fault}: {outcome.reason}")
    out += [f"could not be collected: {name}" for name in ran.broken]
    return out


def page_part(entries: Sequence[Entry], ran: Run) -> str:
    """The made part of the page: the headline, the groups, and every fault with what must happen and its tests."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    headline, *halves = (line.strip() for line in lines(entries, ran)[:3])
    out = [f"**{headline}**", "", *(f"- {half}" for half in halves), ""]
    again = f" Run once more after a repair: {', '.join(ran.again)}." if ran.again else ""
    out += [f"{ran.tests} tests, {ran.seconds} s, {ran.where}.{again}", ""]
    out += ["| group | listed | run | survived | lost | not run |", "|---|---|---|---|---|---|"]
    grouped = groups(entries, ran.outcomes)
    for group, members in grouped.items():
        figures = re.findall(r"\d+", counts(ran.outcomes[entry.id] for entry in members))
        out.append(f"| {group} | {' | '.join(figures)} |")
    for group, members in grouped.items():
        out += ["", f"### {group}", "", "| id | fault | what must happen | injected in |", "|---|---|---|---|"]
        for entry in members:
            outcome = ran.outcomes[entry.id]
            tests = ", ".join(f"`{name.removeprefix('tests/')}`" for name in outcome.tests)
            if outcome.state != SURVIVED:
                tests = f"**{outcome.state}**: {outcome.reason}" + (f" ({tests})" if tests else "")
            out.append(f"| {entry.id} | {cell(entry.fault)} | {cell(entry.must)} | {cell(tests)} |")
    return "\n".join(out) + "\n"


def with_part(page: str, part: str) -> str:
    """The page with its made part replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE}: the lines {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n\n{part}\n{END}{after}"


def main(words: Sequence[str] | None = None) -> int:
    """0 where nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.report", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these faults (default: all)")
    parser.add_argument("--write", action="store_true", help="put the outcomes into docs/guarantees.md")
    parser.add_argument("--read", type=Path, metavar="FILE", help="report what a session of all tests wrote")
    given: Any = parser.parse_args(words)
    entries = catalogue()
    ran = Run.load(given.read) if given.read else run(given.ids)
    print("\n" + "\n".join(lines(entries, ran)))
    if given.write:
        kept = Run.load() if given.ids else ran
        kept.outcomes.update(ran.outcomes)
        kept.again = sorted({*kept.again, *given.ids})
        kept.save()
        PAGE.write_text(with_part(PAGE.read_text(encoding="utf-8"), page_part(entries, kept)), encoding="utf-8")
    return 1 if ran.broken or any(outcome.state == LOST for outcome in ran.outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
