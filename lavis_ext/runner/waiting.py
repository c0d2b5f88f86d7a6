"""Rank 0 goes first: the others wait for it, but not for ever, and its error reaches them all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import Accelerator

from lavis_ext.errors import LavisExtError, TrainingError

T = TypeVar("T")


def from_main(accelerator: Accelerator, work: Callable[[], T], minutes: float) -> T:
    """What `work` gives on rank 0, on all ranks; its result must be picklable.

    Raises on all ranks what it raises, what is not ours as TrainingError on the others; and TrainingError on those that
    have waited so many minutes.
    """
    if accelerator.num_processes == 1:
        return work()
    found: T
    if not accelerator.is_main_process:
        found = _told(minutes)
        return found
    _group(minutes)  # before the work: the others wait in it from now on
    try:
        found = work()
    except BaseException as error:
        _tell((None, portable(error)), minutes)
        raise
    _tell((found, None), minutes)
    return found


def main_first(accelerator: Accelerator, work: Callable[[], T], minutes: float) -> T:
    """What `work` gives on each rank; the others begin when rank 0 is done, so that they find what it prepared."""
    kept: list[T] = []

    def first() -> None:
        kept.append(work())

    from_main(accelerator, first, minutes)
    return kept[0] if kept else work()


def portable(error: BaseException) -> LavisExtError:
    """An error that can be sent to another process."""
    if isinstance(error, LavisExtError):
        return error
    return TrainingError("rank 0", f"failed with {type(error).__name__}: {error}", "see its own output")


@cache
def _group(minutes: float) -> Any:
    """Processes that talk over gloo, whatever the gradients go over, with a limit of their own."""
    return dist.new_group(backend="gloo", timeout=timedelta(minutes=minutes))


def _tell(told: tuple[Any, LavisExtError | None], minutes: float) -> None:
    dist.broadcast_object_list([told], src=0, group=_group(minutes))


def _told(minutes: float) -> Any:
    """What rank 0 tells; raises its error, or TrainingError where it does not speak in time or is gone."""
    box: list[Any] = [None]
    try:
        dist.broadcast_object_list(box, src=0, group=_group(minutes))
    except RuntimeError as error:
        what = f"said nothing for {minutes:g} minutes, or is gone"
        raise TrainingError("rank 0", what, "see its output, or raise run.wait_minutes") from error
    found, failed = box[0]
    if failed is not None:
        raise failed
    return found
