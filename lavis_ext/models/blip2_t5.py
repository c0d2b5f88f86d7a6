"""BLIP-2 with Flan-T5: image places and text go into the encoder, what is learnt or said comes out of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lavis_ext.models.language import Blip2Language
from lavis_ext.models.settings import Blip2T5Config
from lavis_ext.models.text import IGNORED, Tokens
from lavis_ext.registry import models
from lavis_ext.types import Batch


@models.register("blip2_t5", config=Blip2T5Config)
class Blip2T5(Blip2Language):
    """BLIP-2 with Flan-T5, a prefix language model: `text_input` is read, `text_output` is learnt.

    Where a batch has no `text_output`, `prompt` is read and `text_input` learnt, so that plain captions train as well.
    """

    language = "t5"

    reads_its_own = False

    def _learn(self, batch: Batch) -> tuple[Any, Tensor]:
        images = self._images(batch)
        split = "text_output" in batch
        read = list(batch["text_input"]) if split else [self.prompt] * len(images)
        tokens = self.asking_tokens(read).to(images.device)
        labels = self.targets(batch["text_output" if split else "text_input"]).to(images.device)
        return self.net(images, tokens.input_ids, tokens.attention_mask, labels=labels, use_cache=False), labels

    def asking_tokens(self, prompts: Sequence[str]) -> Tokens:
        """Image places, prompt, closing token; pads at the end, where relative positions do not see them."""
        closed = [[*row, self.closing_id] for row in self.text.ids(prompts, special=False)]
        return self.text.pad([self.text.places] * len(closed), closed, "right")

    def targets(self, texts: Sequence[str]) -> Tensor:
        """[B, L] output tokens with the closing one, pads ignored."""
        rows = [torch.tensor([*row, self.closing_id]) for row in self.text.ids(texts, special=False)]
        return pad_sequence(rows, batch_first=True, padding_value=IGNORED)

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The tokens of each answer as the decoder learns them, with the closing one."""
        return [[*row, self.closing_id] for row in self.text.ids(answers, special=False)]

    @property
    def closing_id(self) -> int:
        """The token that closes every text of T5, which `end_sym` has no part in."""
        return int(self.text.tokenizer.eos_token_id)
