"""LAVIS' module name: image–text pairs, under LAVIS' class names."""

from lavis_ext.datasets.builders.image_caption import CaptionDataset as ImageTextPairDataset

__all__ = ["ImageTextPairDataset"]
