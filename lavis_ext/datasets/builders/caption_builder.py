"""LAVIS' module name: the builders of its data sets of captions, under LAVIS' class names."""

from lavis_ext.datasets.builders import COCOCapBuilder, Flickr30kCapBuilder, NoCapsBuilder

__all__ = ["COCOCapBuilder", "Flickr30kCapBuilder", "NoCapsBuilder"]
