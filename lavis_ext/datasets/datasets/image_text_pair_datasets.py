"""LAVIS' module name: image–text pairs, under LAVIS' class names."""

from lavis_ext.datasets.builders.image_caption import CaptionDataset as ImageTextPairDataset
from lavis_ext.datasets.datasets.caption_datasets import CaptionInstructDataset as ImageTextPairInstructDataset

__all__ = ["ImageTextPairDataset", "ImageTextPairInstructDataset"]
