"""Texts → token ids for a decoder that reads image places first: `[pad][image × n][text]`, or pads at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lavis_ext.errors import ConfigError
from lavis_ext.types import Batch

IGNORED = -100
"""The label that the loss passes over."""


@dataclass(frozen=True)
class Tokens:
    """One batch of token ids; all [B, L] int64."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device) -> Tokens:
        """The same on another device."""
        return Tokens(self.input_ids.to(device), self.attention_mask.to(device))


class Prompter:
    """A tokenizer that puts `num_query` image places before every text."""

    def __init__(self, tokenizer: Any, image_token_id: int, num_query: int, max_txt_len: int) -> None:
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        self.num_query = num_query
        self.max_txt_len = max_txt_len

    def encode(self, texts: Sequence[str], side: Literal["left", "right"]) -> Tokens:
        """Texts cut to `max_txt_len` tokens and padded to the longest on one side: left to generate, right to learn."""
        found = self.tokenizer(list(texts), truncation=True, max_length=self.max_txt_len)["input_ids"]
        # a caption may spell the image token, but only images take image places
        rows = [[token for token in row if token != self.image_token_id] for row in found]
        places = [self.image_token_id] * self.num_query
        width = max(len(row) for row in rows)
        pads = [[self.tokenizer.pad_token_id] * (width - len(row)) for row in rows]
        spans = [(places + row, pad) for row, pad in zip(rows, pads, strict=True)]
        if side == "left":
            ids, mask = [p + r for r, p in spans], [[0] * len(p) + [1] * len(r) for r, p in spans]
        else:
            ids, mask = [r + p for r, p in spans], [[1] * len(r) + [0] * len(p) for r, p in spans]
        return Tokens(torch.tensor(ids), torch.tensor(mask))

    def labels(self, tokens: Tokens, prompt_length: int) -> Tensor:
        """[B, L] targets of right-padded tokens; image places, pads and first `prompt_length` tokens ignored."""
        labels = tokens.input_ids.masked_fill(tokens.attention_mask == 0, IGNORED)
        labels[:, : self.num_query + prompt_length] = IGNORED
        return labels

    def length(self, text: str) -> int:
        """How many tokens a text has, the opening token included."""
        return len(self.tokenizer(text)["input_ids"])

    def end_id(self, end_sym: str) -> int:
        """The token that ends a text: the first one of `end_sym`, as in LAVIS."""
        ids = self.tokenizer(end_sym, add_special_tokens=False)["input_ids"]
        return int(ids[0]) if ids else int(self.tokenizer.eos_token_id)


def target_texts(batch: Batch) -> list[str]:
    """The texts to learn: `text_input`, with `text_output` behind it where a data set splits its captions."""
    texts = list(batch["text_input"])
    if "text_output" not in batch:
        return texts
    return [f"{head} {tail}".strip() for head, tail in zip(texts, batch["text_output"], strict=True)]


def prompts_of(samples: Batch, default: str) -> list[str]:
    """One prompt an image: `prompt` of the samples (a text, or one each), else `default`."""
    count = len(samples["image"])
    prompt = samples.get("prompt", default)
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(prompts) != count:
        raise ConfigError(
            "prompt", f"{len(prompts)} prompts for {count} images", "give one text, or one for each image"
        )
    return prompts
