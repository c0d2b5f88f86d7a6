"""LAVIS' module name: the builders of its data sets of retrieval, under LAVIS' class names."""

from lavis_ext.datasets.builders import COCORetrievalBuilder, Flickr30kBuilder

__all__ = ["COCORetrievalBuilder", "Flickr30kBuilder"]
