"""LAVIS' module name: the builders of its data sets of image–text pairs, under LAVIS' class names."""

from lavis_ext.datasets.builders import (
    ConceptualCaption3MBuilder,
    ConceptualCaption12MBuilder,
    Laion2BMultiBuilder,
    Laion400MBuilder,
    SBUCaptionBuilder,
    VGCaptionBuilder,
)

__all__ = [
    "ConceptualCaption3MBuilder",
    "ConceptualCaption12MBuilder",
    "Laion2BMultiBuilder",
    "Laion400MBuilder",
    "SBUCaptionBuilder",
    "VGCaptionBuilder",
]
