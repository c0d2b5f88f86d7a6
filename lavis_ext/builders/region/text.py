"""Texts as BERT's inputs: `[CLS] A [SEP] B [SEP]` within a length, cut as Oscar's readers cut them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lavis_ext.errors import ConfigError
from lavis_ext.processors.wordpiece import WordPiece

Ids = list[int]
LEAST = 8
"""No input is shorter: two words, a tag and their signs."""


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and how many tokens of text an input may have. Picklable."""

    words: WordPiece
    max_seq_length: int

    def __post_init__(self) -> None:
        if type(self.max_seq_length) is not int or self.max_seq_length < LEAST:
            way_out = f"give a whole number from {LEAST} on"
            raise ConfigError("args.max_seq_length", f"{self.max_seq_length!r} tokens hold no text", way_out)

    def pair(self, first: str, second: str) -> tuple[Ids, Ids]:
        """`input_ids` and `token_type_ids` of one text or two; of two the longer is cut, token by token."""
        one, other = self.words.encode(first), self.words.encode(second)
        return self.joined(*cut_pair(one, other, self.max_seq_length - (3 if other else 2)))

    def caption(self, caption: Ids, tags: Ids) -> tuple[Ids, Ids]:
        """A caption of at most `max_seq_length` - 2 tokens, and of the tags what then fits (retrieval, captioning)."""
        kept = caption[: self.max_seq_length - 2]
        return self.joined(kept, tags[: max(self.max_seq_length - len(kept) - 3, 0)])

    def joined(self, first: Ids, second: Ids) -> tuple[Ids, Ids]:
        """The texts with their signs; the second is of type 1 with its [SEP], and leaves nothing where it is empty."""
        words = self.words
        ids = [words.cls, *first, words.sep]
        more = [*second, words.sep] if second else []
        return ids + more, [0] * len(ids) + [1] * len(more)


def cut_pair(first: Ids, second: Ids, most: int) -> tuple[Ids, Ids]:
    """Two texts of `most` tokens together: the last token of the longer goes, of the second where both are as long."""
    surplus = len(first) + len(second) - most
    if surplus <= 0:
        return first, second
    gap = len(first) - len(second)
    # The longer shrinks to the other's length first; what is left is shared out, beginning with the second.
    level = min(abs(gap), surplus)
    rest = surplus - level
    from_first = (level if gap > 0 else 0) + rest // 2
    from_second = surplus - from_first
    return first[: len(first) - from_first], second[: len(second) - from_second]


def tag_text(value: Any) -> str:
    """Object tags as one text: they come separated by `;`, or as a list."""
    if isinstance(value, list):
        return " ".join(str(one["class"]) if isinstance(one, dict) and "class" in one else str(one) for one in value)
    return str(value or "").replace(";", " ").strip()
