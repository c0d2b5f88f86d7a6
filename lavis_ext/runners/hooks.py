"""Hooks of the loop: learning rate, evaluation, checkpoints, signals. Hooks use the runner; it knows none of them."""

from __future__ import annotations

import logging
import math
import signal
import threading
from types import FrameType
from typing import Any

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import lr_schedulers
from lavis_ext.runners.microbatch import Step
from lavis_ext.runners.runner_base import Hook, RunnerBase
from lavis_ext.runners.schedule import RunLength, RunProgress, Schedule, set_learning_rate, stepped

log = logging.getLogger(__name__)


class ScheduleHook(Hook):
    """Sets the learning rate before each optimizer step, by the registered schedule at the position of the run."""

    def before_train(self, runner: RunnerBase) -> None:
        """Make the schedule, and set the rate of a resumed run's last step; raises RegistryError or ConfigError.

        The rates of all epochs (of a thousand of them) are looked at first: one that cannot be is found before a step.
        """
        plan = runner.plan
        made = lr_schedulers.get(runner.run.lr_sched)
        stepping = isinstance(made, type)  # LAVIS' form, which sets the rate itself
        self.schedule: Schedule = (stepped if stepping else made)(runner.run, plan.max_epoch)
        for epoch in (*range(0, plan.epochs, max(plan.epochs // 1000, 1)), plan.epochs - 1):
            for batch in (1, plan.length(epoch)):
                self.rate(runner, RunProgress(epoch=epoch, batch=batch))
        runner.rate = self.rate(runner, runner.progress)

    def before_step(self, runner: RunnerBase) -> None:
        """The rate at the last micro-batch of the step."""
        runner.rate = self.rate(runner, runner.progress)
        set_learning_rate(runner.optimizer, runner.rate)

    def rate(self, runner: RunnerBase, progress: RunProgress) -> float:
        """The rate at a position of the run; raises ConfigError for one that cannot be."""
        try:
            rate = float(self.schedule(runner.plan.position(progress)))
        except ArithmeticError:
            rate = math.inf
        if not 0 <= rate < math.inf:
            what = f"{runner.run.lr_sched} gives {rate} in epoch {progress.epoch + 1}"
            raise ConfigError("run.lr_sched", what, "change init_lr, min_lr, warmup_lr or lr_decay_rate")
        return rate


class EvaluateHook(Hook):
    """Evaluates `valid_splits` every `val_freq` epochs and remembers the best `agg_metrics`."""

    def after_epoch(self, runner: RunnerBase) -> None:
        """Evaluate if it is due; the best epoch is chosen by split `val` if there is one, else by the first."""
        run, epoch = runner.run, runner.progress.epoch
        runner.is_best = False
        if not (runner.task.evaluates and due(epoch, run.val_freq, runner.plan)):
            return
        choosing = "val" if "val" in run.valid_splits else next(iter(run.valid_splits), "")
        by_split = {split: runner.evaluate_split(split, str(epoch)) for split in run.valid_splits}
        # reported only after all splits: if a signal stops one, none is logged, and the resumed run logs each once
        for split, metrics in by_split.items():
            runner.notify("after_evaluation", split, str(epoch), metrics)
            if split == choosing and "agg_metrics" in metrics:
                self._compare(runner, split, float(metrics["agg_metrics"]))

    def _compare(self, runner: RunnerBase, split: str, metric: float) -> None:
        progress = runner.progress
        if not math.isfinite(metric):
            log.warning("%s: agg_metrics is %s in epoch %d, which is never the best", split, metric, progress.epoch + 1)
            return
        before = progress.best["metric"] if progress.best else math.nan  # nan also in checkpoints of earlier versions
        if metric <= before:
            return
        progress.best = {"metric": metric, "step": progress.step, "epoch": progress.epoch, "split": split}
        runner.is_best = True


class CheckpointHook(Hook):
    """Saves every `save_steps` steps, every `save_freq` epochs, at each new best and at the end."""

    def after_step(self, runner: RunnerBase, step: Step) -> None:
        """Save if `save_steps` says so."""
        if runner.run.save_steps and runner.progress.step % runner.run.save_steps == 0:
            runner.save(runner.progress)

    def after_epoch(self, runner: RunnerBase) -> None:
        """Saved as the start of the next epoch, so that a resume repeats nothing of this one."""
        run, epoch = runner.run, runner.progress.epoch
        last = epoch + 1 >= runner.plan.epochs
        wanted = run.save_freq > 0 and (epoch + 1) % run.save_freq == 0
        if wanted or runner.is_best or (last and run.save_last):
            runner.save(runner.progress.next_epoch(), best=runner.is_best)


def due(epoch: int, every: int, plan: RunLength) -> bool:
    """Whether something of each `every` epochs (0: never) happens after this one; the last epoch always counts."""
    return every > 0 and ((epoch + 1) % every == 0 or epoch + 1 >= plan.epochs)


class SignalHook(Hook):
    """On SIGTERM or a first SIGINT the runner ends the step and saves; a second SIGINT stops at once.

    The run then ends with Preempted (exit code 75) or KeyboardInterrupt (130).
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def before_train(self, runner: RunnerBase) -> None:
        """Install the handlers, if this is the main thread (Python allows it nowhere else)."""
        if threading.current_thread() is not threading.main_thread():
            return
        runner.stop_requested = self.requested
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)

    def requested(self) -> int:
        """The number of the signal that came, 0 if none."""
        return self.received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        log.warning("%s: finishing the step, then saving", signal.Signals(number).name)
        if number == signal.SIGINT:  # a second one interrupts at once
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def after_train(self, runner: RunnerBase) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
