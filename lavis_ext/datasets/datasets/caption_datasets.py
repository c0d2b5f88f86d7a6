"""LAVIS' module name: captions, under LAVIS' class names."""

from lavis_ext.datasets.builders.image_caption import CaptionDataset, CaptionEvalDataset


class CaptionInstructDataset(CaptionDataset):
    """Captions to learn after an instruction."""

    card = "coco_caption_instruct"


__all__ = ["CaptionDataset", "CaptionEvalDataset", "CaptionInstructDataset"]
