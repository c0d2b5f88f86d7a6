"""LAVIS' module name: GQA, under LAVIS' class names."""

from lavis_ext.datasets.builders.vqa import VqaDataset, VqaEvalDataset


class GQADataset(VqaDataset):
    """Questions with their answer."""

    card = "gqa"


class GQAEvalDataset(VqaEvalDataset):
    """Questions to be answered."""

    card = "gqa"


class GQAInstructDataset(VqaDataset):
    """Questions in instructions, with their answer."""

    card = "gqa_instruct"


__all__ = ["GQADataset", "GQAEvalDataset", "GQAInstructDataset"]
