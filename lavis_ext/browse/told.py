"""The words that all views of data sets share: what a sample says, what stands for it, and which are chosen."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

Pixels = Any
"""uint8 [H,W,3]."""


@dataclass(frozen=True)
class Told:
    """What a row says: its texts under one name, the answers that people gave, and what else is worth a line."""

    kind: str = "text"
    texts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    label: str = ""
    choices: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    """Lines that are shown and not counted: object tags."""


@dataclass(frozen=True)
class Item:
    """A sample before its pictures are read."""

    name: str
    told: Told
    handle: Any


def choose(total: int, wanted: int, seed: int | None = None) -> list[int]:
    """Numbers below `total` in order: evenly spread, or drawn by a seed."""
    if wanted >= total:
        return list(range(total))
    if seed is not None:
        return sorted(random.Random(seed).sample(range(total), wanted))
    return [i * total // wanted for i in range(wanted)]
