"""LAVIS' module name: captions, under LAVIS' class names."""

from lavis_ext.datasets.builders.image_caption import CaptionDataset, CaptionEvalDataset

__all__ = ["CaptionDataset", "CaptionEvalDataset"]
