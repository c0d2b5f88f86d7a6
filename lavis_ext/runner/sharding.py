"""FSDP2: parameters are sharded over the ranks; each block is unsharded during its forward and backward.

By torch's `fully_shard`, not by accelerate (1.15), which leaves ranks on CPUs unsharded and takes no scalar parameter
(docs/blip2.md). Checkpoints hold full tensors, so that they load under any number of ranks, sharded or not.
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


def wants_fsdp(run: RunConfig) -> bool:
    """Whether `run.parallel`, or where it is silent accelerate's configuration, says fsdp; raises ConfigError for more.

    Of accelerate's settings `FSDP_RESHARD_AFTER_FORWARD` counts too; offloading to the CPU is not offered.
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
    """All that is sharded by itself; empty without FSDP."""
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
    """Average the gradients of parameters that FSDP left alone (scalars) over the ranks, before the optimizer moves.

    torch's foreach kernels refuse a list of tensors and DTensors, so the optimizer then takes parameters one by one.
    """
    if not fsdp_modules(root):
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
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [[p for p in with_gradient if is_sharded(p) is kind] for kind in (True, False)]
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
    groups += state["param_groups"][len(groups) :]  # what does not fit is the optimizer's to refuse
    return {
        **state,
        "param_groups": groups,
        "state": {index: shard(int(index), values) for index, values in state["state"].items()},
    }
