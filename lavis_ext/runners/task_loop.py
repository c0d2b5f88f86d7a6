"""An epoch whose loop is the task's own (LAVIS' `train_epoch`, `train_iters`, `_train_inner_loop`).

It is given the parts of the run in LAVIS' form; after it the runner goes on as after an epoch of its own.

Checkpoints are of whole epochs, so that a run that was stopped inside one repeats it.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from lavis_ext.common.errors import ConfigError, Preempted, TrainingError
from lavis_ext.common.types import Batch
from lavis_ext.datasets.collate import to_device
from lavis_ext.runners.distributed import wants_fsdp
from lavis_ext.runners.hooks import ScheduleHook
from lavis_ext.runners.microbatch import Step, batch_size, memory_errors, oom_hint
from lavis_ext.runners.runner_base import RunnerBase
from lavis_ext.runners.schedule import set_learning_rate


class EpochBatches:
    """The batches of a run on their device: `next` gives one after the other, a `for` those of one epoch."""

    def __init__(self, runner: RunnerBase) -> None:
        self.runner, self.samples, self.wait_s = runner, 0, 0.0
        self.dataset = next(iter(runner.batches.datasets.values()), None)

    def __len__(self) -> int:
        return self.runner.plan.length(self.runner.progress.epoch)

    def __iter__(self) -> Iterator[Batch]:
        return (next(self) for _ in range(len(self)))

    def __next__(self) -> Batch:
        runner = self.runner
        if number := runner.stop_requested():
            if number == signal.SIGINT:
                raise KeyboardInterrupt("start the same command again")
            at = f"epoch {runner.progress.epoch + 1}"
            raise Preempted(at, "stopped inside the task's own loop; the epoch is repeated", "start it again")
        asked = perf_counter()
        batch = to_device(next(runner.feed), runner.accelerator.device, runner.batches.normalizer)
        self.wait_s += perf_counter() - asked
        self.samples += batch_size(batch)
        return batch


class EpochSchedule:
    """The run's schedule in LAVIS' form."""

    def __init__(self, runner: RunnerBase) -> None:
        self.runner = runner
        self.hook = next(hook for hook in runner.hooks if isinstance(hook, ScheduleHook))

    def step(self, cur_epoch: int, cur_step: int) -> None:
        """Set the rate of that iteration of an (inner) epoch."""
        at = replace(self.runner.progress, epoch=cur_epoch, batch=cur_step + 1)
        self.runner.rate = self.hook.rate(self.runner, at)
        set_learning_rate(self.runner.optimizer, self.runner.rate)


def run_epoch_of_task(runner: RunnerBase) -> None:
    """One (inner) epoch by the task's loop, in several processes under DDP; then the runner is at its end.

    Raises ConfigError under FSDP, TrainingError for weights that are not finite afterwards.
    """
    task, run, progress = runner.task, runner.run, runner.progress
    network = task.network
    if runner.accelerator.num_processes > 1:
        if wants_fsdp(run):
            what = f"{type(task).__name__} has a loop of its own, which shards no parameters"
            raise ConfigError("run.parallel", what, "leave it out, or define train_step(self, model, samples) alone")
        device = runner.accelerator.device
        place, unused = [device] if device.type == "cuda" else None, run.find_unused_parameters
        network = DistributedDataParallel(network, device_ids=place, find_unused_parameters=unused)
    batches, started, length = EpochBatches(runner), perf_counter(), runner.plan.length(progress.epoch)
    parts = {
        "epoch": progress.epoch,
        "model": network,
        "data_loader": batches,
        "optimizer": runner.optimizer,
        "lr_scheduler": EpochSchedule(runner),
        "scaler": runner.scaler,
        "cuda_enabled": runner.cuda_enabled,
        "log_freq": run.log_freq,
        "accum_grad_iters": run.accum_grad_iters,
    }
    steps: list[int] = []
    counted = runner.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    try:
        with memory_errors(f"epoch {progress.epoch + 1}", oom_hint(run)), runner.accelerator.autocast():
            if run.runner == "runner_iter":
                begun = progress.epoch * runner.plan.per_epoch
                found = task.train_iters(start_iters=begun, iters_per_inner_epoch=length, **parts)
            else:
                found = task.train_epoch(**parts)
    finally:
        counted.remove()
    runner.stepper.zero_grad(set_to_none=True)  # what an epoch leaves over is in no checkpoint
    broken = [name for name, tensor in runner.model.named_parameters() if not bool(tensor.isfinite().all())]
    if broken:
        what = f"{len(broken)} weights are not finite after the task's own loop, {broken[0]} first"
        raise TrainingError(f"epoch {progress.epoch + 1}", what, "lower run.init_lr, or check the loss in the loop")
    progress.batch = length
    progress.step += len(steps)
    progress.samples += batches.samples
    losses = losses_told(found)
    spent = perf_counter() - started
    runner.notify("after_step", Step(losses, math.nan, batches.samples, batches.wait_s, spent))


def losses_told(found: Any) -> dict[str, float]:
    """The numbers of what a loop gives, LAVIS' texts of means among them; the rate is the runner's."""
    losses: dict[str, float] = {}
    for name, value in found.items() if isinstance(found, Mapping) else ():
        try:
            losses[str(name)] = float(value.detach() if isinstance(value, torch.Tensor) else value)
        except (TypeError, ValueError):
            continue  # a loop may give what it likes
    losses.pop("lr", None)
    return losses
