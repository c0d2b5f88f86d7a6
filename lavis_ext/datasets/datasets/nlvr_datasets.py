"""LAVIS' module name: NLVR2, under LAVIS' class names."""

from lavis_ext.datasets.builders.labels import PairDataset


class NLVRDataset(PairDataset):
    """Two pictures and a sentence about them."""

    card = "nlvr"


class NLVREvalDataset(NLVRDataset):
    """The same; pictures are swapped in the split `train` only."""


__all__ = ["NLVRDataset", "NLVREvalDataset"]
