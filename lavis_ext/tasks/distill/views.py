"""What the terms of a run ask of a model, and one module that answers, under its own or under other parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import functional_call

from lavis_ext.models.base import Model, Outputs
from lavis_ext.objectives.terms import Term
from lavis_ext.types import Batch


@dataclass(frozen=True)
class Need:
    """The views to look under, and whether hidden states and attention scores of the full one are read."""

    views: tuple[str, ...] = ("full",)
    hidden: bool = False
    attentions: bool = False

    @classmethod
    def of(cls, terms: Iterable[Term], task: bool = False) -> Need:
        """What terms need; with `task` the full view for the task's loss too, as the first."""
        known = list(terms)
        views = [view for term in known for view in term.views]
        ordered = dict.fromkeys([*(["full"] if task or "full" in views else []), *views])
        return cls(tuple(ordered), any(term.hidden for term in known), any(term.attentions for term in known))


class Glance(nn.Module):
    """A model's outputs under several views as one call, so that other parameters can be lent to it for the call."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, need: Need) -> dict[str, Outputs]:
        """View → outputs; draws of dropout come in the order of `need.views`."""
        return {
            view: self.model.outputs(batch, view, need.hidden and view == "full", need.attentions and view == "full")
            for view in need.views
        }

    def under(self, parameters: Mapping[str, Tensor], batch: Batch, need: Need) -> dict[str, Outputs]:
        """The same with other parameters of the model, by its own names."""
        lent = {f"model.{name}": tensor for name, tensor in parameters.items()}
        found: dict[str, Outputs] = functional_call(self, lent, (batch, need))
        return found
