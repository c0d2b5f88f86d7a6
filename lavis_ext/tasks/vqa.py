"""LAVIS' module name: the tasks of questions, under LAVIS' class names."""

from lavis_ext.tasks.answering import AokvqaTask as AOKVQATask
from lavis_ext.tasks.answering import GqaTask as GQATask
from lavis_ext.tasks.answering import VqaTask as VQATask

__all__ = ["AOKVQATask", "GQATask", "VQATask"]
