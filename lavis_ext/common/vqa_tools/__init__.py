"""LAVIS' folder name: VQA's official files of questions and annotations, and their evaluation, for scripts."""

from lavis_ext.common.vqa_tools.vqa import VQA
from lavis_ext.common.vqa_tools.vqa_eval import VQAEval

__all__ = ["VQA", "VQAEval"]
