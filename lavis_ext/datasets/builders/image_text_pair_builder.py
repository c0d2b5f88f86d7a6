"""LAVIS' module name: the builders of its data sets of image–text pairs, under LAVIS' class names."""

from lavis_ext.datasets.builders import (
    ConceptualCaption3MBuilder,
    ConceptualCaption3MInstructBuilder,
    ConceptualCaption12MBuilder,
    ConceptualCaption12MInstructBuilder,
    Laion2BMultiBuilder,
    Laion400MBuilder,
    Laion400MInstructBuilder,
    SBUCaptionBuilder,
    SBUCaptionInstructBuilder,
    VGCaptionBuilder,
    VGCaptionInstructBuilder,
)

__all__ = [
    "ConceptualCaption3MBuilder",
    "ConceptualCaption3MInstructBuilder",
    "ConceptualCaption12MBuilder",
    "ConceptualCaption12MInstructBuilder",
    "Laion2BMultiBuilder",
    "Laion400MBuilder",
    "Laion400MInstructBuilder",
    "SBUCaptionBuilder",
    "SBUCaptionInstructBuilder",
    "VGCaptionBuilder",
    "VGCaptionInstructBuilder",
]
