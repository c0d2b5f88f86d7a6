"""distill: any task, learnt from a teacher as well; the teacher may stand still, or move towards its student."""

from lavis_ext.tasks.distill.mapping import layer_pairs
from lavis_ext.tasks.distill.task import Distill

__all__ = ["Distill", "layer_pairs"]
