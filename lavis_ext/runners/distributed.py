"""Several processes: FSDP2, a resume under another number of processes, and work that rank 0 does first.

FSDP2 shards parameters over the ranks and unshards each block during its forward and backward. It is torch's
`fully_shard`, not accelerate's (1.15), which leaves ranks on CPUs unsharded and takes no scalar parameter
(docs/many-machines.md). Checkpoints hold full tensors, so that they load under any number of ranks, sharded or not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import ConfigError, LavisExtError, TrainingError
from lavis_ext.datasets.readers.faults import FaultLog
from lavis_ext.models.base_model import part_like, whole
from lavis_ext.runners.microbatch import StepModule
from lavis_ext.runners.schedule import RunLength

RESHARD, OFFLOAD, USED = "FSDP_RESHARD_AFTER_FORWARD", "FSDP_OFFLOAD_PARAMS", "ACCELERATE_USE_FSDP"


def wants_fsdp(run: RunConfig) -> bool:
    """Whether `run.parallel`, or where it is unset accelerate's configuration, says fsdp.

    Of accelerate's settings `FSDP_RESHARD_AFTER_FORWARD` is read too. Raises ConfigError for offloading to the CPU.
    """
    asked = os.environ.get(USED, "false").lower() in ("true", "1")
    if not (run.parallel == "fsdp" or (run.parallel is None and asked)):
        return False
    if asked and os.environ.get(OFFLOAD, "false").lower() == "true":
        raise ConfigError(f"accelerate {OFFLOAD}", "offloading parameters to the CPU is not offered", "set it to false")
    return True


def wrap(module: StepModule, run: RunConfig, accelerator: Accelerator) -> nn.Module:
    """The step on its device for one process, under DDP or FSDP for several."""
    if accelerator.num_processes > 1 and wants_fsdp(run):
        module.autocast = accelerator.autocast
        apply_fsdp(module, accelerator)
        return module
    wrapped: nn.Module = accelerator.prepare(module)
    return wrapped


def apply_fsdp(root: StepModule, accelerator: Accelerator) -> None:
    """Shard each block of all encoders and decoders by itself, and what is left with the root."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks(root):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshards())
    scalars = {parameter for parameter in root.parameters() if parameter.ndim == 0}  # fully_shard takes none
    fully_shard(root, mesh=mesh, ignored_params=scalars)
    for scalar in scalars:
        scalar.data = scalar.data.to(accelerator.device)
    root(None)  # the first module to run becomes the root, also where an evaluation comes before any step
    for module in fsdp_modules(root):
        module.reshard()


def reshards() -> bool:
    """Whether a block is sharded again after its forward (accelerate's setting): less memory, one more gather."""
    return os.environ.get(RESHARD, "true").lower() != "false"


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules that have parameters: the layers of transformers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (member for member in child if any(True for _ in member.parameters()))
        else:
            yield from blocks(child)


def fsdp_modules(module: nn.Module) -> list[FSDPModule]:
    """The modules that FSDP shards; empty without FSDP."""
    return [found for found in module.modules() if isinstance(found, FSDPModule)]


@contextmanager
def unsharded(root: nn.Module) -> Iterator[None]:
    """Every rank holds all parameters for the `with` block; without FSDP nothing happens.

    Forwards then need no collectives: ranks generate texts of different lengths, so they cannot keep in step.
    """
    modules = fsdp_modules(root)
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(id(module) != id(root) and reshards(), recurse=False)
            module.reshard()


def sync_unsharded_grads(root: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Average the gradients of parameters that FSDP does not shard (scalars) over the ranks, before the step.

    torch's foreach kernels refuse a list that mixes tensors and DTensors, so the optimizer then takes them one by one.
    """
    if not isinstance(root, FSDPModule):  # the root is sharded wherever a block is; a walk would cost 0.6 ms a step
        return
    scalars = [parameter for parameter in root.parameters() if parameter.requires_grad and not is_sharded(parameter)]
    for parameter in scalars:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    for group in optimizer.param_groups if scalars else ():
        group["foreach"] = False


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which this rank holds its shard."""
    return hasattr(tensor, "device_mesh")


def by_sharding(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those with a gradient: the sharded ones, and the others; an empty list is left out."""
    kinds: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for parameter in parameters:
        if parameter.grad is not None:
            kinds[not is_sharded(parameter)].append(parameter)
    return [kind for kind in kinds if kind]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients together, the same on every rank."""
    gradients = [[p.grad for p in kind if p.grad is not None] for kind in by_sharding(parameters)]
    norms = [whole(torch.nn.utils.get_total_norm(some)) for some in gradients or [[]]]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float, norm: float) -> None:
    """Scale all gradients, whose norm this is, down to a norm of at most `limit`."""
    for kind in by_sharding(parameters):
        torch.nn.utils.clip_grads_with_norm_(kind, limit, torch.tensor(norm))


def full_state_dict(tree: Any, keep: bool) -> Any:
    """A state dict (any nesting) with full tensors on the CPU where `keep`, empty ones elsewhere: a collective."""
    if isinstance(tree, Mapping):
        return {key: full_state_dict(value, keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [full_state_dict(value, keep) for value in tree]
    if not isinstance(tree, Tensor):
        return tree
    tensor = whole(tree.detach())
    return tensor.cpu() if keep else torch.empty(0)


def sharded_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict of full tensors with this rank's shards where its parameters are sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def shard(index: int, values: Mapping[str, Any]) -> dict[str, Any]:
        like = parameters[index]
        return {
            name: part_like(like, value) if isinstance(value, Tensor) and value.shape == like.shape else value
            for name, value in values.items()
        }

    groups = [
        {**saved, **({"foreach": own["foreach"]} if "foreach" in own else {})}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False)
    ]
    groups += state["param_groups"][len(groups) :]  # the optimizer itself refuses groups that do not fit
    return {
        **state,
        "param_groups": groups,
        "state": {index: shard(int(index), values) for index, values in state["state"].items()},
    }


# A resume under another number of processes takes the same samples in the same steps, on other ranks. The plan of the
# run (epochs, windows, learning rates) stays that of the processes that it was started with.

ACCUM = "run.accum_grad_iters"


@dataclass(frozen=True)
class ShardedSteps:
    """How the micro-batches that were planned for one number of ranks are divided over this run's ranks.

    The plan has `accum` micro-batches a step on each of `world` ranks. With fewer ranks than planned, each rank runs
    `parts_per_rank` micro-batches for each planned one, in turn; with more, `concurrent` planned ones run at once.
    """

    world: int
    accum: int
    parts_per_rank: int = 1
    concurrent: int = 1

    @property
    def changed(self) -> bool:
        """Whether the number of processes is not the one that the run was started with."""
        return self.parts_per_rank != 1 or self.concurrent != 1

    def taken(self, planned: int) -> int:
        """Micro-batches that a rank runs for so many planned ones."""
        return planned * self.parts_per_rank // self.concurrent

    def fingerprint(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config` to compare with a checkpoint's: where `changed`, with the accumulation of the first start."""
        return {**config, ACCUM: self.accum} if self.changed else dict(config)

    def as_dict(self) -> dict[str, int]:
        """`world` and `accum`, for the checkpoint."""
        return {key: value for key, value in asdict(self).items() if key in ("world", "accum")}


def find_layout(state: Mapping[str, Any], world: int, accum: int, where: str) -> ShardedSteps:
    """How the run of a checkpoint is divided over `world` processes that accumulate `accum` micro-batches.

    Raises ConfigError where the steps would not be the same: processes × accumulation differ, or neither number of
    processes divides the other.
    """
    saved = state.get("layout") or {"world": len(state["ranks"]), "accum": state["config"].get(ACCUM, accum)}
    begun = ShardedSteps(int(saved["world"]), int(saved["accum"]))
    if begun.world == world:
        return ShardedSteps(world, accum)
    per_step = begun.world * begun.accum
    if per_step == world * accum and begun.world % world == 0:
        return ShardedSteps(begun.world, begun.accum, parts_per_rank=begun.world // world)
    if per_step == world * accum and world % begun.world == 0:
        return ShardedSteps(begun.world, begun.accum, concurrent=world // begun.world)
    what = f"was made by {begun.world} processes × accum_grad_iters {begun.accum}, this run has {world} × {accum}"
    fits = per_step % world == 0 and (begun.world % world == 0 or world % begun.world == 0)
    other = f", or set run.accum_grad_iters={per_step // world}" if fits else ""
    raise ConfigError(where, what, f"start {begun.world}{other}")


def require_alike(model: Any, task: Any, layout: ShardedSteps, where: str) -> None:
    """Raise ConfigError for a model or a task whose numbers depend on how samples are cut into batches."""
    what = ""
    if getattr(model, "compares_samples", False):
        what = "the loss of this model compares the samples of a batch"
    elif getattr(task, "counts_batches", False):
        what = "the task keeps a state that every batch changes"
    if what:
        raise ConfigError(
            where, f"{what}, and another number of ranks has other batches", f"start {layout.world} processes"
        )


def require_windows(plan: RunLength, layout: ShardedSteps, where: str) -> None:
    """Raise ConfigError if a step of the plan, such as the last of an epoch, does not divide by `concurrent`."""
    last = plan.total % plan.per_epoch
    if plan.per_epoch % layout.concurrent or last % layout.concurrent:
        what = (
            f"the last step of an epoch ({plan.per_epoch} micro-batches) does not divide over {layout.concurrent} ranks"
        )
        raise ConfigError(where, what, f"start {layout.world} processes")


def remap_rank_state(ranks: Sequence[Mapping[str, Any]], rank: int, world: int, layout: ShardedSteps) -> dict[str, Any]:
    """A rank's state from those of the ranks of a checkpoint: `batches`, `task`, and `random`, a list.

    A rank that replaces several gets the generators of all of them and the sum of their faults; a new rank gets none.
    Raises ConfigError for a task that keeps a state per rank where the number of ranks changed.
    """
    if layout.changed and any(one.get("task") for one in ranks):
        raise ConfigError("resume", "the task keeps a state for each process", f"start {layout.world} processes")
    count = layout.parts_per_rank if len(ranks) == world * layout.parts_per_rank else 1
    mine = ranks[rank * count : (rank + 1) * count]
    faults = FaultLog()
    for one in mine:
        faults.add(one["batches"]["faults"])
    first = mine[0] if mine else ranks[0]
    batches = {**first["batches"], "faults": faults.state_dict()}
    return {"batches": batches, "task": first.get("task", {}), "random": [one["random"] for one in mine]}


# Rank 0 goes first. The others wait for it, with a time limit, and raise its error.

T = TypeVar("T")


def broadcast_from_main(accelerator: Accelerator, work: Callable[[], T], minutes: float) -> T:
    """Run `work` on rank 0 and return its result on all ranks; the result must be picklable.

    An error of `work` is raised on all ranks (on the others as TrainingError, unless it is a LavisExtError); a rank
    that has waited `minutes` raises TrainingError.
    """
    if accelerator.num_processes == 1:
        return work()
    if not accelerator.is_main_process:
        received: T = _receive(minutes)
        return received
    _group(minutes)  # before the work: making the group is a collective, and the others already wait in it
    try:
        result = work()
    except BaseException as error:
        with suppress(RuntimeError):  # a rank that is gone must not hide what went wrong here
            _send((None, as_picklable(error)), minutes)
        raise
    _send((result, None), minutes)
    return result


def main_first(accelerator: Accelerator, work: Callable[[], T], minutes: float) -> T:
    """Run `work` on each rank, on rank 0 before the others, so that they find the files that it made."""
    kept: list[T] = []

    def first() -> None:
        kept.append(work())

    broadcast_from_main(accelerator, first, minutes)
    return kept[0] if kept else work()


def as_picklable(error: BaseException) -> LavisExtError:
    """`error` if it is a LavisExtError, which can be pickled, else a TrainingError that describes it."""
    if isinstance(error, LavisExtError):
        return error
    return TrainingError("rank 0", f"failed with {type(error).__name__}: {error}", "see its own output")


_groups: dict[float, Any] = {}


def _group(minutes: float) -> Any:
    """A gloo group of all ranks with its own timeout, whatever backend the gradients use."""
    if minutes not in _groups:
        _groups[minutes] = dist.new_group(backend="gloo", timeout=timedelta(minutes=minutes))
    return _groups[minutes]


def _send(outcome: tuple[Any, LavisExtError | None], minutes: float) -> None:
    dist.broadcast_object_list([outcome], src=0, group=_group(minutes))


def _receive(minutes: float) -> Any:
    """The result of rank 0; raises its error, or TrainingError where a rank is gone or it does not answer in time."""
    box: list[Any] = [None]
    try:
        dist.broadcast_object_list(box, src=0, group=_group(minutes))
    except RuntimeError as error:
        if is_rank_gone():
            raise rank_gone() from error
        what = f"did not answer for {minutes:g} minutes"
        raise TrainingError("rank 0", what, "see its output, or raise run.wait_minutes") from error
    result, error_of_main = box[0]
    if error_of_main is not None:
        raise error_of_main
    return result


# A rank that is gone (killed, crashed, its machine lost) closes its connections: the collectives of the others fail.

CLOSING_S = 1.0
"""How long a connection may take to be seen as closed after a collective failed."""


@contextmanager
def lost_ranks(accelerator: Accelerator) -> Iterator[None]:
    """Raise TrainingError instead of the error that the end of another rank makes anywhere inside the block."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises a bare RuntimeError for a closed connection, as torch does for much else: ask the connections
        if accelerator.num_processes == 1 or not (isinstance(error, dist.DistError) or is_rank_gone()):
            raise
        raise rank_gone() from error


def is_rank_gone() -> bool:
    """Whether a connection of this rank to another is closed; False before the ranks have met in a group of ours."""
    group = next(iter(_groups.values()), None)
    others = [rank for rank in range(dist.get_world_size()) if rank != dist.get_rank()] if group else []
    until = time.monotonic() + CLOSING_S
    while others and time.monotonic() < until:
        for other in others:
            try:
                dist.irecv(torch.zeros(1), other, group=group)  # fails at once where the other end is closed
            except RuntimeError:
                return True
        time.sleep(CLOSING_S / 10)
    return False


def rank_gone() -> TrainingError:
    """The error of the ranks that are left."""
    return TrainingError("run", "another process of the run is gone", "see its output; the same command resumes")
