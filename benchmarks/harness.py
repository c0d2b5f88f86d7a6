"""What every benchmark shares: contenders in interleaved rounds, peers in environments of their own, a quiet machine.

A contender is a name and a function that gives figures: `rate` (more is better), `wall`, `cpu`, `first` (seconds) and
`memory` (MB). Ratios are taken within a round, so that what disturbs a round disturbs both of its sides.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
QUIET_LOAD, QUIET_SHARE = 0.7, 0.1
"""Load of the last minute, and share of the cores in others' hands, from which on a machine is busy."""
Figures = dict[str, float]
Runs = dict[str, list[Figures]]


class MissingPeer(Exception):
    """A contender that is not here, or that failed; its text says why."""


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
        return [one / other for one, other in zip(mine, best, strict=False)]

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


@dataclass(frozen=True)
class Item:
    """One line of work of the table, with the contenders that are ready while its context is open."""

    key: str
    title: str
    open: Callable[[Scene], AbstractContextManager[Sequence[Contender]]] | None
    targets: tuple[Target, ...] = ()
    rounds: int = 3


@dataclass
class Result:
    """What came of an item."""

    item: Item
    runs: Runs = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Medians and spread of each contender, and each target beside its figure."""
        targets = []
        for target in self.item.targets:
            found = target.value(self.runs)
            value = None if found is None else {"median": median(found), "least": min(found), "most": max(found)}
            bounds = {"least": target.least, "most": target.most}
            reached = None if found is None else target.reached(median(found))
            targets.append({"says": target.says, "value": value, "bounds": bounds, "reached": reached})
        runs = {name: spread(found) for name, found in self.runs.items()}
        head = {"item": self.item.key, "title": self.item.title, "rounds": max(map(len, self.runs.values()), default=0)}
        return {**head, "targets": targets, "runs": runs, "missing": self.missing}


def spread(found: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """Median, least and most of each figure."""
    keys = dict.fromkeys(key for run in found for key in run)
    columns = {key: [run[key] for run in found if key in run] for key in keys}
    return {key: {"median": median(c), "least": min(c), "most": max(c)} for key, c in columns.items()}


def measure(item: Item, scene: Scene, tell: Callable[[str], None]) -> Result:
    """Every contender in turn, round after round; one that fails, or is not there, is named in `missing`."""
    result = Result(item)
    if item.open is None:
        return result
    with item.open(scene) as contenders:
        for number in range(1 if scene.quick else item.rounds):
            for one in contenders[:: 1 if number % 2 == 0 else -1]:
                if one.name in result.missing:
                    continue
                try:
                    figures = one.run()
                except (MissingPeer, OSError, RuntimeError, subprocess.CalledProcessError) as error:
                    result.missing[one.name] = " ".join(str(error).split())[:300]
                    tell(f"{item.key} {one.name}: not measured: {error}")
                    continue
                result.runs.setdefault(one.name, []).append(figures)
                tell(f"{item.key} round {number + 1} {one.name}: {words_of(figures)}")
    return result


def words_of(figures: Mapping[str, float]) -> str:
    """`rate 812 · cpu 0.43 s`."""
    units = {"rate": "/s", "memory": " MB"}
    return " · ".join(f"{key} {short(value)}{units.get(key, ' s')}" for key, value in figures.items())


def short(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def child(words: Sequence[str], python: str = sys.executable, stdin: str = "", **environment: str) -> Figures:
    """Run one process of ours and take the JSON of its last line; raises MissingPeer with the last line of a fault."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    base = {**os.environ, "PYTHONPATH": path, "NO_ALBUMENTATIONS_UPDATE": "1", **environment}
    done = subprocess.run([python, *words], input=stdin, capture_output=True, text=True, env=base, cwd=ROOT)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MissingPeer(said[-1][:300])
    found: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return found


# --- peers -----------------------------------------------------------------------------------------------------------


def peer_python(name: str) -> str:
    """The Python of `constraints/NAME.txt`, made at first use and kept by that file's content; raises MissingPeer.

    It sees the packages of this Python behind its own, so that torch and the like are the same for all contenders.
    """
    pins = HERE / "constraints" / f"{name}.txt"
    base = sysconfig.get_path("purelib")
    digest = sha256(pins.read_bytes() + base.encode() + sys.version.encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lavis_ext" / "benchmarks"
    folder = home / f"{name}-{digest}"
    python, ready, failed = folder / "bin/python", folder / "ready", folder / "failed"
    if failed.is_file() and time.time() - failed.stat().st_mtime < 3600:
        raise MissingPeer(failed.read_text())
    if not ready.is_file():
        steps = [[sys.executable, "-m", "venv", "--clear", str(folder)]]
        steps += [[str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(pins)]]
        for number, words in enumerate(steps):
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["it cannot be installed"]
                folder.mkdir(parents=True, exist_ok=True)
                failed.write_text(f"{pins.name}: {said[-1]}")
                raise MissingPeer(failed.read_text())
            if number == 0:
                next(folder.glob("lib/python*/site-packages")).joinpath("zz-behind.pth").write_text(base)
        ready.touch()
    return str(python)


# --- the machine -----------------------------------------------------------------------------------------------------


def machine() -> str:
    """Cores, processor, memory and versions, without the machine's name."""
    model = next(
        (line.partition(":")[2].strip() for line in lines_of("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({model or platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}"
    )


def commit() -> str:
    """The commit of this checkout; `+` where it was changed since, "" where there is none."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def lines_of(path: str) -> Iterator[str]:
    """The lines of a file of the kernel; none where it is not there."""
    try:
        yield from Path(path).read_text().splitlines()
    except OSError:
        return


def busy_seconds() -> float:
    """Seconds that all cores have worked since the machine started, for whomever."""
    found = next((line.split()[1:] for line in lines_of("/proc/stat") if line.startswith("cpu ")), [])
    ticks = [int(one) for one in found]
    return (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK") if ticks else 0.0


def own_seconds() -> float:
    """Seconds of the processor that this process and its children have taken."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Watch:
    """How much of the machine others have: before the start, and while this runs."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.load = os.getloadavg()[0]
        before, since = busy_seconds(), time.monotonic()
        time.sleep(seconds)
        cores = os.cpu_count() or 1
        self.share = (busy_seconds() - before) / (time.monotonic() - since) / cores
        self._begun = (busy_seconds() - own_seconds(), time.monotonic())

    def reasons(self) -> list[str]:
        """Why no figure of now should be relied on; nothing on a quiet machine."""
        cores, (others, since) = os.cpu_count() or 1, self._begun
        elapsed = time.monotonic() - since
        during = max(0.0, busy_seconds() - own_seconds() - others) / max(elapsed, 1e-9) / cores
        found = [f"a load of {self.load:.1f} before the start"] if self.load > QUIET_LOAD else []
        found += [f"{self.share:.0%} of the cores were busy before the start"] if self.share > QUIET_SHARE else []
        found += [f"others had {during:.0%} of the cores meanwhile"] if elapsed > 5 and during > QUIET_SHARE else []
        return found
