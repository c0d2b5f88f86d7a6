"""Tasks: model + loss + metric. Read `base_task.py` first; keys are in `settings.py`, which imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis_ext.common.names import imported_on_use

if TYPE_CHECKING:
    from lavis_ext.tasks.base_task import BaseTask, setup_task
    from lavis_ext.tasks.captioning import CaptionTask
    from lavis_ext.tasks.image_text_pretrain import ImageTextPretrainTask
    from lavis_ext.tasks.multimodal_classification import MultimodalClassificationTask
    from lavis_ext.tasks.retrieval import RetrievalTask
    from lavis_ext.tasks.vqa import AOKVQATask, GQATask, VQATask

_HOME = {
    "AOKVQATask": "vqa",
    "BaseTask": "base_task",
    "CaptionTask": "captioning",
    "GQATask": "vqa",
    "ImageTextPretrainTask": "image_text_pretrain",
    "MultimodalClassificationTask": "multimodal_classification",
    "RetrievalTask": "retrieval",
    "VQATask": "vqa",
    "setup_task": "base_task",
}
__all__ = [
    "AOKVQATask",
    "BaseTask",
    "CaptionTask",
    "GQATask",
    "ImageTextPretrainTask",
    "MultimodalClassificationTask",
    "RetrievalTask",
    "VQATask",
    "setup_task",
]
__getattr__ = imported_on_use(__name__, _HOME)
