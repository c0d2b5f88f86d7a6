"""Texts → token ids with image places: `[pad][image × n][text]` to generate, pads at the end to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.types import Batch

IGNORED = -100
"""The label that the loss skips."""
Side = Literal["left", "right"]
Ids = list[int]


@dataclass(frozen=True)
class TextTokens:
    """One batch of token ids; all [B, L] int64. `starts[i]` is where the text of a right-padded row begins.

    `pictures` are those of the samples that stand in the image places, row by row; None: each once, in order.
    """

    input_ids: Tensor
    attention_mask: Tensor
    starts: tuple[int, ...]
    pictures: Sequence[int] | None = None

    def to(self, device: torch.device) -> TextTokens:
        """The same on another device."""
        return replace(self, input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device))


class Prompter:
    """A tokenizer that puts `num_query` image tokens before every text."""

    def __init__(self, tokenizer: Any, image_token_id: int, num_query: int, max_txt_len: int) -> None:
        self.tokenizer = tokenizer
        self.places = [image_token_id] * num_query
        self.max_txt_len = max_txt_len

    @property
    def pad_id(self) -> int:
        """The pad token, else the end token; the mask distinguishes pads from text."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def encode(self, texts: Sequence[str], side: Side, cut: bool = True) -> TextTokens:
        """Texts padded to the longest on one side: left to generate, right to learn; `cut` to `max_txt_len` tokens."""
        return self.pad([self.places] * len(texts), self.ids(texts, cut=cut), side)

    def ids(self, texts: Sequence[str], special: bool = True, cut: bool = True) -> list[Ids]:
        """Token ids of each text, with the tokenizer's own opening and closing if `special`; `cut` to `max_txt_len`."""
        limit = {"truncation": True, "max_length": self.max_txt_len} if cut else {}
        found = self.tokenizer(list(texts), add_special_tokens=special, **limit)["input_ids"]
        # a caption may contain the text of the image token, which must not take a place of the image
        return [[token for token in row if token not in self.places] for row in found]

    def pad(self, heads: Sequence[Ids], texts: Sequence[Ids], side: Side) -> TextTokens:
        """Rows of head and text, padded to the longest on one side."""
        rows = [head + text for head, text in zip(heads, texts, strict=True)]
        width = max(map(len, rows))
        pads = [[self.pad_id] * (width - len(row)) for row in rows]
        spans = list(zip(rows, pads, strict=True))
        if side == "left":
            ids, mask = [p + r for r, p in spans], [[0] * len(p) + [1] * len(r) for r, p in spans]
        else:
            ids, mask = [r + p for r, p in spans], [[1] * len(r) + [0] * len(p) for r, p in spans]
        return TextTokens(torch.tensor(ids), torch.tensor(mask), tuple(map(len, heads)))

    def labels(self, tokens: TextTokens, unlearnt: int | Sequence[int] = 0) -> Tensor:
        """[B, L] targets of right-padded tokens; heads, pads and the first `unlearnt` tokens of a text are ignored."""
        labels = tokens.input_ids.masked_fill(tokens.attention_mask == 0, IGNORED)
        lengths = [unlearnt] * len(labels) if isinstance(unlearnt, int) else unlearnt
        for row, start, length in zip(labels, tokens.starts, lengths, strict=True):
            row[: start + length] = IGNORED
        return labels

    def length(self, text: str) -> int:
        """How many tokens a text has, the opening token included."""
        return len(self.tokenizer(text)["input_ids"])

    def end_id(self, end_sym: str) -> int:
        """The token that ends a text: the last one of `end_sym` after a word."""
        ids = self.tokenizer(f"a{end_sym}", add_special_tokens=False)["input_ids"] if end_sym else []
        return int(ids[-1]) if ids else int(self.tokenizer.eos_token_id)


class ChatPrompter(Prompter):
    """MiniGPT-4's frame: `###Human: <Img>` image places `</Img>` instruction `###Assistant: ` text."""

    opening = "###Human: <Img>"
    closing = "</Img> "
    turn = " ###Assistant: "

    def frame(self, texts: Sequence[str], instructions: Sequence[str], side: Side) -> TextTokens:
        """To learn: the start token, the frame with its instruction, and the text; only the text gets labels."""
        start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        heads = [start + self._around(self.closing + one + self.turn) for one in instructions]
        return self.pad(heads, self.ids(texts, special=False), side)

    def open(self, prompts: Sequence[str]) -> TextTokens:
        """To generate: the frame up to `</Img>`, and the prompts with the tokenizer's own start token, as upstream."""
        return self.pad([self._around(self.closing)] * len(prompts), self.ids(prompts, cut=False), "left")

    def _around(self, closing: str) -> Ids:
        before, after = self.ids([self.opening, closing], special=False, cut=False)
        return before + self.places + after


def texts_of(batch: Batch, key: str) -> list[str]:
    """The texts of a batch; a single text is a batch of one. Raises ConfigError for another number than of images."""
    value = batch[key]
    texts = [value] if isinstance(value, str) else list(value)
    if "image" in batch and len(texts) != len(batch["image"]):
        raise ConfigError(key, f"{len(texts)} texts for {len(batch['image'])} images", "give one text for each image")
    return texts


def cut_at_random(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Each text before and from a word of its first half, drawn from torch's generator; the first part may be empty."""
    words = [text.split(" ") for text in texts]
    points = [int(torch.randint(len(row) // 2 + 1, ())) for row in words]
    heads = [" ".join(row[:point]) for row, point in zip(words, points, strict=True)]
    return heads, [" ".join(row[point:]) for row, point in zip(words, points, strict=True)]


def target_texts(batch: Batch) -> list[str]:
    """The texts to learn: `text_input`, followed by `text_output` where a data set splits its captions."""
    texts = texts_of(batch, "text_input")
    if "text_output" not in batch:
        return texts
    return [f"{head} {tail}".strip() for head, tail in zip(texts, texts_of(batch, "text_output"), strict=True)]


def learns_output_only(batch: Batch) -> bool:
    """Whether only `text_output` is learnt, after a question (`learn: text_output`)."""
    return batch.get("learn") == "text_output" and "text_output" in batch


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


def questions_of(samples: Batch, prompt: str) -> list[str]:
    """`text_input` as a list, each put into `{}` of `prompt`."""
    return [filled(prompt, question) if prompt else question for question in texts_of(samples, "text_input")]


def filled(prompt: str, *texts: str) -> str:
    """A prompt with texts in the places of `{}`; raises ConfigError where it has other braces, or more places."""
    try:
        return prompt.format(*texts)
    except (ValueError, LookupError, AttributeError) as error:
        what = f"{prompt!r} does not take {len(texts)} text{'s' * (len(texts) != 1)} ({error})"
        raise ConfigError("prompt", what, "write {} where a text goes, and {{ }} for braces") from error


def each(samples: Batch, key: str) -> list[Any]:
    """One value an image of a key of the samples; a single text is one. Raises ConfigError for another number."""
    value = samples[key]
    found, count = [value] if isinstance(value, str) else list(value), len(samples["image"])
    if len(found) != count:
        raise ConfigError(key, f"{len(found)} for {count} images", "give one for each image")
    return found
