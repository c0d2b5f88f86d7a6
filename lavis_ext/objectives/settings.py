"""The keys of losses and of terms of distillation, beside `name` and `weight`, and what a term reads of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from lavis_ext.typed import Bound, Count, Natural


@dataclass(frozen=True, kw_only=True)
class LossKeys:
    """A loss of BLIP-2's first stage."""


@dataclass(frozen=True, kw_only=True)
class TermKeys:
    """A term of distillation."""

    hidden: ClassVar[bool] = False
    """Whether it reads hidden states …"""
    attentions: ClassVar[bool] = False
    """… and attention scores."""

    @classmethod
    def reads_layers(cls) -> bool:
        """Whether logits alone are not enough."""
        return cls.hidden or cls.attentions


@dataclass(frozen=True, kw_only=True)
class HiddenKeys(TermKeys):
    """Reads hidden states."""

    hidden: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class LayerKeys(TermKeys):
    """Reads hidden states and attention scores."""

    hidden: ClassVar[bool] = True
    attentions: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class AkdKeys(TermKeys):
    """Annealing."""

    max_temperature: Count = 7
    phase: Annotated[float, Bound(0, 1, open=True)] = 0.6
    """Share of the run that it takes."""


@dataclass(frozen=True, kw_only=True)
class MgskdKeys(HiddenKeys):
    """Structure of tokens and samples."""

    heads: Count = 64
    central: Count = 20
    near: Count = 20
    token_layers: Natural = 2


@dataclass(frozen=True, kw_only=True)
class EmdKeys(LayerKeys):
    """Earth mover's distance between layers."""

    learn_weights: bool = True
