"""LAVIS' module name: the builders of its data sets of captions, under LAVIS' class names."""

from lavis_ext.datasets.builders import (
    COCOCapBuilder,
    COCOCapInstructBuilder,
    Flickr30kCapBuilder,
    Flickr30kCapInstructBuilder,
    NoCapsBuilder,
)

__all__ = [
    "COCOCapBuilder",
    "COCOCapInstructBuilder",
    "Flickr30kCapBuilder",
    "Flickr30kCapInstructBuilder",
    "NoCapsBuilder",
]
