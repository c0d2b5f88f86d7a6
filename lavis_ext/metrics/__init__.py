"""Metrics of captions and answers."""

from lavis_ext.metrics.scores import caption_scores
from lavis_ext.metrics.vqa import normalize_vqa_answer, vqa_score

__all__ = ["caption_scores", "normalize_vqa_answer", "vqa_score"]
