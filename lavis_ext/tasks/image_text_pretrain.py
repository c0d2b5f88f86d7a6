"""LAVIS' module name: the task of pre-training, under LAVIS' class names."""

from lavis_ext.tasks.classification import ImageTextPretrain as ImageTextPretrainTask

__all__ = ["ImageTextPretrainTask"]
