"""Losses as functions of features and logits: those of BLIP-2's first stage, and those of distillation."""

from lavis_ext.objectives.blip2 import (
    IGNORED,
    NONE,
    SMOOTHING,
    contrast_targets,
    contrastive_loss,
    draw_negatives,
    language_loss,
    matching_loss,
    similarities,
)
from lavis_ext.objectives.terms import Common, Moment, Term, Views

__all__ = ["IGNORED", "NONE", "SMOOTHING", "Common", "Moment", "Term", "Views", "contrast_targets", "contrastive_loss"]
__all__ += ["draw_negatives", "language_loss", "matching_loss", "similarities"]
