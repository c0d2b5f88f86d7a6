"""distill: any task, learnt from a teacher as well; the teacher may stand still, or move towards its student."""
