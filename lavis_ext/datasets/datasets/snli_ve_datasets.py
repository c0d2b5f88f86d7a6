"""LAVIS' module name: SNLI-VE, under LAVIS' class names."""

from lavis_ext.datasets.builders.labels import LabelDataset


class SNLIVisualEntialmentDataset(LabelDataset):
    """A picture and a sentence with a class (the name is spelt as LAVIS spells it)."""

    card = "snli_ve"


SNLIVisualEntialmentEvalDataset = SNLIVisualEntialmentDataset


class SNLIVisualEntialmentInstructDataset(LabelDataset):
    """A sentence with a question about it, whose answer is the class."""

    card = "snli_ve_instruct"


__all__ = ["SNLIVisualEntialmentDataset", "SNLIVisualEntialmentEvalDataset", "SNLIVisualEntialmentInstructDataset"]
