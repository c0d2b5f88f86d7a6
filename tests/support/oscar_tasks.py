"""Stand-ins for what Oscar's tasks talk to: a model whose logits the test lays down, and small data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lavis_ext.common.config.schema import run_config
from lavis_ext.models.base_model import Outputs
from lavis_ext.tasks import setup_task

Judge = Callable[[dict[str, Any]], Tensor]
CLS, SEP = 2, 3


class Judging(nn.Module):
    """A model whose logits [N, C] are what `judge` makes of a batch; it remembers the batches."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge, self.seen = judge, []

    def outputs(self, batch: dict[str, Any]) -> Outputs:
        self.seen.append(batch)
        return Outputs(logits=self.judge(batch))


@dataclass
class Words:
    """A vocabulary of answers in the order of its classes."""

    answers: list[str]

    @property
    def ids(self) -> list[int]:
        return list(range(len(self.answers)))

    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.answers).encode()).hexdigest()


@dataclass
class Asked:
    """The part of a data set of questions that a task asks for."""

    labels: Words | None = None
    truth: dict[Any, list[str]] = field(default_factory=dict)

    def references(self) -> dict[Any, list[str]]:
        return self.truth


@dataclass
class Pictures:
    """`count` images with `each` captions; a caption's tokens tell its number, an image's region its index."""

    count: int
    each: int
    lists: dict[int, list[int]] | None = None
    img_keys_file: str = ""
    caption_index_file: str = ""

    def __post_init__(self) -> None:
        total = self.count * self.each
        self.captions = [[10 + number, *[5] * (number % 3)] for number in range(total)]
        self.caption_image = np.repeat(np.arange(self.count), self.each)
        self.caption_keys = [(f"i{image}", number % self.each) for number, image in enumerate(self.caption_image)]

    def __len__(self) -> int:
        return self.count

    def candidates(self, index: int) -> np.ndarray | None:
        return None if self.lists is None else np.array(self.lists[index], dtype=np.int64)

    def encode_pair(self, caption: list[int], tags: list[int]) -> dict[str, list[int]]:
        words, more = [CLS, *caption, SEP], [*tags, SEP]
        return {"input_ids": [*words, *more], "token_type_ids": [0] * len(words) + [1] * len(more)}

    def batch(self, *indices: int) -> dict[str, Any]:
        """Each image has as many regions as its index says, and at least one, of two numbers."""
        feats = torch.zeros(len(indices), max(indices) + 1, 2)
        mask = torch.zeros(len(indices), max(indices) + 1, dtype=torch.bool)
        for row, index in enumerate(indices):
            feats[row, : index + 1, 0] = index
            mask[row, : index + 1] = True
        names = [f"i{index}" for index in indices]
        tags = [[20 + index] for index in indices]
        return {
            "img_feats": feats, "img_mask": mask, "tag_ids": tags, "image_id": names, "index": torch.tensor(indices),
        }  # fmt: skip


def task(name: str, judge: Judge, **keys: Any) -> Any:
    return setup_task(run_config(task=name, **keys), Judging(judge))


def of_table(table: Any) -> Judge:
    """Logits of pairs: a match is as likely as `table[image][caption]` says."""
    scores = torch.as_tensor(np.asarray(table, dtype=np.float32))

    def judge(batch: dict[str, Any]) -> Tensor:
        match = scores[batch["img_feats"][:, 0, 0].long(), batch["input_ids"][:, 1] - 10]
        return torch.stack([torch.zeros_like(match), match], 1)

    return judge
