"""LAVIS' module name: A-OKVQA, under LAVIS' class names."""

from lavis_ext.datasets.builders.vqa import VqaDataset, VqaEvalDataset


class AOKVQADataset(VqaDataset):
    """Questions with their direct answers."""

    card = "aok_vqa"


class AOKVQAEvalDataset(VqaEvalDataset):
    """Questions to be answered, with their choices."""

    card = "aok_vqa"


class AOKVQAInstructDataset(VqaDataset):
    """Questions in instructions, with a drawn answer."""

    card = "aok_vqa_instruct"


__all__ = ["AOKVQADataset", "AOKVQAEvalDataset", "AOKVQAInstructDataset"]
