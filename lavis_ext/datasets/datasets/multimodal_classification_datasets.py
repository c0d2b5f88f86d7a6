"""LAVIS' module name: pictures with a sentence and a class, under LAVIS' class names."""

from lavis_ext.datasets.builders.labels import LabelDataset as MultimodalClassificationDataset

__all__ = ["MultimodalClassificationDataset"]
