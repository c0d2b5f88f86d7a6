"""LAVIS' module name: SNLI-VE, under LAVIS' class names."""

from lavis_ext.datasets.builders.labels import LabelDataset


class SNLIVisualEntialmentDataset(LabelDataset):
    """A picture and a sentence with a class (the name is spelt as LAVIS spells it)."""

    card = "snli_ve"


SNLIVisualEntialmentEvalDataset = SNLIVisualEntialmentDataset

__all__ = ["SNLIVisualEntialmentDataset", "SNLIVisualEntialmentEvalDataset"]
