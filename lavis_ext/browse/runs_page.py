"""Several runs beside each other: a table of their best metrics and changed settings, and their curves in one chart."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lavis_ext.browse.html import Link, Series, figure, figures, line_chart, rendered, write_document
from lavis_ext.browse.run_report import (
    AGGREGATE,
    STATES,
    Record,
    RunRecords,
    as_list,
    as_object,
    best_of,
    curve_records,
    duration,
    finite,
    headline,
    metric_names,
    moment,
    number,
    page_values,
    read_facts,
    read_run,
    span_of,
)
from lavis_ext.browse.serve import Reply
from lavis_ext.common.config.yamlio import read_value
from lavis_ext.common.errors import ConfigError, UsageError
from lavis_ext.common.files import not_there, read_errors
from lavis_ext.common.wording import displayed, shorten

RUN_FILES = ("log.jsonl", "run.json")
"""A folder that holds one of these is the folder of a run."""
ALWAYS_DIFFERENT = ("run.job_id", "run.output_dir", "cache_root")
"""Settings that differ between any two runs, and are left out of the comparison."""
CHARTS = 7
BRIEF = 240
"""Characters of an error that stand below its run; the whole of a longer one unfolds."""
CHANGES = 8
"""Settings that are named of a run: more is another run, and `runs --json` has them all."""
HEADLINES = ("CIDEr", "overall", AGGREGATE)
WATCHED = (*RUN_FILES, "config.yaml", "faults.json", "result/gallery", "result/breakdown")


@dataclass(frozen=True)
class RunSummary:
    """One run: `best` is the headline metric of its best evaluation.

    `differs` maps a setting to (in `base`, here).
    """

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
    model: str = ""
    datasets: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    differs: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    base: str = ""
    """The run that it is compared with; "" for the first of its kind."""

    @property
    def evaluates(self) -> bool:
        """Whether it is an evaluation, which is not compared with trainings."""
        return self.state == "evaluated" or self.settings.get("run.evaluate") is True

    @property
    def data(self) -> tuple[str, ...]:
        """The names of its data sets, sorted; by its configuration where it left no facts."""
        named = (key.split(".")[1] for key in self.settings if key.startswith("datasets."))
        return tuple(sorted(set(self.datasets or named)))

    @property
    def unscored(self) -> str:
        """What stands for its best where there is none."""
        return "nothing scored" if self.split else "–"

    def as_dict(self) -> dict[str, Any]:
        """For a program: all of it but the full configuration."""
        return {key: value for key, value in asdict(self).items() if key != "settings"}


def find_runs(root: Path, depth: int | None = None) -> list[Path]:
    """The folders of runs at or below `root`, at most `depth` levels, sorted; raises UsageError if it is no folder."""
    if not root.is_dir():
        way_out = "name the output folder of runs (run.output_dir)"
        wrong = ("is not a folder", way_out) if root.exists() else not_there(root, "folder", otherwise=way_out)
        raise UsageError(str(root), *wrong)
    found, level = [], [root]
    while level and depth != -1:
        found += [folder for folder in level if any(is_file(folder / name) for name in RUN_FILES)]
        level = [Path(inner) for folder in level for inner in folders_in(folder)]
        depth = depth if depth is None else depth - 1
    return sorted(found)


def is_file(path: Path) -> bool:
    """Whether it is a file; what may not be looked at is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def folders_in(folder: Path) -> list[str]:
    """The folders in a folder, without links; none of what may not be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def list_runs(root: Path, against: str = "previous") -> list[RunSummary]:
    """The runs below a folder by their start, each with its difference to the `previous` or the `first` one."""
    return compared(
        [summarise(read_run(folder), folder.relative_to(root).as_posix()) for folder in find_runs(root)], against
    )


def compared(found: Iterable[RunSummary], against: str = "previous") -> list[RunSummary]:
    """Runs by their start, each with its difference to the `previous` or the `first` one of its kind and data.

    Trainings are compared with trainings, evaluations with evaluations; of one that is the first on its data, only the
    data are compared, under the name `data`.
    """
    found = sorted(found, key=lambda run: (run.started, run.folder))
    runs: list[RunSummary] = []
    for run in found:
        kind = [one for one in runs if one.evaluates == run.evaluates]
        alike = [one for one in kind if one.data == run.data]
        base = next(iter(alike or kind if against == "first" else (alike or kind)[::-1]), run)
        differs = difference(base.settings, run.settings)
        if base.data != run.data:
            differs = {"data": (" ".join(base.data) or None, " ".join(run.data) or None)}
        runs.append(replace(run, differs=differs, base="" if base is run else base.folder))
    return runs


def change_lines(run: RunSummary) -> list[str]:
    """`run.seed: 1 → 2` for the settings in which it differs, at most CHANGES."""
    named = list(run.differs.items())[:CHANGES]
    return [f"{name}: {short(before)} → {short(after)}" for name, (before, after) in named]


def summarise(records: RunRecords, name: str) -> RunSummary:
    """One run from what its folder holds; what is torn or missing leaves blanks."""
    facts = records.facts
    best = best_of(records)
    metric, value = headline(best["metrics"]) if best else ("", math.nan)
    last: Record = records.steps[-1] if records.steps else {}
    steps = [record.get("step") for record in (*records.steps, *records.evaluations)]
    return RunSummary(
        folder=name,
        state=str(facts.get("status", "unknown")),
        metric=metric,
        best=finite(value),
        split=str(best.get("split", "")),
        step=max((step for step in steps if isinstance(step, int)), default=0),
        loss=finite(last.get("loss")),
        seconds=finite(facts.get("seconds")),
        started=str(facts.get("started", "")),
        error=str(facts.get("error") or ""),
        model=" ".join(str(value) for value in as_object(facts.get("model")).values()),
        datasets=tuple(map(str, as_list(facts.get("datasets")))),
        settings=flat(parsed(records.config)),
    )


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run: its log, its facts, or its configuration."""
    return any((folder / name).is_file() for name in (*RUN_FILES, "config.yaml"))


def parsed(text: str) -> Mapping[str, Any]:
    """A configuration; {} where it is torn."""
    try:
        tree = read_value(text, "config.yaml")
    except ConfigError:
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
    """Settings that are not the same, by name; None for a setting that is not there."""
    names = sorted(name for name in {*before, *after} if name not in ALWAYS_DIFFERENT)
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def run_folders(targets: Sequence[Path]) -> dict[str, Path]:
    """The runs that targets name or hold, by a name that is short and different from the others."""
    found: dict[str, Path] = {}
    for target in targets:
        for folder in [target] if is_run(target) else find_runs(target):
            name = folder.name if is_run(target) else folder.relative_to(target).as_posix()
            name = name if name not in ("", ".") else folder.resolve().name
            taken = name in found and found[name].resolve() != folder.resolve()
            found[f"{folder.parent.name}/{name}" if taken else name] = folder
    return found


def write_runs_page(targets: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of several runs to `out` (default: `runs.html` here); returns its path. Raises DiskError."""
    target = out or Path("runs.html")
    with read_errors(targets[0]):
        values = runs_values(targets)
    write_document(target, "runs.html", **values)
    return target


def runs_values(targets: Sequence[Path]) -> dict[str, Any]:
    """The values for `runs.html`."""
    records = {name: read_run(folder) for name, folder in run_folders(targets).items()}
    runs = compared((summarise(one, name) for name, one in records.items()), "first")
    colours = {run.folder: number for number, run in enumerate(runs)}
    bests = [None if run.best is None else displayed(run.metric, run.best) for run in runs]
    best = [text if value else "0" for text, value in zip(figures(bests), bests, strict=True)]
    top = {
        metric: max((run.best for run in runs if run.metric == metric and run.best is not None), default=0.0)
        for metric in {run.metric for run in runs}
    }
    rows = [
        {
            "number": colours[run.folder],
            "name": run.folder,
            "link": Link("?" + urlencode({"run": run.folder})),
            "state": (run.state, STATES.get(run.state, "")),
            "error": run.error,
            "brief": shorten(" ".join(run.error.split()), BRIEF),
            "cells": [
                f"{run.metric} {value}" if run.best is not None else run.unscored,
                run.model or "–",
                shorten(", ".join(run.datasets), 100) or "–",
                run.split or "–",
                f"{run.step:,}",
                "–" if run.loss is None else figure(run.loss),
                "–" if run.seconds is None else duration(run.seconds),
                start.strftime("%-d %b %Y, %H:%M") if (start := moment(run.started)) else run.started or "–",
            ],
            "leads": run.best is not None
            and run.best == top[run.metric]
            and displayed(run.metric, run.best) > 0
            and len(runs) > 1,
            "changes": change_lines(run),
            "changed": len(run.differs),
        }
        for run, value in zip(runs, best, strict=True)
    ]
    return {
        "places": ", ".join(map(str, targets)),
        "rows": rows,
        "head": ["run", "best", "model", "data", "split", "step", "loss", "time", "started"],
        "running": sum(run.state == "running" for run in runs),
        "charts": overlays({run.folder: records[run.folder] for run in runs}),
    }


def short(value: Any) -> str:
    """A setting in a line."""
    return "(not set)" if value is None else shorten(str(value), 60)


def overlays(runs: Mapping[str, RunRecords]) -> list[str]:
    """Loss, every metric that any run has of a split, and learning rate over the steps, a line a run."""

    def drawn(title: str, points: Mapping[str, list[tuple[float, float]]], least: float = 0.0) -> str:
        lines = [Series(name, points[name], place) for place, name in enumerate(runs) if points.get(name)]
        return line_chart(title, lines, least=least)

    def logged(key: str) -> dict[str, list[tuple[float, float]]]:
        return {
            name: [(number(step.get("step")), number(step[key])) for step in run.steps if key in step]
            for name, run in runs.items()
        }

    charts = [drawn("Loss", logged("loss"))]
    splits = dict.fromkeys(str(r.get("split")) for run in runs.values() for r in curve_records(run))
    for split in splits:
        records = {n: [r for r in curve_records(run) if str(r.get("split")) == split] for n, run in runs.items()}
        names = metric_names([r for some in records.values() for r in some])
        for metric in sorted(names, key=lambda name: name not in HEADLINES):
            points = {
                name: [
                    (number(r.get("step")), displayed(metric, number(r["metrics"][metric])))
                    for r in some
                    if metric in r["metrics"]
                ]
                for name, some in records.items()
            }
            charts.append(drawn(f"{metric} on {split}", points, span_of([metric])))
    charts = [chart for chart in charts if chart][:CHARTS]
    return [chart for chart in (*charts, drawn("Learning rate", logged("lr"))) if chart]


class RunsApp:
    """Pages of runs as they are now: of one, or of several with a page for each."""

    def __init__(self, targets: Sequence[Path]) -> None:
        self.targets = tuple(targets)

    @property
    def name(self) -> str:
        """What is served."""
        return ", ".join(map(str, self.targets))

    def answer(self, path: str, asked: Mapping[str, str]) -> Reply | None:
        """`/` is the page of the runs, or of the run; `?run=NAME` that of one; `/state` changes when they do."""
        folders = run_folders(self.targets)
        alone = len(self.targets) == 1 and is_run(self.targets[0])
        chosen = self.targets[0] if alone else folders.get(asked.get("run", ""))
        if path not in ("/", "/state") or (asked.get("run") and chosen is None):
            return None
        mark = self._mark([chosen] if chosen else list(folders.values()))
        if path == "/state":
            return Reply(mark.encode(), "text/plain; charset=utf-8")
        if chosen:
            return Reply(rendered("run.html", **page_values(read_run(chosen)), served=True, live=mark, back=not alone))
        return Reply(rendered("runs.html", **runs_values(self.targets), served=True, live=mark))

    def _mark(self, folders: Sequence[Path]) -> str:
        """A digest of names, sizes and times of all that the pages are drawn from."""
        digest = hashlib.sha256()
        for folder in folders:
            for name in WATCHED:
                try:
                    found = (folder / name).stat()
                    digest.update(f"{folder}/{name} {found.st_size} {found.st_mtime_ns}\n".encode("utf-8", "replace"))
                except OSError:  # not written yet
                    digest.update(b"-")
            digest.update(str(read_facts(folder).get("status")).encode())  # a process that is gone changes no file
        return digest.hexdigest()[:16]
