"""Parts of an optimizer step: micro-batches, their losses and sample ids, memory errors, the module that DDP wraps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import TrainingError
from lavis_ext.common.types import Batch

ID_KEYS = ("instance_id", "question_id", "image_id", "index")


@dataclass(frozen=True)
class Step:
    """What hooks get of a step: losses averaged over its micro-batches and all ranks, and its cost in seconds."""

    losses: dict[str, float]
    norm: float
    """2-norm of the gradient before clipping."""
    samples: int
    """Of all ranks."""
    wait_s: float
    """Spent waiting for data on this rank."""
    spent_s: float
    stop: int = 0
    """The signal that asks the run to stop, on any rank; 0 if none."""


@dataclass(frozen=True)
class MicroBatch:
    """What is kept of a micro-batch until the losses of its step are checked."""

    ids: list[str]
    samples: int
    losses: dict[str, Tensor]
    wait_s: float


def sample_ids(batch: Batch) -> list[str]:
    """The samples of a batch as the user knows them: `dataset/id` where the batch names its data set."""
    key = next((key for key in ID_KEYS if key in batch), None)
    if key is None:
        return []
    values: Any = batch[key]
    plain: Sequence[Any] = values.tolist() if isinstance(values, Tensor) else values
    name = batch.get("dataset")
    return [f"{name}/{value}" if isinstance(name, str) else str(value) for value in plain]


def batch_size(batch: Batch) -> int:
    """Samples in a batch: its pictures, of conversations those who share them, else its first list or tensor."""
    if "image_counts" in batch:
        return len(batch["image_counts"])
    if isinstance(batch.get("image"), Tensor):
        return len(batch["image"])
    return next((len(value) for value in batch.values() if isinstance(value, (list, Tensor)) and len(value)), 0)


def losses_of(window: Sequence[MicroBatch]) -> tuple[list[str], Tensor]:
    """The names of the losses and their values as float32 [micro-batches, losses], still on the device."""
    names = sorted(window[0].losses)
    return names, torch.stack(
        [torch.stack([part.losses[name].detach().float().mean() for name in names]) for part in window]
    )


def nonfinite_ids(window: Sequence[MicroBatch], rows: Sequence[Sequence[float]], blame_all: bool) -> list[str]:
    """Sample ids of the micro-batches whose losses are not all finite, or with `blame_all` of the whole window."""
    pairs = zip(window, rows, strict=True)
    return [name for part, row in pairs if blame_all or not all(map(math.isfinite, row)) for name in part.ids]


@contextmanager
def memory_errors(where: str, way_out: str) -> Iterator[None]:
    """Turn running out of memory inside the block, on GPU or CPU, into a TrainingError with this way out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(where, "the memory of the device is exhausted", way_out) from error
    except RuntimeError as error:
        if "not enough memory" not in str(error):  # the text of torch's CPU allocator: it has no error class of its own
            raise
        raise TrainingError(where, "the memory of this machine is exhausted", way_out) from error


def oom_hint(run: RunConfig) -> str:
    """Settings that make a step need less memory, the most useful first."""
    size, accum = run.batch_size_train, run.accum_grad_iters
    half = f"run.batch_size_train={max(size // 2, 1)} run.accum_grad_iters={2 * accum}" if size > 1 else ""
    more = ["" if run.amp or run.precision else "run.amp=true", "model.use_grad_checkpoint=true"]
    shared = "" if run.parallel == "fsdp" else "run.parallel=fsdp on several cards"
    return "set " + ", or ".join(text for text in (half, *more, shared) if text)


class StepModule(nn.Module):
    """A task's step as a module, so that DDP and autocast wrap all that happens between a batch and its losses."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.model = task.model
        self.step: Callable[[Batch], dict[str, Tensor]] = task.step
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Set under FSDP, where no wrapper applies the precision."""

    def forward(self, batch: Batch | None) -> dict[str, Tensor]:
        """A batch → named scalar losses; `loss` is the one to minimise. None → {}."""
        with self.autocast():
            return {} if batch is None else self.step(batch)


def no_stop() -> int:
    """A stop function that never asks to stop."""
    return 0


def cycle(batches: Any) -> Iterator[Batch]:
    """Batches from where `batches` stands, epoch after epoch; raises TrainingError if a whole epoch gives none."""
    empty = 0
    while empty < 2:  # the first pass is empty if the run resumes at the end of an epoch
        empty += 1
        for batch in batches:
            empty = 0
            yield batch
    raise TrainingError("training splits", "gave no batch", "look at the faults in the log")
