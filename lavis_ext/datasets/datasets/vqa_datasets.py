"""LAVIS' module name: questions, under LAVIS' class names."""

from lavis_ext.datasets.builders.vqa import VqaDataset as VQADataset
from lavis_ext.datasets.builders.vqa import VqaEvalDataset as VQAEvalDataset

__all__ = ["VQADataset", "VQAEvalDataset"]
