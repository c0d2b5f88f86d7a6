"""`lavis-ext demo`: draw a world, serve and prepare it, evaluate untrained, train, evaluate again, compare."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import IntegrityError
from lavis_ext.common.files import expanded
from lavis_ext.demo.coco import export_coco
from lavis_ext.demo.mirror import MirrorWriter, serve
from lavis_ext.demo.steps import (
    ELSEWHERE,
    LOG,
    Answer,
    Command,
    Outcome,
    Stage,
    Stages,
    environment_for,
    last_metrics,
    run_verb,
)
from lavis_ext.demo.world import World
from lavis_ext.fetch.mirrors import MANIFEST

TRAIN = "configs/projects/demo/train/caption.yaml"
EVALUATE = "configs/projects/demo/eval/caption.yaml"
FAMILY, SPLIT, METRIC = "coco", "test", "CIDEr"
STATE = "demo.json"
EXAMPLES = 3
NO_SCORE = 0.01
"""Below it an untrained model's score is noise: how many times it was exceeded says nothing."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found: metrics of the held-out scenes before and after training, and where to look."""

    out: Path
    world: World
    stages: tuple[Stage, ...]
    untrained: dict[str, float]
    trained: dict[str, float]
    report: Path
    examples: tuple[tuple[str, str], ...] = ()
    """(what the trained model says, what is there) of some held-out scenes."""

    @property
    def ratio(self) -> float:
        """How many times the trained model's CIDEr exceeds the untrained one's; infinite if that is 0."""
        before, after = self.untrained[METRIC], self.trained[METRIC]
        return after / before if before > 0 else math.inf if after > 0 else 1.0

    def lines(self) -> list[str]:
        """The result as a person reads it."""
        times = "no score before" if self.untrained[METRIC] < NO_SCORE else f"{self.ratio:.1f} ×"
        width = max(len(said) for said, _ in self.examples) if self.examples else 0
        return [
            f"{METRIC} on {self.world.test} held-out scenes: untrained {self.untrained[METRIC]:.3f}, "
            f"trained {self.trained[METRIC]:.3f} ({times})",
            *(f"  said: {said.ljust(width)}   there: {truth}" for said, truth in self.examples),
            *(f"  {s.name.ljust(10)} {s.seconds:6.1f} s{'  (reused)' if s.reused else ''}" for s in self.stages),
            f"report: {self.report}",
        ]

    def summary(self) -> dict[str, Any]:
        """The result as a program reads it; `ratio` is null where the untrained model scored 0."""
        return {
            "out": str(self.out),
            "world": {"seed": self.world.seed, **self.world.sizes},
            "stages": [asdict(stage) for stage in self.stages],
            "untrained": self.untrained,
            "trained": self.trained,
            "ratio": None if math.isinf(self.ratio) else round(self.ratio, 3),
            "report": str(self.report),
        }


def run_demo(
    out: Path,
    seed: int = 7,
    world: World | None = None,
    options: tuple[str, ...] = (),
    command: Command = run_verb,
) -> DemoResult:
    """Run all stages below `out`; stages that an earlier call with the same world finished are reused.

    It leaves `mirror/`, `cache/`, `runs/`, `logs/`, and `demo.json` with the finished stages.

    `options`: further `--options` of both runs, such as `run.max_epoch=1`. Raises UsageError if `out` holds another
    world, and the error of a verb that fails.
    """
    out, world = expanded(out).absolute(), world or World(seed=seed)
    plan = {"seed": world.seed, **world.sizes, "options": list(options)}
    stages, mirror = Stages(out / STATE, plan, describe), out / "mirror"

    def run(name: str, words: list[str], url: str = "") -> Answer:
        return command(words, environment_for(out / "cache", url), out / "logs" / f"{name}.log")

    def draw() -> Answer:
        writer = MirrorWriter(mirror)
        export_coco(world, writer)
        writer.finish()
        return []

    def prepare() -> Answer:
        with serve(mirror) as url:
            return run("prepare", ["prepare", FAMILY, "--quiet"], url)

    stages.do("draw", draw, lambda _: (mirror / MANIFEST).is_file())
    # never reused: `prepare` itself finds what is still there, within a moment
    stages.do("prepare", prepare, lambda _: False)
    found: list[Outcome] = []
    for name, verb, path, job in (
        ("untrained", "evaluate", EVALUATE, "untrained"),
        ("train", "train", TRAIN, "trained"),
    ):
        own = [f"run.output_dir={out / 'runs'}", f"run.job_id={job}", *options]
        words = [verb, "--cfg-path", path, "--options", *own]
        found.append(stages.do(name, partial(run, name, words), is_scored))
    untrained, trained = (Path(outcome["job"]) for outcome in found)
    said = read_captions(trained)
    shown = [scene for scene in world.scenes(SPLIT) if scene.id in said][:EXAMPLES]
    return DemoResult(
        out=out,
        world=world,
        stages=tuple(stages.passed),
        untrained=read_metrics(untrained),
        trained=read_metrics(trained),
        report=Path(found[1]["report"]),
        examples=tuple((said[scene.id], scene.captions()[0]) for scene in shown),
    )


def describe(plan: Mapping[str, Any]) -> str:
    """`seed 7, 600 + 100 + 100 scenes`, and the options if there are any."""
    text = f"seed {plan.get('seed')}, {' + '.join(str(plan.get(split)) for split in ('train', 'val', 'test'))} scenes"
    return f"{text}, {' '.join(plan['options'])}" if plan.get("options") else text


def read_metrics(job: Path) -> dict[str, float]:
    """Metrics of a run's last evaluation of the test split; raises IntegrityError if there is none with a CIDEr."""
    metrics = last_metrics(job, SPLIT)
    if METRIC not in metrics:
        raise IntegrityError(str(job / LOG), f"holds no {METRIC} of the {SPLIT} split", ELSEWHERE)
    return {METRIC: metrics[METRIC], **metrics}


def is_scored(before: Outcome) -> bool:
    """Whether a run that was recorded still has its metrics and its report."""
    try:
        read_metrics(Path(before["job"]))
    except (KeyError, IntegrityError):
        return False
    return Path(before["report"]).is_file()


def read_captions(job: Path) -> dict[int, str]:
    """Image id → caption, from the newest result file of the test split; empty where there is none."""
    files = sorted((job / "result").glob(f"{SPLIT}_epoch*.json"), key=lambda path: path.stat().st_mtime)
    results = [path for path in files if not path.stem.endswith("_recipe")]
    if not results:
        return {}
    return {int(row["image_id"]): str(row["caption"]) for row in json.loads(results[-1].read_text(encoding="utf-8"))}
