"""LAVIS' module name: Visual Genome's questions, under LAVIS' class names."""

from lavis_ext.datasets.builders.vqa import VqaDataset


class VGVQADataset(VqaDataset):
    """Questions with their answer."""

    card = "vg_vqa"


class VGVQAInstructDataset(VqaDataset):
    """Questions in instructions, with their answer."""

    card = "vg_vqa_instruct"


__all__ = ["VGVQADataset", "VGVQAInstructDataset"]
