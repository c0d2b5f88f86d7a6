"""A run that goes on under another number of processes: the same samples in the same steps, on other ranks.

The plan of a run (epochs, windows, learning rates) stays that of the processes that it was begun with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lavis_ext.errors import ConfigError
from lavis_ext.readers.faults import FaultLog
from lavis_ext.runner.plan import Plan

ACCUM = "run.accum_grad_iters"


@dataclass(frozen=True)
class Layout:
    """How planned micro-batches lie on this run's ranks.

    Planned are `accum` a step on each of `world` ranks. A rank takes `split` of them where fewer ranks go on, one after
    the other; of `joint` planned ones it takes one where more do.
    """

    world: int
    accum: int
    split: int = 1
    joint: int = 1

    @property
    def changed(self) -> bool:
        """Whether the processes are not those that the run was begun with."""
        return self.split != 1 or self.joint != 1

    def taken(self, planned: int) -> int:
        """Micro-batches that a rank takes for so many planned ones."""
        return planned * self.split // self.joint

    def fingerprint(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration's, with the accumulation of the run that was begun where the processes are others."""
        return {**config, ACCUM: self.accum} if self.changed else dict(config)

    def as_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {key: value for key, value in asdict(self).items() if key in ("world", "accum")}


def find_layout(state: Mapping[str, Any], world: int, accum: int, where: str) -> Layout:
    """How the run of a checkpoint lies on `world` processes that accumulate `accum` micro-batches.

    Raises ConfigError where their steps would not be the same: processes × accumulation differ, or neither number of
    processes divides the other.
    """
    was = state.get("layout") or {"world": len(state["ranks"]), "accum": state["config"].get(ACCUM, accum)}
    begun = Layout(int(was["world"]), int(was["accum"]))
    if begun.world == world:
        return Layout(world, accum)
    summed = begun.world * begun.accum
    if summed == world * accum and begun.world % world == 0:
        return Layout(begun.world, begun.accum, split=begun.world // world)
    if summed == world * accum and world % begun.world == 0:
        return Layout(begun.world, begun.accum, joint=world // begun.world)
    what = f"was made by {begun.world} processes × accum_grad_iters {begun.accum}, this run has {world} × {accum}"
    fits = summed % world == 0 and (begun.world % world == 0 or world % begun.world == 0)
    other = f", or set run.accum_grad_iters={summed // world}" if fits else ""
    raise ConfigError(where, what, f"start {begun.world}{other}")


def require_alike(model: Any, task: Any, layout: Layout, where: str) -> None:
    """Raise ConfigError for a model or a task whose numbers depend on how samples are cut into batches."""
    what = ""
    if getattr(model, "compares_samples", False):
        what = "the loss of this model compares the samples of a batch"
    elif getattr(task, "counts_batches", False):
        what = "something beside the optimizer moves with every batch"
    if what:
        raise ConfigError(where, f"{what}, which other ranks would cut anew", f"start {layout.world} processes")


def require_windows(plan: Plan, layout: Layout, where: str) -> None:
    """Raise ConfigError if a step of the plan, such as the last of an epoch, cannot be taken by `joint` at once."""
    last = plan.total % plan.per_epoch
    if plan.per_epoch % layout.joint or last % layout.joint:
        what = f"an epoch of {plan.per_epoch} micro-batches ends in a step that {layout.joint} ranks cannot share"
        raise ConfigError(where, what, f"start {layout.world} processes")


def remap_rank_state(ranks: Sequence[Mapping[str, Any]], rank: int, world: int, layout: Layout) -> dict[str, Any]:
    """A rank's state from those of the ranks of a checkpoint: `batches`, `task`, and `random`, a list.

    A rank that replaces several has the generators of all, and the sum of their faults; one that is new has none.
    Raises ConfigError for a task that keeps something for each rank where the ranks are others.
    """
    if layout.changed and any(one.get("task") for one in ranks):
        raise ConfigError("resume", "the task keeps a state for each process", f"start {layout.world} processes")
    count = layout.split if len(ranks) == world * layout.split else 1
    mine = ranks[rank * count : (rank + 1) * count]
    faults = FaultLog()
    for one in mine:
        faults.add(one["batches"]["faults"])
    first = mine[0] if mine else ranks[0]
    batches = {**first["batches"], "faults": faults.state_dict()}
    return {"batches": batches, "task": first.get("task", {}), "random": [one["random"] for one in mine]}
