"""Parameters shared out over the ranks (torch's FSDP2): each keeps its part, and has a layer whole while it runs.

Accelerate's own FSDP is for GPUs alone; the same torch calls serve gloo on CPUs. Checkpoints hold whole tensors, so
that they load under any number of ranks, shared out or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lavis_ext.errors import ConfigError
from lavis_ext.models.ranks import part_like, whole
from lavis_ext.runner.steps import StepModule
from lavis_ext.schema import RunConfig

RESHARD, OFFLOAD, USED = "FSDP_RESHARD_AFTER_FORWARD", "FSDP_OFFLOAD_PARAMS", "ACCELERATE_USE_FSDP"


def wants_shards(run: RunConfig) -> bool:
    """Whether `run.parallel`, or where it is silent accelerate's configuration, says fsdp; raises ConfigError for more.

    Of accelerate's settings `FSDP_RESHARD_AFTER_FORWARD` counts too; what it would leave on the CPU is not offered.
    """
    told = os.environ.get(USED, "false").lower() in ("true", "1")
    if not (run.parallel == "fsdp" or (run.parallel is None and told)):
        return False
    if told and os.environ.get(OFFLOAD, "false").lower() == "true":
        raise ConfigError(f"accelerate {OFFLOAD}", "parameters on the CPU are not offered", "set it to false")
    return True


def wrap(module: StepModule, run: RunConfig, accelerator: Accelerator) -> nn.Module:
    """The step on its device for one process, under DDP for several, or shared out under FSDP."""
    if accelerator.num_processes > 1 and wants_shards(run):
        module.autocast = accelerator.autocast
        share_out(module, accelerator)
        return module
    wrapped: nn.Module = accelerator.prepare(module)
    return wrapped


def share_out(root: StepModule, accelerator: Accelerator) -> None:
    """Share out the blocks of all encoders and decoders one by one, and what is left with the root."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    reshard = os.environ.get(RESHARD, "true").lower() != "false"
    for block in blocks(root):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    scalars = {parameter for parameter in root.parameters() if parameter.ndim == 0}  # no rank can have a part of one
    fully_shard(root, mesh=mesh, ignored_params=scalars)
    for scalar in scalars:
        scalar.data = scalar.data.to(accelerator.device)
    root(None)  # the first module to run becomes the root, also where an evaluation comes before any step
    for part in shared_parts(root):
        part.reshard()


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules that have parameters: the layers of transformers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (member for member in child if any(True for _ in member.parameters()))
        else:
            yield from blocks(child)


def shared_parts(module: nn.Module) -> list[FSDPModule]:
    """All that was shared out by itself; empty without FSDP."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@contextmanager
def made_whole(root: nn.Module) -> Iterator[None]:
    """Every rank holds all parameters for the block, so that ranks may run the model apart: generation ends anywhere.

    Without FSDP nothing happens.
    """
    parts = shared_parts(root)
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(id(part) != id(root), recurse=False)
            part.reshard()


def settle(root: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Average the gradients of what every rank holds whole beside shared parts, before the optimizer moves.

    Such a parameter and a shared one do not go into one call of torch's, so the optimizer takes them one by one.
    """
    if not shared_parts(root):
        return
    alone = [parameter for parameter in root.parameters() if parameter.requires_grad and not is_part(parameter)]
    for parameter in alone:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    for group in optimizer.param_groups if alone else ():
        group["foreach"] = False


def is_part(tensor: Tensor) -> bool:
    """Whether each rank holds but a part of it."""
    return hasattr(tensor, "device_mesh")


def by_kind(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those with a gradient: the shared ones, and the others; an empty list is left out."""
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [[p for p in with_gradient if is_part(p) is kind] for kind in (True, False)]
    return [kind for kind in kinds if kind]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients together, whole on every rank."""
    gradients = [[p.grad for p in kind if p.grad is not None] for kind in by_kind(parameters)]
    norms = [whole(torch.nn.utils.get_total_norm(some)) for some in gradients or [[]]]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float, norm: float) -> None:
    """Scale all gradients, whose norm this is, down to a norm of at most `limit`."""
    for kind in by_kind(parameters):
        torch.nn.utils.clip_grads_with_norm_(kind, limit, torch.tensor(norm))


def whole_tree(tree: Any, keep: bool) -> Any:
    """A state dict with every tensor whole and on the CPU; only where `keep`, elsewhere empty. All ranks must ask."""
    if isinstance(tree, Mapping):
        return {key: whole_tree(value, keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [whole_tree(value, keep) for value in tree]
    if not isinstance(tree, Tensor):
        return tree
    tensor = whole(tree.detach())
    return tensor.cpu() if keep else torch.empty(0)


def parted_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state of whole tensors with this rank's parts where its parameters are shared out."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def parted(index: int, values: Mapping[str, Any]) -> dict[str, Any]:
        like = parameters[index]
        return {
            name: part_like(like, value) if isinstance(value, Tensor) and value.shape == like.shape else value
            for name, value in values.items()
        }

    groups = [
        {**saved, **({"foreach": own["foreach"]} if "foreach" in own else {})}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False)
    ]
    groups += state["param_groups"][len(groups) :]  # what does not fit is the optimizer's to refuse
    return {
        **state,
        "param_groups": groups,
        "state": {index: parted(int(index), values) for index, values in state["state"].items()},
    }
