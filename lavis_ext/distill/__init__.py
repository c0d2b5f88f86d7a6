"""Distillation: the task `distill` adds a teacher's terms to any task; the teacher is fixed, or follows its student."""
