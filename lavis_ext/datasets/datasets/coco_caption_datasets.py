"""LAVIS' module name: captions of COCO and nocaps, under LAVIS' class names."""

from lavis_ext.datasets.builders.image_caption import CaptionDataset as COCOCapDataset
from lavis_ext.datasets.builders.image_caption import CaptionEvalDataset as COCOCapEvalDataset
from lavis_ext.datasets.builders.image_caption import CaptionEvalDataset as NoCapsEvalDataset
from lavis_ext.datasets.datasets.caption_datasets import CaptionInstructDataset as COCOCapInstructDataset

__all__ = ["COCOCapDataset", "COCOCapEvalDataset", "COCOCapInstructDataset", "NoCapsEvalDataset"]
