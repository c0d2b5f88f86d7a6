"""LAVIS' text processors: lower case, some punctuation removed, cut to a number of words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lavis_ext.common.config.decode import Count
from lavis_ext.common.registry import processors
from lavis_ext.processors.base_processor import BaseProcessor, settable

SIGNS = re.compile(r"[.!\"()*#:;~]")
SPACES = re.compile(r"\s{2,}")


@processors.register("blip_caption")
@settable
@dataclass(frozen=True)
class BlipCaption(BaseProcessor):
    """Punctuation becomes spaces; `prompt` is put before the result."""

    prompt: str = ""
    max_words: Count = 50

    def __call__(self, text: str) -> str:
        """The prompt and the cleaned caption."""
        return self.prompt + self.pre_caption(text)

    def pre_caption(self, text: str) -> str:
        """The cleaned caption alone."""
        spaced = SPACES.sub(" ", SIGNS.sub(" ", text.lower()))
        return first_words(spaced.rstrip("\n").strip(" "), self.max_words)


@processors.register("blip_question")
@settable
@dataclass(frozen=True)
class BlipQuestion(BaseProcessor):
    """Punctuation is deleted; inner and final line breaks stay, as in LAVIS."""

    max_words: Count = 50

    def __call__(self, text: str) -> str:
        """The cleaned question."""
        return first_words(SIGNS.sub("", text.lower()).rstrip(" "), self.max_words)


def first_words(text: str, limit: int) -> str:
    """The text, or its first `limit` words, split at single spaces."""
    words = text.split(" ")
    return " ".join(words[:limit]) if len(words) > limit else text
