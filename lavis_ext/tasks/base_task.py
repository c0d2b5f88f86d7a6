"""The base of tasks: a training step, an evaluation step, and the metrics of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import disk_errors, write_atomic, write_json
from lavis_ext.common.registry import tasks
from lavis_ext.common.types import Batch

Row = dict[str, Any]
"""One result: plain values that JSON can hold."""


class BaseTask:
    """Model + loss + metric. `model` may be replaced by a wrapped one (DDP); `network` is always the model itself."""

    Keys: ClassVar[type[RunConfig]] = RunConfig
    evaluates: bool = False
    """Whether `valid_step` and `after_evaluation` do anything."""
    counts_batches: bool = False
    """Whether the task keeps a state that every micro-batch changes, so that a resume needs as many ranks."""
    needs: tuple[str, ...] = ()
    """Methods that the model must have."""

    def __init__(self, model: nn.Module, run: RunConfig) -> None:
        self.model = model
        self.run: Any = run
        """An instance of `Keys`."""
        lacking = [name for name in self.needs if not hasattr(self.network, name)]
        if lacking:
            what = f"{type(self).__name__} needs `{lacking[0]}` of the model, {type(self.network).__name__} has none"
            raise ConfigError("run.task", what, "choose another task, or another model.arch")

    @classmethod
    def from_config(cls, run: Any, model: nn.Module) -> BaseTask:
        """The task that a `run:` section describes."""
        return cls(model, run)

    @property
    def network(self) -> Any:
        """The model without the wrapper of a distributed run."""
        return getattr(self.model, "module", self.model)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One training batch → named scalars; `loss` is the one to minimise."""
        losses: dict[str, Tensor] = self.model(batch)
        return losses

    def before_train(self, batches: Any, total: int) -> None:
        """Called before the first step with the batches of the run and their total number."""

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint beside the model, the same on all ranks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; called before `before_train`."""

    def rank_state(self) -> dict[str, Any]:
        """State of this rank for a checkpoint."""
        return {}

    def load_rank_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `rank_state` returned."""

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """Called on every rank before the first `valid_step` of a split, with its data sets."""

    def valid_step(self, batch: Batch) -> list[Row]:
        """One evaluation batch → one row a sample; rows of all ranks are gathered before `after_evaluation`."""
        return []

    def share(self, rows: Sequence[Row], split: str, datasets: Sequence[Any], rank: int, world: int) -> Any:
        """This rank's part of expensive work for `after_evaluation`; all ranks have all rows; picklable."""
        return None

    def receive(self, parts: list[Any]) -> None:
        """Take the results of `share` of all ranks, in order of ranks, before `after_evaluation`."""

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Write the result files of a split and return its metrics; `agg_metrics` selects the best checkpoint."""
        return {}


def setup_task(run: RunConfig, model: nn.Module) -> BaseTask:
    """The task of `run.task`; raises RegistryError for an unknown name."""
    task: BaseTask = tasks.get(run.task).from_config(run, model)
    return task


def plain_id(value: Any) -> int | str:
    """An id as in result files: an integer for digits (`"000000391895"` → 391895), else text."""
    value = value.item() if isinstance(value, Tensor) else value
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() else text


def first_by_id(rows: Iterable[Row], key: str) -> list[Row]:
    """Rows with plain ids in `key`, the first of each: a sampler may repeat samples to fill its ranks."""
    kept: dict[int | str, Row] = {}
    for row in rows:
        name = plain_id(row[key])
        kept.setdefault(name, {**row, key: name})
    return list(kept.values())


def write_result(path: Path, value: Any) -> None:
    """Write a JSON file atomically; raises DiskError."""
    with disk_errors(path, "set run.output_dir elsewhere"):
        write_json(path, value)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a JSON list atomically, one line a row, which suits millions of rows; raises DiskError."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with disk_errors(path, "set run.output_dir elsewhere"):
        write_atomic(path, f"[{lines}]\n")


def merged_references(datasets: Sequence[Any]) -> dict[int | str, list[str]]:
    """References of several data sets by plain id; raises ConfigError for an id with different texts."""
    merged: dict[int | str, list[str]] = {}
    for dataset in datasets:
        found: Mapping[Any, Sequence[str]] = dataset.references()
        for key, captions in found.items():
            name = plain_id(key)
            if merged.setdefault(name, list(captions)) != list(captions):
                what = f"image id {name} means another image in another data set of the split"
                raise ConfigError(f"datasets.{dataset.name}", what, "evaluate them in separate runs")
    return merged
