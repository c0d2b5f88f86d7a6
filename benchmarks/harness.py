"""What every benchmark shares: contenders in interleaved rounds, their figures, and the rows that are kept.

A contender is a name and a function that gives figures: `rate` (more is better), `wall`, `cpu`, `first` (seconds),
`memory` (MB), `bytes` and `all` (those moved, to those asked for). Ratios are taken within a round, so that what
disturbs a round disturbs both of its sides.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import QUIET_SHARE, ROOT, Watch
from benchmarks.peers import MissingPeer

HERE = Path(__file__).parent
LIMIT = 300
"""Seconds for one contender's turn: a loader that hangs costs a row, not the run."""
Figures = dict[str, float]
Runs = dict[str, list[Figures]]


@dataclass(frozen=True)
class Contender:
    """One side of a comparison."""

    name: str
    run: Callable[[], Figures]


@dataclass(frozen=True)
class Target:
    """What is to be reached: a figure of `ours` alone, or over that of a peer, or of the best of them."""

    says: str
    figure: str
    over: str = ""
    """A contender's name; "best" is the best of all but ours and bounds ("… alone"); "" is the figure by itself."""
    least: float | None = None
    most: float | None = None
    ours: str = "ours"
    beyond: bool = False
    """The difference, not the ratio."""

    def value(self, runs: Runs) -> list[float] | None:
        """The figure, or the ratio, of each round; None where it was not measured."""
        mine = [run[self.figure] for run in runs.get(self.ours, ()) if self.figure in run]
        if not mine or not self.over:
            return mine or None
        others = {n: [run[self.figure] for run in r if self.figure in run] for n, r in runs.items()}
        peers = [found for n, found in others.items() if found and not n.startswith("ours") and not n.endswith("alone")]
        if self.over != "best":
            peers = [others.get(self.over) or []]
        if not peers or not peers[0]:
            return None
        best = (max if self.least is not None else min)(peers, key=median)
        return [one - other if self.beyond else one / other for one, other in zip(mine, best, strict=False)]

    def reached(self, value: float) -> bool:
        """Whether the median is good enough."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class Scene:
    """How much is measured, and where."""

    folder: Path
    quick: bool = False
    images: Path | None = None
    workers: int = 2
    until: float = float("inf")
    """The time (`time.monotonic`) from which on an item has one round only."""


@dataclass(frozen=True)
class Item:
    """One line of work of the table, with the contenders that are ready while its context is open."""

    key: str
    title: str
    open: Callable[[Scene], AbstractContextManager[Sequence[Contender]]] | None
    targets: tuple[Target, ...] = ()
    rounds: int = 3
    peers: tuple[str, ...] = ()
    """The lists of `constraints/` that it needs."""


@dataclass
class Result:
    """What came of an item."""

    item: Item
    runs: Runs = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Why a contender, or "all" of them, was not measured."""
    share: float = 0.0
    """Of the cores, in the hands of others meanwhile."""
    seconds: float = 0.0

    @property
    def disturbed(self) -> bool:
        """Whether others had so much of the machine that no verdict can be given."""
        return self.share > QUIET_SHARE

    @property
    def finished(self) -> bool:
        """Whether it need not be measured again: to the end, and undisturbed."""
        return not self.disturbed and "all" not in self.missing

    def as_json(self) -> dict[str, Any]:
        """Medians and spread of each contender, and each target beside its figure."""
        targets = []
        for target in self.item.targets:
            found = target.value(self.runs)
            value = None if found is None else {"median": median(found), "least": min(found), "most": max(found)}
            bounds = {"least": target.least, "most": target.most}
            reached = None if found is None or self.disturbed else target.reached(median(found))
            targets.append({"says": target.says, "value": value, "bounds": bounds, "reached": reached})
        runs = {name: spread(found) for name, found in self.runs.items()}
        head = {"item": self.item.key, "title": self.item.title, "rounds": max(map(len, self.runs.values()), default=0)}
        tail = {"others": round(self.share, 3), "seconds": round(self.seconds, 1)}
        return {**head, "targets": targets, "runs": runs, "missing": self.missing, **tail}


def spread(found: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """Median, least and most of each figure."""
    keys = dict.fromkeys(key for run in found for key in run)
    columns = {key: [run[key] for run in found if key in run] for key in keys}
    return {key: {"median": median(c), "least": min(c), "most": max(c)} for key, c in columns.items()}


def measure(item: Item, scene: Scene, tell: Callable[[str], None]) -> Result:
    """Every contender in turn, round after round; one that fails, or is not there, is named in `missing`."""
    result, watch, begun = Result(item), Watch(), time.monotonic()
    if item.open is None:
        return result
    try:
        with item.open(scene) as contenders:
            for number in range(1 if scene.quick else item.rounds):
                if number and time.monotonic() > scene.until:
                    break
                for one in contenders[:: 1 if number % 2 == 0 else -1]:
                    if one.name not in result.missing:
                        take_turn(one, number, result, tell)
    except Exception as error:  # whatever one item does, the others are measured
        result.missing["all"] = reason(error)
        tell(f"{item.key}: not measured: {reason(error)}")
    result.share, result.seconds = watch.share(), time.monotonic() - begun
    return result


def take_turn(one: Contender, number: int, result: Result, tell: Callable[[str], None]) -> None:
    """One turn of a contender, into `result`."""
    begun = time.monotonic()
    try:
        figures = one.run()
    except Exception as error:
        result.missing[one.name] = reason(error)
        tell(f"{result.item.key} {one.name}: not measured: {reason(error)}")
        return
    result.runs.setdefault(one.name, []).append(figures)
    took = f"{time.monotonic() - begun:.0f} s for it"
    tell(f"{result.item.key} round {number + 1} {one.name}: {words_of(figures)} ({took})")


def reason(error: Exception) -> str:
    """An error in a cell of a table."""
    said = " ".join(str(error).split())[:300]
    return said if isinstance(error, MissingPeer) else f"{type(error).__name__}: {said}"


def words_of(figures: Mapping[str, float]) -> str:
    """`rate 812 · cpu 0.43 s`."""
    units = {"rate": "/s", "memory": " MB", "bytes": " ×", "all": " ×"}
    return " · ".join(f"{key} {short(value)}{units.get(key, ' s')}" for key, value in figures.items())


def short(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def child(words: Sequence[str], python: str = sys.executable, limit: float = LIMIT, **environment: str) -> Figures:
    """Run one process of ours and take the JSON of its last line; raises MissingPeer with the last line of a fault."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    base = {**os.environ, "PYTHONPATH": path, "NO_ALBUMENTATIONS_UPDATE": "1", **environment}
    found: Figures = json.loads(output([python, *words], limit, cwd=ROOT, env=base).strip().splitlines()[-1])
    return found


def output(words: Sequence[str], limit: float, **options: Any) -> str:
    """What a command prints; it and whatever it has started end with this call. Raises MissingPeer."""
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(words, **kept, **options) as process:
        try:
            printed, said = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise MissingPeer(f"not done within {limit:g} seconds") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise MissingPeer(([*said.strip().splitlines()] or [f"exit code {process.returncode}"])[-1][:300])
    return printed


# --- rows that are kept ----------------------------------------------------------------------------------------------


def keep(path: Path, result: Result) -> None:
    """Put a row into the file of rows, in the place of an earlier one."""
    rows = {**read_rows(path), result.item.key: {**vars(result), "item": result.item.key}}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(rows))
    new.replace(path)


def read_rows(path: Path) -> dict[str, Any]:
    """The rows of a file, by item; none where it is not there."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def kept_rows(path: Path, items: Sequence[Item]) -> dict[str, Result]:
    """The rows of `items` that an earlier run has kept."""
    rows = read_rows(path)
    return {item.key: Result(**{**rows[item.key], "item": item}) for item in items if item.key in rows}
