"""How fast a loader is on this machine, where its threads are meanwhile, and what would make it faster.

Stacks of the loading threads are looked at 200 times a second, so that whatever a data set does is seen, also what a
plug-in does, and nothing in the loader has to count.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from statistics import median
from types import FrameType
from typing import Any

from lavis_ext.common.types import Dataset, Stream
from lavis_ext.datasets.mixture import Mixture

STAGES: Mapping[str, tuple[str, ...]] = {
    "decode": ("lavis_ext/datasets/readers/decode.py",),
    "transform": ("lavis_ext/processors/",),
    "collate": ("lavis_ext/datasets/collate.py", "torch/utils/data/_utils/collate.py"),
    "rows": ("lavis_ext/datasets/readers/annotations.py", "lavis_ext/datasets/readers/encoding.py"),
    "read": ("lavis_ext/datasets/readers/", "lavis_ext/fetch/", "lavis_ext/features/", "lavis_ext/datasets/buckets.py"),
}
"""Stage → whose code it is; the innermost frame that belongs to one of them decides."""
SHOWN = ("read", "rows", "decode", "transform", "collate", "other", "wait")
OFTEN, INTERVAL, ENOUGH = 0.35, 0.005, 20
"""Share of the time from which on a stage is worth a change; seconds between looks; fewest looks that say anything."""
GAIN = 1.1
"""What another number of workers must bring: less is within what two runs of one setting differ by."""


@dataclass(frozen=True)
class LoaderRun:
    """One setting: rates after the first batch, and shares of the time of loading threads."""

    workers: int
    samples_per_second: float
    first_batch_s: float
    cpu_ms: float
    """Of a sample, on all threads."""
    cores: float
    """How many were busy, on average."""
    shares: dict[str, float]
    samples: int
    failed: int


@dataclass(frozen=True)
class Change:
    """What would help."""

    what: str
    why: str


@dataclass(frozen=True)
class LoaderReport:
    """All settings that were tried, and what follows from them."""

    batch_size: int
    cores: int
    now: int
    """The number of workers to compare with."""
    runs: list[LoaderRun]
    load: float = 0.0
    """Of the machine, before the start."""
    changes: list[Change] = field(default_factory=list)

    @property
    def best(self) -> LoaderRun:
        """The fastest; of those within a tenth of it that with the fewest workers."""
        most = max(run.samples_per_second for run in self.runs)
        return next(run for run in by_workers(self.runs) if run.samples_per_second * GAIN >= most)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "best": self.best.workers}


def by_workers(runs: Sequence[LoaderRun]) -> list[LoaderRun]:
    """Fewest first."""
    return sorted(runs, key=lambda run: run.workers)


def bench(
    datasets: Mapping[str, Dataset | Stream], batch_size: int, now: int, workers: Sequence[int], seconds: float
) -> LoaderReport:
    """Load batches for `seconds` with each number of workers, `now` first; raises what the loader raises."""
    load = os.getloadavg()[0]
    runs = [measure(datasets, batch_size, count, seconds) for count in dict.fromkeys([now, *workers])]
    report = LoaderReport(batch_size, os.cpu_count() or 1, now, runs, load)
    report.changes.extend(changes(report, datasets))
    return report


def measure(datasets: Mapping[str, Dataset | Stream], batch_size: int, workers: int, seconds: float) -> LoaderRun:
    """Batches of a shuffled pass, and the next, until the time is over; at least two of them."""
    mixture = Mixture(datasets, batch_size=batch_size, num_workers=workers, repeat=True)
    began = time.perf_counter()
    with Looks() as looks, closing(iter(mixture)) as batches:  # type: ignore[type-var]
        next(batches)
        first, used, before = time.perf_counter(), cpu_seconds(), seen(mixture)
        looks.seen.clear()
        looks.count = 0
        next(batches)
        while time.perf_counter() < first + seconds or looks.count < ENOUGH:
            next(batches)
        elapsed, used, count = time.perf_counter() - first, cpu_seconds() - used, seen(mixture) - before
        shares = looks.shares()
    failed = sum(tally.bad for tally in mixture.faults.tallies.values())
    return LoaderRun(workers, count / elapsed, first - began, 1e3 * used / count, used / elapsed, shares, count, failed)


def seen(mixture: Mixture) -> int:
    """Samples in the batches that were handed out."""
    return sum(tally.seen - tally.bad for tally in mixture.faults.tallies.values())


def cpu_seconds() -> float:
    """Of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Looks:
    """Counts in which stage the calling thread and the loading threads are, as long as this is open."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.count = 0
        self._main, self._stop = threading.get_ident(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="lavis_ext-bench")

    def __enter__(self) -> Looks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(INTERVAL):
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                loads, asks = names.get(ident, "").startswith("lavis_ext-load"), ident == self._main
                if (loads or asks) and (stage := stage_of(frame, loads, asks)):  # others may read for themselves
                    self.seen[stage] += 1
            self.count += 1

    def shares(self) -> dict[str, float]:
        """Share of each stage in what was seen."""
        total = sum(self.seen.values())
        return {stage: self.seen[stage] / total if total else 0.0 for stage in SHOWN}


def stage_of(frame: FrameType | None, loads: bool, asks: bool) -> str:
    """The stage of a loading or asking thread that has this innermost frame; "" for none.

    A loading thread without work waits. The one that asks for batches is left out while it waits for them.
    """
    innermost, within = frame, False
    while frame is not None:
        file = frame.f_code.co_filename.replace(os.sep, "/")
        for stage, places in STAGES.items():
            if any(place in file for place in places):
                return stage
        within |= file.endswith(("lavis_ext/datasets/loader.py", "lavis_ext/datasets/mixture.py"))
        frame = frame.f_back
    if loads and innermost is not None and innermost.f_code.co_filename.endswith("concurrent/futures/thread.py"):
        return "wait"
    if asks and innermost is not None and innermost.f_code.co_filename.endswith("threading.py"):
        return ""
    return "other" if loads or (asks and within) else ""


def changes(report: LoaderReport, datasets: Mapping[str, Dataset | Stream]) -> list[Change]:
    """What would make the loader faster, the most promising first."""
    found, now, best = [], report.runs[0], report.best
    if best.workers != now.workers and best.samples_per_second >= GAIN * now.samples_per_second:
        gain = best.samples_per_second / now.samples_per_second
        found.append(Change(f"num_workers: {best.workers}", f"{gain:.1f} × as fast as with {now.workers}"))
    elif best.workers < now.workers:
        found.append(Change(f"num_workers: {best.workers}", f"as fast as {now.workers}, which need more memory"))
    shares, streams = best.shares, [name for name, one in datasets.items() if hasattr(one, "iterate")]
    if shares["read"] >= OFTEN and len(streams) < len(datasets):
        name = next(name for name in datasets if name not in streams)
        why = f"{shares['read']:.0%} of the time goes into reading single files"
        found.append(Change(f"pack it as shards: `lavis-ext pack {name} OUT`", why))
    elif shares["read"] >= OFTEN:
        found.append(
            Change("a faster disk, or a larger `cache_gb`", f"{shares['read']:.0%} of the time goes into reading")
        )
    if shares["decode"] >= OFTEN:
        found += [change for name, one in datasets.items() if (change := smaller(name, one, shares["decode"]))]
    if shares["collate"] >= OFTEN:
        why = f"{shares['collate']:.0%} of the time goes into putting batches together, in one thread"
        found.append(Change("a smaller `image_size`, or fewer keys of a sample", why))
    if shares["transform"] >= OFTEN and not found:
        why = f"{shares['transform']:.0%} of the time goes into processors"
        found.append(Change("a lighter processor, or more cores", why))
    return found


def smaller(name: str, dataset: Any, share: float) -> Change | None:
    """Smaller pictures on the disk, where they are much larger than what is made of them."""
    size = getattr(getattr(dataset, "vis_processor", None), "image_size", 0)
    if not size or not hasattr(dataset, "pixels") or not hasattr(dataset, "row"):
        return None
    places = range(0, len(dataset), max(1, len(dataset) // 16))
    sides = [min(dataset.pixels(dataset.row(index), index).shape[:2]) for index in places]
    if median(sides) < 2 * size:
        return None
    why = (
        f"{share:.0%} of the time goes into decoding; shorter sides have {median(sides):.0f} pixels and {size} are used"
    )
    return Change(f"smaller pictures: `lavis-ext pack {name} OUT --encode jpg --shorter-side {round(1.3 * size)}`", why)
