"""`lavis-ext runs`: the runs below a folder, how each stands, and in what its configuration differs; read-only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lavis_ext.browse.records import Record, RunRecords, number, read_run
from lavis_ext.browse.run_report import AGGREGATE, duration, headline
from lavis_ext.errors import UsageError
from lavis_ext.wording import columns, shorten

MARKS = ("log.jsonl", "run.json")
UNTOLD = ("run.job_id", "run.output_dir", "cache_root")
"""Settings that differ between any two runs and say nothing of what was tried."""
WIDTH = 60
AGAINST = ("previous", "first")


@dataclass(frozen=True)
class Run:
    """One run: `best` is the headline metric of its best evaluation; `differs` maps a setting to (before, here)."""

    folder: str
    state: str
    metric: str = ""
    best: float | None = None
    split: str = ""
    step: int = 0
    loss: float | None = None
    seconds: float | None = None
    started: str = ""
    error: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    differs: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For a program: all of it but the full configuration."""
        return {key: value for key, value in asdict(self).items() if key != "settings"}


def find_runs(root: Path) -> list[Path]:
    """The folders of runs at or below `root`, sorted; raises UsageError if it is no folder."""
    if not root.is_dir():
        raise UsageError(str(root), "is not a folder", "name the output folder of runs (run.output_dir)")
    return sorted({file.parent for mark in MARKS for file in root.rglob(mark)})


def list_runs(root: Path, against: str = "previous") -> list[Run]:
    """The runs by their start, each with its difference to the `previous` or the `first` one."""
    found = sorted((summarise(folder, root) for folder in find_runs(root)), key=lambda run: (run.started, run.folder))
    runs: list[Run] = []
    for run in found:
        base = (runs[0] if against == "first" else runs[-1]).settings if runs else run.settings
        runs.append(Run(**{**vars(run), "differs": difference(base, run.settings)}))
    return runs


def summarise(folder: Path, root: Path) -> Run:
    """What a folder says of its run; torn or missing files leave blanks."""
    records = read_run(folder)
    facts = records.facts
    best = best_of(records)
    metric, value = headline(best["metrics"]) if best else ("", math.nan)
    last: Record = records.steps[-1] if records.steps else {}
    return Run(
        folder=folder.relative_to(root).as_posix(),
        state=str(facts.get("status", "unknown")),
        metric=metric,
        best=finite(value),
        split=str(best.get("split", "")),
        step=steps_of(records),
        loss=finite(last.get("loss")),
        seconds=finite(facts.get("seconds")),
        started=str(facts.get("started", "")),
        error=str(facts.get("error") or ""),
        settings=flat(parsed(records.config)),
    )


def best_of(records: RunRecords) -> Record:
    """The evaluation that the run judged best, else the one with the highest aggregate, else the last; {} if none."""
    wanted = records.best.get("split"), records.best.get("step")
    evaluations = records.evaluations
    chosen = [r for r in evaluations if records.best and (r.get("split"), r.get("step")) == wanted]
    if chosen:
        return chosen[0]
    judged = [r for r in evaluations if finite(r["metrics"].get(AGGREGATE)) is not None]
    return max(judged, key=aggregate) if judged else (evaluations[-1] if evaluations else {})


def aggregate(record: Record) -> float:
    """The figure that picks the best evaluation."""
    return number(record["metrics"][AGGREGATE])


def steps_of(records: RunRecords) -> int:
    """The last step that was logged."""
    steps = [record.get("step") for record in (*records.steps, *records.evaluations)]
    return max((step for step in steps if isinstance(step, int)), default=0)


def finite(value: Any) -> float | None:
    """A number that JSON can hold, else None."""
    found = number(value)
    return found if math.isfinite(found) else None


def parsed(text: str) -> Mapping[str, Any]:
    """A configuration; {} where it is torn."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return tree if isinstance(tree, Mapping) else {}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"run": {"seed": 1}}` → `{"run.seed": 1}`; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that are not the same, by name; None stands for a setting that is not there."""
    names = sorted(name for name in {*before, *after} if name not in UNTOLD)
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def run_lines(runs: Sequence[Run], against: str = "previous") -> list[str]:
    """A table of the runs, and below it what each changed against the `previous` or the `first`."""
    if not runs:
        return ["no runs here"]
    head = ["run", "state", "best", "split", "step", "loss", "time", "started"]
    lines = columns([head, *map(_cells, runs)])
    for run in runs:
        told = [f"  {name}: {_short(a)} → {_short(b)}" for name, (a, b) in run.differs.items()]
        told = [*([f"  {shorten(run.error, 2 * WIDTH)}"] if run.error else []), *told]
        lines += ["", f"{run.folder}, against the {against}" if run.differs else run.folder, *told] if told else []
    return lines


def _cells(run: Run) -> list[str]:
    best = f"{run.metric} {run.best:.4g}" if run.best is not None else "–"
    loss = f"{run.loss:.4g}" if run.loss is not None else "–"
    took = duration(run.seconds) if run.seconds is not None else "–"
    return [run.folder, run.state, best, run.split or "–", str(run.step), loss, took, run.started or "–"]


def _short(value: Any) -> str:
    return "(not set)" if value is None else shorten(str(value), WIDTH)
