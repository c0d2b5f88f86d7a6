"""The shape `conversation`: turns about any number of pictures; LLaVA's files, OpenAI's messages, ShareGPT4V.

Rows with a caption or a question and answers are conversations of two turns: MiniGPT-4's set, VQAv2.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Batch, Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext, build_splits
from lavis_ext.datasets.builders.settings import ConversationKeys
from lavis_ext.datasets.collate import Rule, collate, stack_images
from lavis_ext.datasets.datasets.base_dataset import MAX_TEXT, UNWANTED, ImageTextDataset, draw_below, two_ways
from lavis_ext.datasets.readers.conversations import FAULT, IMAGE, Turn
from lavis_ext.datasets.readers.parse import Row
from lavis_ext.processors import drawing_from, uint8_of


@builders.register("conversation", config=ConversationKeys)
def conversation(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Every split gives `image` (a list), `conversations`, `sample_id`, `instance_id`; `train` must have answers."""
    return build_splits(config, context, ConversationDataset)


@two_ways
@dataclass(frozen=True, eq=False)
class ConversationDataset(ImageTextDataset):
    """Turns and their pictures: the n-th `<image>` of the turns is the place of the n-th picture.

    Texts are as they are written: the text processor is not asked, and the model's chat template sets the roles.
    """

    Keys = ConversationKeys
    conversations = "whole"

    def __getitem__(self, index: int) -> Sample:
        """`image` a list of float32 [3,H,W], or of PIL images where no vis_processor is set. Raises SampleError."""
        other = uint8_of(self.vis_processor) is None
        return self._sample(index, self._other if other else self.vis_processor, None)

    def load(self, index: int, rng: torch.Generator) -> Sample:
        """The sample with uint8 pictures and all randomness from `rng`. Raises SampleError."""
        uint8 = uint8_of(self.vis_processor)
        with drawing_from(rng):
            return self._sample(index, self._other if uint8 is None else lambda one: uint8(one, rng), rng)

    def _sample(self, index: int, process: Callable[[np.ndarray], Any], rng: torch.Generator | None) -> Sample:
        row = self.row(index)
        texts = self.texts(row, index, rng)  # first: a row without turns says so, and not what its picture lacks
        key = self.parts.args["image_key"]
        images = [process(self.pixels({**row, key: name}, index)) for name in self.pair(row, index)]
        return {"image": images, **texts}  # type: ignore[typeddict-item]  # a list of any number

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """The turns, and the ids. Raises SampleError for a row whose turns cannot be used."""
        ids: Sample = {"sample_id": self.sample_id(index), "instance_id": row["instance_id"]}
        return {"conversations": self.turns(row, index, rng), **ids}

    def turns(self, row: Row, index: int, rng: torch.Generator | None) -> list[Turn]:
        """The turns of a row; of one without any, its question and its answer."""
        if FAULT in row:
            raise self.fault(index, str(row[FAULT]))
        if (turns := row.get("conversations")) is None:
            turns = self._asked(row, index, rng)
        if self.parts.training and not any(turn["role"] == "assistant" for turn in turns):
            raise self.fault(index, "no turn is of the assistant: there is nothing to learn")
        return [{"role": turn["role"], "content": self._clean(turn["content"], index)} for turn in turns]

    def _asked(self, row: Row, index: int, rng: torch.Generator | None) -> list[Turn]:
        args, drawn = self.parts.args, self.parts.training
        asked, prompts = row.get(args["question_key"]), args["prompts"]
        if asked is None and prompts:
            asked = prompts[draw_below(len(prompts), rng) if drawn else 0]
        if not isinstance(asked, str) or not asked.strip():
            raise self.fault(index, f"it has no turns and no {args['question_key']}")
        given = _texts(row.get(args["answer_key"]))
        if drawn and not given:
            raise self.fault(index, f"{args['answer_key']} is missing or empty")
        often = Counter(given).most_common(1)
        said = given[draw_below(len(given), rng)] if drawn else often[0][0] if often else ""
        turns = [{"role": "user", "content": f"{IMAGE}\n" * len(self.pair(row, index)) + asked.strip()}]
        return [*turns, {"role": "assistant", "content": said}] if said else turns

    def _clean(self, text: str, index: int) -> str:
        if len(text) > MAX_TEXT:
            raise self.fault(index, "a turn is too long")
        return UNWANTED.sub("", text)

    def pair(self, row: Row, index: int) -> list[str]:
        """The names of a row's pictures, in the order of their places; of a row with turns perhaps none."""
        listed = row.get(self.parts.args["image_key"])
        if listed is None and ("conversations" in row or FAULT in row):
            return []
        name = super().image_name(row)
        names = listed if isinstance(listed, list) else [name] if name else []
        return [str(one) for one in names]

    def image_name(self, row: Row) -> str:
        """The name of a row's first picture; "" without any."""
        return next(iter(self.pair(row, 0)), "")

    def references(self) -> dict[str, list[str]]:
        """What the assistant says last, by `sample_id`; of a row without turns all its answers."""
        found = {}
        for index in range(len(self)):
            row = self.row(index)
            turns = row.get("conversations") or []
            last = [turns[-1]["content"]] if turns and turns[-1]["role"] == "assistant" else []
            found[self.sample_id(index)] = last if turns else _texts(row.get(self.parts.args["answer_key"]))
        return {name: texts for name, texts in found.items() if texts}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch: `image` [N,3,H,W], all pictures in order, absent where there are none; `image_counts`.

        `image_counts` (list of B integers) says how many of them are of each sample.
        """
        return collate(samples, RULES)

    def displ_item(self, index: int) -> OrderedDict[str, Any]:
        """What a browser shows of a sample: files, turns, pictures (LAVIS' method)."""
        row, sample = self.row(index), self[index]
        shown = {"file": ", ".join(self.pair(row, index)), "conversations": sample["conversations"]}
        return OrderedDict({**shown, "image": sample["image"]})


def _texts(value: Any) -> list[str]:
    """The answers of a row: a text, a number, a list of these, or of records with `answer`."""
    found = [
        one.get("answer") if isinstance(one, dict) else one for one in (value if isinstance(value, list) else [value])
    ]
    plain = [str(one).strip() for one in found if isinstance(one, str | int | float) and not isinstance(one, bool)]
    return [one for one in plain if one]


def all_pictures(key: str, values: list[list[Tensor]]) -> dict[str, Any]:
    """All pictures of a batch in a row; raises ConfigError where no processor made them tensors."""
    flat = [image for images in values for image in images]
    return {**(stack_images(key, flat) if flat else {}), "image_counts": [len(images) for images in values]}


RULES: dict[str, Rule] = {"image": all_pictures}


def before_answer(turns: Sequence[Turn]) -> tuple[list[Turn], str]:
    """The turns before the last one of the assistant, and that one; all of them and "" where it says nothing.

    Raises ConfigError where no turn of a user is left.
    """
    last = max((number for number, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
    asked = list(turns[:last])
    if not any(turn["role"] == "user" for turn in asked):
        raise ConfigError("conversations", "no turn of a user is there to answer", "begin with one of role `user`")
    return asked, turns[last]["content"] if last < len(turns) else ""
