"""A toy run in a process of its own, to be killed; it goes on where the folder stands and leaves its weights."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lavis_ext.runners import checkpoint
from lavis_ext.runners.microbatch import Step
from lavis_ext.runners.runner_base import Hook, RunnerBase
from tests.support.runs import toy_runner, weights


class Slow(Hook):
    """Makes a step last long enough to be hit, and says that it was taken."""

    def __init__(self, folder: Path, pause_s: float) -> None:
        self.folder, self.pause_s = folder, pause_s

    def after_step(self, runner: RunnerBase, step: Step) -> None:
        (self.folder / "alive").write_text(str(runner.progress.step))
        time.sleep(self.pause_s)


def run(folder: str, pause_s: float, keys: dict[str, Any]) -> None:
    """Start or resume in `folder`; writes `weights.json` when the run is complete."""
    path = Path(folder)
    runner = toy_runner(path, extra=[Slow(path, pause_s)], **keys)
    saved = checkpoint.load_newest(path / "job")
    if saved is not None:
        runner.restore(saved)
    runner.train()
    (path / "weights.json").write_text(json.dumps(weights(runner)))
