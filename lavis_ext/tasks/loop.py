"""LAVIS' loop of training as methods of a task: for a script that calls it, and for a task that has one of its own.

A run calls `train_epoch`, or `train_iters` of `runner_iter`, where a task defines one of `LOOP`; else the loop is the
runner's. Both take the same steps.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from lavis_ext.common.logger import MetricLogger, SmoothedValue
from lavis_ext.datasets.data_utils import prepare_sample

log = logging.getLogger(__name__)
LOOP = ("train_epoch", "train_iters", "_train_inner_loop")
"""Methods of LAVIS' tasks that are the loop of training."""
PARTS = ("optimizer", "lr_scheduler", "scaler", "cuda_enabled", "log_freq", "accum_grad_iters")
"""What both take after the data, in LAVIS' order."""


class TrainingLoop:
    """The loop of LAVIS' `BaseTask`, over `train_step`."""

    def train_epoch(self, epoch: int, model: Any, data_loader: Any, *parts: Any, **named: Any) -> dict[str, str]:
        """One pass over `data_loader`, with the `PARTS` of the loop."""
        given = dict(zip(PARTS, parts, strict=False)) | named
        loop = self._train_inner_loop
        return loop(epoch=epoch, iters_per_epoch=len(data_loader), model=model, data_loader=data_loader, **given)

    def train_iters(
        self,
        epoch: int,
        start_iters: int,
        iters_per_inner_epoch: int,
        model: Any,
        data_loader: Any,
        *parts: Any,
        **named: Any,
    ) -> dict[str, str]:
        """The `iters_per_inner_epoch` iterations from `start_iters` on, with the `PARTS` of the loop."""
        return self._train_inner_loop(
            epoch=epoch,
            start_iters=start_iters,
            iters_per_epoch=iters_per_inner_epoch,
            model=model,
            data_loader=data_loader,
            **(dict(zip(PARTS, parts, strict=False)) | named),
        )

    def _train_inner_loop(
        self,
        epoch: int,
        iters_per_epoch: int,
        model: Any,
        data_loader: Any,
        optimizer: Any,
        lr_scheduler: Any,
        scaler: Any = None,
        start_iters: int | None = None,
        log_freq: int = 50,
        cuda_enabled: bool = False,
        accum_grad_iters: int = 1,
    ) -> dict[str, str]:
        """Iterations of an (inner) epoch → the mean of each loss as text, and the last rate.

        A step takes `accum_grad_iters` iterations, the last one of the epoch what is left, as the runner's.
        """
        batches = data_loader if hasattr(data_loader, "__next__") else iter(data_loader)
        inner = epoch if start_iters is None else start_iters // iters_per_epoch
        meters = MetricLogger(delimiter="  ")
        meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
        meters.add_meter("loss", SmoothedValue(window_size=1, fmt="{value:.4f}"))
        device = "cuda" if cuda_enabled else "cpu"
        for number in meters.log_every(range(iters_per_epoch), log_freq, f"Train: epoch [{inner}]"):
            samples = prepare_sample(next(batches), cuda_enabled=cuda_enabled)
            samples.update(epoch=inner, num_iters_per_epoch=iters_per_epoch, iters=number)
            lr_scheduler.step(cur_epoch=inner, cur_step=number)
            with torch.autocast(device, enabled=scaler is not None):
                losses = losses_of_step(self.train_step(model=model, samples=samples))  # type: ignore[attr-defined]
            begun = number - number % accum_grad_iters
            size = min(accum_grad_iters, iters_per_epoch - begun)
            scaled = losses["loss"] / size
            (scaled if scaler is None else scaler.scale(scaled)).backward()
            if number - begun + 1 == size:
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
                optimizer.zero_grad()
            meters.update(**{name: value.detach().float().mean() for name, value in losses.items()})
            meters.update(lr=optimizer.param_groups[0]["lr"])
        meters.synchronize_between_processes()
        log.info("Averaged stats: %s", meters.global_avg())
        return {name: f"{meter.global_avg:.3f}" for name, meter in meters.meters.items()}

    def inference_step(self) -> Any:
        """LAVIS' name without a use: a subclass may define it for itself."""
        raise NotImplementedError


def losses_of_step(found: Any) -> dict[str, Tensor]:
    """What `train_step` in LAVIS' manner gives, a loss or a loss and a dict of losses, as named scalars."""
    loss, others = found if isinstance(found, tuple) else (found, {})
    named = {name: torch.as_tensor(value, device=loss.device) for name, value in others.items()}
    return {**named, "loss": loss}


def has_own_loop(task: Any) -> bool:
    """Whether a task defines the loop of training, or a part of it."""
    loops = {name: getattr(TrainingLoop, name) for name in LOOP}
    return any(getattr(type(task), name, base) is not base for name, base in loops.items())
