"""LAVIS' module name: the task of classes, under LAVIS' class names."""

from lavis_ext.tasks.classification import MultimodalClassification as MultimodalClassificationTask

__all__ = ["MultimodalClassificationTask"]
