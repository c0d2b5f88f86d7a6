"""Runs a study: prepares its data, trains each leg with each seed in its own process, and reads the metrics."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from graphlib import TopologicalSorter
from hashlib import sha256
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.common.files import disk_errors, write_atomic
from lavis_ext.demo.mirror import serve
from lavis_ext.demo.steps import (
    ELSEWHERE,
    LOG,
    Answer,
    Command,
    Outcome,
    Stages,
    environment_for,
    last_metrics,
    read_records,
    run_verb,
)
from lavis_ext.demo.world import World
from lavis_ext.fetch.mirrors import MANIFEST
from studies.study import Findings, Leg, Study, Values, filled, load_study, needed_by
from tests.world.export import export_world

log = logging.getLogger(__name__)
Run = tuple[str, int]
"""A leg and its seed."""
LAST = 5
"""A `train/` metric is the mean over the last fifth of the records."""


def run_study(
    name: str, out: Path, seeds: int = 3, jobs: int = 2, seed: int = 7, command: Command = run_verb
) -> Findings:
    """A study below `out`, with seeds 1 … `seeds`, `jobs` runs at a time; `seed` is that of the world.

    What an earlier call did is used again. Each run has one thread, so that neither `jobs` nor the machine's cores
    change a number. Writes `study.md` beside the runs.

    Raises UsageError for an unknown study, no seed, or a folder of another world, and the error of a verb that fails.
    """
    if seeds < 1:
        raise UsageError("--seeds", f"{seeds} give no figure", "ask for one or more")
    study = load_study(name)
    folder = out.expanduser().absolute() / "studies" / name
    laboratory = Laboratory(folder, name, study, World(seed, **study.world), command)
    chosen = tuple(range(1, seeds + 1))
    laboratory.prepare()
    log.info("%s: %d runs with each of %d seeds, about %d minutes", name, len(study.legs), seeds, study.minutes)
    runs = laboratory.run_legs(chosen, jobs)
    findings = Findings(name, study, chosen, read_values(study, runs))
    with disk_errors(folder, ELSEWHERE):
        write_atomic(folder / "study.md", findings.markdown())
    return findings


class Laboratory:
    """One study below one folder: `mirror/`, `cache/`, `runs/`, `logs/`, `stages.json`."""

    def __init__(self, folder: Path, name: str, study: Study, world: World, command: Command) -> None:
        self.folder, self.study, self.world, self.command = folder, study, world, command
        plan = {"seed": world.seed, **world.sizes, "study": name}
        self.stages = Stages(self.folder / "stages.json", plan, describe)

    def prepare(self) -> None:
        """Draw the world as the families of the study publish it, and fetch it through the real verb."""
        mirror = self.folder / "mirror"
        if not (mirror / MANIFEST).is_file():
            export_world(self.world, mirror, dict.fromkeys(name.partition("/")[0] for name in self.study.prepare))
        with serve(mirror) as url:
            around = environment_for(self.folder / "cache", url)
            self.command(["prepare", *self.study.prepare, "--quiet"], around, self.folder / "logs" / "prepare.log")

    def run_legs(self, seeds: Sequence[int], at_a_time: int) -> list[dict[str, Path]]:
        """Every leg with every seed, as soon as those that it starts from are done; the runs' folders, seed by seed."""
        legs, done = self.study.legs, dict[Run, Path]()
        needs = {name: needed_by(leg, list(legs)) for name, leg in legs.items()}
        order = TopologicalSorter({(n, s): [(other, s) for other in needs[n]] for n in legs for s in seeds})
        order.prepare()
        running: dict[Future[Path], Run] = {}
        with ThreadPoolExecutor(max(at_a_time, 1)) as pool:
            try:
                while order.is_active():
                    for name, seed in order.get_ready():
                        before = {other: done[other, seed] for other in needs[name]}
                        running[pool.submit(self._run_leg, name, seed, before)] = name, seed
                    for job in wait(running, return_when=FIRST_COMPLETED).done:
                        run = running.pop(job)
                        done[run] = job.result()
                        order.done(run)
            finally:
                pool.shutdown(cancel_futures=True)
        return [{name: done[name, seed] for name in legs} for seed in seeds]

    def _run_leg(self, name: str, seed: int, before: Mapping[str, Path]) -> Path:
        leg = self.study.legs[name]
        words = self._words(name, leg, seed, before)
        log_file = self.folder / "logs" / f"{name}-{seed}.log"
        outcome = self.stages.do(f"{name} {seed}", partial(self._train, words, log_file), finished(words))
        return Path(outcome["job"])

    def _words(self, name: str, leg: Leg, seed: int, jobs: Mapping[str, Path]) -> list[str]:
        found = {other: str(newest(job)) for other, job in jobs.items()}
        options = [filled(option, found) for option in leg.options]
        # A leg whose options have changed is another run, not one to go on with.
        digest = sha256(json.dumps([leg.train, options]).encode()).hexdigest()[:6]
        own = [f"run.output_dir={self.folder / 'runs'}", f"run.job_id={name}-{seed}-{digest}", f"run.seed={seed}"]
        return ["train", "--cfg-path", leg.train, "--options", *options, *own]

    def _train(self, words: list[str], log_file: Path) -> Answer:
        around = environment_for(self.folder / "cache") | {"OMP_NUM_THREADS": "1"}
        return [*self.command(words, around, log_file), {"words": words}]


def describe(plan: Mapping[str, Any]) -> str:
    """`study blip2, seed 7, 1500 + 100 + 100 scenes`."""
    sizes = " + ".join(str(plan.get(split)) for split in ("train", "val", "test"))
    return f"study {plan.get('study')}, seed {plan.get('seed')}, {sizes} scenes"


def finished(words: Sequence[str]) -> Callable[[Outcome], bool]:
    """Whether a recorded run is still there and was asked for in the same words."""

    def still_there(before: Outcome) -> bool:
        return before.get("words") == list(words) and (Path(before["job"]) / LOG).is_file()

    return still_there


def newest(job: Path) -> Path:
    """The newest checkpoint of a run; raises IntegrityError if it left none."""
    try:
        return job / str(json.loads((job / "latest.json").read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(str(job), "holds no checkpoint", ELSEWHERE) from error


def read_values(study: Study, runs: Sequence[dict[str, Path]]) -> Values:
    """Every metric that a figure names, seed by seed; raises IntegrityError for one that a run has not."""
    wanted = {(figure.leg, figure.metric) for figure in study.figures}
    wanted |= {(figure.base, figure.metric) for figure in study.figures if isinstance(figure.base, str)}
    return {f"{leg}/{metric}": [read_metric(jobs[leg], metric) for jobs in runs] for leg, metric in wanted}


def read_metric(job: Path, metric: str) -> float:
    """`SPLIT/KEY` of the last evaluation of a split, or `train/KEY`: the mean over the last fifth of the records."""
    split, _, key = metric.partition("/")
    try:
        if split != "train":
            return last_metrics(job, split)[key]
        steps = [float(record[key]) for record in read_records(job) if record.get("kind") == "train"]
        last = steps[-max(len(steps) // LAST, 1) :]
        return sum(last) / len(last)
    except (IntegrityError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        raise IntegrityError(str(job / LOG), f"holds no '{metric}'", ELSEWHERE) from error
