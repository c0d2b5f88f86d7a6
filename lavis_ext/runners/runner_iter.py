"""LAVIS' module name: the runner that counts iterations, which is the same loop with `run.max_iters`."""

from lavis_ext.runners.runner_base import RunnerBase as RunnerIter

__all__ = ["RunnerIter"]
