"""LAVIS' module name: the builders of its data sets of questions, under LAVIS' class names."""

from lavis_ext.datasets.builders import (
    AOKVQABuilder,
    AOKVQAInstructBuilder,
    COCOVQABuilder,
    COCOVQAInstructBuilder,
    GQABuilder,
    GQAInstructBuilder,
    OKVQABuilder,
    OKVQAInstructBuilder,
    VGVQABuilder,
    VGVQAInstructBuilder,
)

__all__ = [
    "AOKVQABuilder",
    "AOKVQAInstructBuilder",
    "COCOVQABuilder",
    "COCOVQAInstructBuilder",
    "GQABuilder",
    "GQAInstructBuilder",
    "OKVQABuilder",
    "OKVQAInstructBuilder",
    "VGVQABuilder",
    "VGVQAInstructBuilder",
]
