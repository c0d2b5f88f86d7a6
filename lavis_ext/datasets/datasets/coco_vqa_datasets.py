"""LAVIS' module name: VQAv2 and OK-VQA, under LAVIS' class names."""

from lavis_ext.datasets.builders.vqa import VqaDataset, VqaEvalDataset


class COCOVQADataset(VqaDataset):
    """Questions with their answers."""

    card = "coco_vqa"


class COCOVQAEvalDataset(VqaEvalDataset):
    """Questions to be answered."""

    card = "coco_vqa"


class COCOVQAInstructDataset(VqaDataset):
    """Questions in instructions, with a drawn answer."""

    card = "coco_vqa_instruct"


__all__ = ["COCOVQADataset", "COCOVQAEvalDataset", "COCOVQAInstructDataset"]
