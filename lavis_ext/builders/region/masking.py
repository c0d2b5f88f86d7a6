"""Words hidden to be predicted: BERT's 80 % [MASK], 10 % any word, 10 % as they are; all draws from one generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lavis_ext.processors.wordpiece import WordPiece

KEEP, REPLACE = 0.9, 0.8
"""A draw below 0.8 hides a word, one below 0.9 replaces it, any other leaves it."""


def choose_positions(candidates: Sequence[int], count: int, rng: torch.Generator | None) -> list[int]:
    """`count` of the candidates in ascending order, uniformly drawn."""
    order = torch.randperm(len(candidates), generator=rng)[:count].tolist()
    return sorted(candidates[number] for number in order)


def hide(ids: Sequence[int], positions: Sequence[int], words: WordPiece, rng: torch.Generator | None) -> list[int]:
    """The ids with those at `positions` hidden (Devlin et al., arXiv:1810.04805, §3.1)."""
    hidden = list(ids)
    kinds = torch.rand(len(positions), generator=rng).tolist()
    others = torch.randint(len(words), (len(positions),), generator=rng).tolist()
    for position, kind, other in zip(positions, kinds, others, strict=True):
        if kind < KEEP:
            hidden[position] = words.mask if kind < REPLACE else other
    return hidden
