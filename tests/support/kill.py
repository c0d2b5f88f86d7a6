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
    """Makes a step last long enough to be hit, and says that it was taken; behind the `last` one it stands still."""

    def __init__(self, folder: Path, pause_s: float, last: int) -> None:
        self.folder, self.pause_s, self.left = folder, pause_s, last

    def after_step(self, runner: RunnerBase, step: Step) -> None:
        (self.folder / "alive").write_text(str(runner.progress.step))
        self.left -= 1
        time.sleep(120 if self.left == 0 else self.pause_s)


def run(folder: str, pause_s: float, keys: dict[str, Any], last: int = 0) -> None:
    """Start or resume in `folder`; writes `weights.json` when the run is complete.

    One that is to be killed takes at most `last` steps, unless that is 0.
    """
    path = Path(folder)
    runner = toy_runner(path, extra=[Slow(path, pause_s, last)], **keys)
    saved = checkpoint.load_newest(path / "job")
    if saved is not None:
        runner.restore(saved)
    runner.train()
    (path / "weights.json").write_text(json.dumps(weights(runner)))
