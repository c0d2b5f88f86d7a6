"""LAVIS' module name: retrieval, under LAVIS' class names."""

from lavis_ext.datasets.builders.image_caption import CaptionDataset as RetrievalDataset
from lavis_ext.datasets.builders.image_text_retrieval import RetrievalEvalDataset

__all__ = ["RetrievalDataset", "RetrievalEvalDataset"]
