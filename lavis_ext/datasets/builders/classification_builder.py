"""LAVIS' module name: the builders of its data sets of classification, under LAVIS' class names."""

from lavis_ext.datasets.builders import (
    NLVRBuilder,
    SNLIVisualEntailmentBuilder,
    SNLIVisualEntailmentInstructBuilder,
)

__all__ = [
    "NLVRBuilder",
    "SNLIVisualEntailmentBuilder",
    "SNLIVisualEntailmentInstructBuilder",
]
