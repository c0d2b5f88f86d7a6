"""A data set, a model, a task and batches so small that a hundred steps take a blink."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavis_ext.common.config.schema import ModelConfig, RunConfig
from lavis_ext.common.types import Batch, Sample
from lavis_ext.datasets.collate import collate
from lavis_ext.datasets.readers.faults import FaultLog
from lavis_ext.models.base_model import BaseModel
from lavis_ext.processors.image import Normalizer
from lavis_ext.tasks.base_task import BaseTask, write_result


@dataclass
class ToyDataset:
    """`size` pictures of 4×4 (`edge`) random pixels; the captions name the sample."""

    size: int = 12
    name: str = "toy"
    split: str = "train"
    edge: int = 4

    def __len__(self) -> int:
        return self.size

    def pixels(self, index: int) -> Tensor:
        return torch.randint(
            0, 256, (3, self.edge, self.edge), generator=torch.Generator().manual_seed(index), dtype=torch.uint8
        )

    def __getitem__(self, index: int) -> Sample:
        return {**self.load(index, torch.Generator()), "image": Normalizer()(self.pixels(index))}  # type: ignore[typeddict-item]

    def load(self, index: int, rng: torch.Generator) -> Sample:
        return {
            "image": self.pixels(index),
            "text_input": f"a toy {index}",
            "image_id": index,
            "instance_id": str(index),
        }

    def collater(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples)


@dataclass
class ToyFeed:
    """Batches of a toy data set with the interface of a mixture: shuffled by (seed, epoch), resumable at a batch."""

    dataset: ToyDataset
    batch_size: int = 2
    seed: int = 0
    shuffle: bool = True
    rank: int = 0
    world: int = 1
    faults: FaultLog = field(default_factory=FaultLog)
    normalizer: Normalizer = field(default_factory=Normalizer)
    epoch: int = 0
    position: int = 0

    @property
    def datasets(self) -> dict[str, ToyDataset]:
        return {self.dataset.name: self.dataset}

    @property
    def order(self) -> ToyFeed:
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def close(self) -> None:
        pass

    def rows(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.epoch)
        size = len(self.dataset)
        order = torch.randperm(size, generator=generator).tolist() if self.shuffle else list(range(size))
        mine = order[self.rank :: self.world]
        return [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]

    def __len__(self) -> int:
        return len(self.rows())

    def __iter__(self) -> Iterator[Batch]:
        batches = self.rows()
        while self.position < len(batches):
            indices = batches[self.position]
            self.position += 1
            self.faults.seen(self.dataset.name, self.dataset.split, len(indices))
            yield self.dataset.collater([self.dataset.load(i, torch.Generator()) for i in indices])
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "faults": self.faults.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
        self.faults.load_state_dict(state["faults"])


class ToyModel(BaseModel):
    """A frozen layer with a buffer, dropout, and a trained layer; `loss` is the distance to the picture's mean."""

    def __init__(self, width: int = 8, dropout: float = 0.3) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Linear(48, width), nn.BatchNorm1d(width))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.tensor(1.0))  # FSDP has no parts of a scalar
        self.poisoned: str | None = None
        self.freeze(self.eye)

    @classmethod
    def from_config(cls, config: ModelConfig) -> ToyModel:
        return cls()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        image = batch["image"].flatten(1)
        predicted = self.scale * self.head(self.drop(self.eye(image))).squeeze(1)
        loss = (predicted - image.mean(1)).square().mean()
        if self.poisoned in batch["instance_id"]:
            loss = loss * float("nan")
        return {"loss": loss, "twice": 2 * loss}

    def generate(self, samples: Batch) -> list[str]:
        return [f"value {value:.3f}" for value in self.head(self.eye(samples["image"].flatten(1))).squeeze(1).tolist()]


class ToyTask(BaseTask):
    """The toy model's loss; its metric is what the test says, epoch by epoch."""

    evaluates = True
    metrics: Sequence[float] = (0.5,)

    def __init__(self, model: nn.Module, run: RunConfig) -> None:
        super().__init__(model, run)
        self.evaluated: list[tuple[str, str]] = []
        self.remaining = list(self.metrics)

    def valid_step(self, batch: Batch) -> list[dict[str, Any]]:
        captions = self.network.generate(batch)
        ids = batch["image_id"].tolist()
        return [{"image_id": i, "caption": caption} for i, caption in zip(ids, captions, strict=True)]

    def after_evaluation(
        self, rows: Sequence[dict[str, Any]], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        self.evaluated.append((split, str(epoch)))
        write_result(out_dir / f"{split}_epoch{epoch}.json", list(rows))
        value = self.remaining.pop(0) if len(self.remaining) > 1 else self.remaining[0]
        return {"CIDEr": value, "agg_metrics": value}


def toy_run(output_dir: Path, **keys: Any) -> RunConfig:
    """A run of three epochs without copies of its log."""
    base: dict[str, Any] = {
        "task": "toy", "output_dir": str(output_dir), "job_id": "job", "device": "cpu", "max_epoch": 3, "init_lr": 0.01,
        "batch_size_train": 2, "log_freq": 1, "tensorboard": False, "report": False, "train_splits": ["train"],
    }  # fmt: skip
    return RunConfig(**{**base, **keys})
