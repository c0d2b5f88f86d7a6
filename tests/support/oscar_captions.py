"""A small world of captions: a data set whose captions name its tags, and a captioner that can learn them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lavis_ext.oscar.config import OscarConfig
from lavis_ext.oscar.model import Oscar
from lavis_ext.oscar.wordpiece import WordPiece, load_wordpiece
from tests.support.oscar import TINY_VOCAB

WORDS: WordPiece = load_wordpiece(TINY_VOCAB)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"initializer_range": 0.1, "attention_probs_dropout_prob": 0.0}  # type: ignore[dict-item]
THINGS = [f"{color} {shape}" for color in ("red", "green", "blue") for shape in ("circle", "star", "square")]
TAG_START = 12
WIDTH = 6


def captioner(**changes: Any) -> Oscar:
    """A captioner of two layers over the demo's words, too small for more than one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(changes.pop("seed", 0))
    settings: dict[str, Any] = {"sizes": {"text_config": SIZES}, "tokenizer": str(TINY_VOCAB), "head": "caption"}
    settings |= {"img_feature_dim": WIDTH, "drop_out": 0.0, "max_seq_a_length": TAG_START, **changes}
    return Oscar.from_config(OscarConfig(arch="oscar", model_type="tiny", **settings))


@dataclass
class Scenes:
    """`size` images of one thing each; the thing is its tag, its region and the caption "a <thing> on paper"."""

    size: int = 9
    name: str = "scenes"
    captioned: bool = True
    domain: str = ""
    max_seq_a_length: int = TAG_START
    parts: Any = field(init=False)

    def __post_init__(self) -> None:
        self.parts = SimpleNamespace(args={"max_seq_a_length": self.max_seq_a_length, "add_od_labels": True})

    def __len__(self) -> int:
        return self.size

    def row(self, index: int) -> dict[str, Any]:
        return {"image_id": index, **({"domain": self.domain} if self.domain else {})}

    def image_id(self, row: dict[str, Any]) -> int:
        return int(row["image_id"])

    def thing(self, index: int) -> str:
        return THINGS[index % len(THINGS)]

    def references(self) -> dict[int, list[str]]:
        if not self.captioned:
            return {}
        return {index: [f"a {self.thing(index)} on paper", f"the {self.thing(index)}"] for index in range(self.size)}

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """What an eval split gives: `od_ids` ending in [SEP], regions that spell the number of the thing."""
        tags = [[*WORDS.encode(self.thing(index)), WORDS.sep] for index in indices]
        regions = torch.zeros(len(indices), 2, WIDTH)
        for row, index in zip(regions, indices, strict=True):
            row[0] = torch.tensor([float(index % len(THINGS) >> bit & 1) for bit in range(WIDTH)])
        return {
            "od_ids": torch.tensor(tags),
            "od_mask": torch.ones(len(indices), len(tags[0]), dtype=torch.bool),
            "img_feats": regions,
            "img_mask": torch.tensor([[True, False]] * len(indices)),
            "image_id": list(indices),
            "instance_id": [str(index) for index in indices],
        }

    def train_batch(self, indices: Sequence[int], rng: torch.Generator) -> dict[str, Any]:
        """What the train split gives beside it: one word of each caption hidden, the mask of seq2seq, all positions."""
        batch = self.batch(indices)
        texts = torch.tensor([[WORDS.cls, *WORDS.encode(f"a {self.thing(i)} on paper"), WORDS.sep] for i in indices])
        length, tags = texts.shape[1], batch["od_ids"].shape[1]
        place = torch.randint(1, length, (len(indices),), generator=rng)
        rows = torch.arange(len(indices))
        masked_ids = texts[rows, place].clone()
        texts[rows, place] = WORDS.mask
        masked = torch.zeros(len(indices), length + tags, dtype=torch.bool)
        masked[rows, place] = True
        size = length + tags + 2
        mask = torch.zeros(len(indices), size, size, dtype=torch.uint8)
        mask[:, :length, :length] = torch.ones(length, length).tril()
        mask[:, :, length : size - 1] = 1
        positions = torch.tensor([*range(length), *range(TAG_START, TAG_START + tags)])
        return {
            **batch,
            "input_ids": torch.cat([texts, batch["od_ids"]], 1),
            "token_type_ids": torch.tensor([[0] * length + [1] * tags] * len(indices)),
            "position_ids": positions.expand(len(indices), -1),
            "attention_mask": mask,
            "masked_pos": masked,
            "masked_ids": masked_ids,
        }


def teach(model: Oscar, scenes: Scenes, steps: int, rate: float = 3e-3) -> list[float]:
    """Train on hidden words; the losses."""
    optimizer, rng = torch.optim.AdamW(model.parameters(), rate), torch.Generator().manual_seed(0)
    model.train()
    losses = []
    for _ in range(steps):
        loss: Tensor = model(scenes.train_batch(range(scenes.size), rng))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
