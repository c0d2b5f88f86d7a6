"""The base of models: frozen parts stay frozen, checkpoints hold trained tensors only; gathering rows over ranks."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor, nn

from lavis_ext.common.config.decode import ConfigDecoder, read_yaml
from lavis_ext.common.config.resolve import cache_root, model_files
from lavis_ext.common.config.schema import ModelConfig, OpenModelConfig
from lavis_ext.common.errors import ConfigError, IntegrityError, nearest
from lavis_ext.common.names import imported_on_use
from lavis_ext.common.registry import models
from lavis_ext.common.types import Batch
from lavis_ext.common.utils import find_yaml, is_url

log = logging.getLogger(__name__)
NO_DECAY = ("bias", "ln", "bn", "LayerNorm")
LISTED = 5


@dataclass(frozen=True)
class Outputs:
    """What one forward pass yields for a loss or for distillation; a pair of images counts as 2 sequences.

    N rows of B inputs: N = B for a classifier, the tokens to predict for a language model. S tokens of width H.
    """

    logits: Tensor
    """[N, C]"""
    hidden: tuple[Tensor, ...] | None = None
    """[B, S, H] of the embeddings, then of each layer."""
    attentions: tuple[Tensor, ...] | None = None
    """[B, heads, S, S] of each layer: q·k / √d, before the mask and the softmax."""
    mask: Tensor | None = None
    """bool [B, S]: the tokens that the view lets attention see."""
    valid: Tensor | None = None
    """bool [N]: whether the row has at least one token under the view; None: all have."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Logits of further heads, by name."""


class ModelResult(dict[str, Any]):
    """What a model gives, by name or as attributes: `result["loss"]`, `result.loss`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the model gives no '{name}', but {', '.join(self)}") from None


class LoadedKeys(NamedTuple):
    """Names that a checkpoint lacks, and names of it that the model does not have (LAVIS' return value)."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class ModelTypes:
    """LAVIS' `PRETRAINED_MODEL_CONFIG_DICT` of a class of ours: type → the YAML below a configs folder."""

    def __get__(self, model: Any, kind: type) -> dict[str, str]:
        files = model_files()
        return {name: str(path) for arch in names_of(kind) for name, path in files.get(arch, {}).items()}


def names_of(kind: type) -> list[str]:
    """The names under which a class of models is registered."""
    return [name for name, held in models._items.items() if held is kind]


def takes_nodes(make: Any) -> Any:
    """`from_config` that takes the section of a YAML too (a node or a mapping), as LAVIS' does."""

    @wraps(make)
    def from_config(cls: Any, config: Any) -> Any:
        if not isinstance(config, Mapping) or cls.Keys is OpenModelConfig:
            return make(cls, config)
        tree = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else dict(config)
        decoder = ConfigDecoder()
        section = decoder.build(ModelConfig, {"arch": next(iter(names_of(cls)), cls.__name__), **tree}, "model")  # type: ignore[dict-item]
        decoder.close()
        return make(cls, section)

    return from_config


class BaseModel(nn.Module):
    """A network with LAVIS' interface; parts given to `freeze` get no gradient and stay in eval mode.

    A class in LAVIS' manner has its own `PRETRAINED_MODEL_CONFIG_DICT` (type → YAML) and `from_config(cfg)`, which gets
    its section as a node; it declares no keys, and any key is passed on.
    """

    PRETRAINED_MODEL_CONFIG_DICT: Any = ModelTypes()

    Keys: ClassVar[type[ModelConfig]] = ModelConfig
    views: tuple[str, ...] = ("full",)
    """The views that `outputs` accepts; `ModelConfig.views` of the class of keys says the same."""

    decayed: ClassVar[frozenset[str]] = frozenset()
    """Names of scalars that have weight decay nevertheless."""
    compares_samples: bool = False
    """Whether the loss of a sample depends on others of its batch and of other ranks, as a contrastive loss does."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Keys" not in vars(cls):
            cls.Keys = models.inherited(cls) or cls.Keys
            if "PRETRAINED_MODEL_CONFIG_DICT" in vars(cls) and cls.Keys is ModelConfig:
                cls.Keys = OpenModelConfig
        if isinstance(own := vars(cls).get("from_config"), classmethod):
            cls.from_config = classmethod(takes_nodes(own.__func__))  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, whose dict has attributes too."""
        output = super().__call__(*args, **kwargs)
        return ModelResult(output) if type(output) is dict else output

    @classmethod
    def default_config_path(cls, model_type: str) -> str:
        """The YAML of a type; raises ConfigError with the nearest names."""
        types = cls.PRETRAINED_MODEL_CONFIG_DICT
        if model_type not in types:
            raise ConfigError(cls.__name__, f"has no type '{model_type}'", nearest(model_type, types))
        return find_yaml(types[model_type])

    @classmethod
    def from_pretrained(cls, model_type: str) -> BaseModel:
        """The model of a type's YAML (LAVIS' method); raises ConfigError with the nearest names."""
        from lavis_ext.models.zoo import build_model, default_config, warn_if_random

        path = cls.default_config_path(model_type)
        if names := [arch for arch in names_of(cls) if model_type in cls.PRETRAINED_MODEL_CONFIG_DICT]:
            arch = next((one for one in names if model_type in model_files().get(one, {})), names[0])
            config = default_config(arch, model_type)
            warn_if_random(config)
            return build_model(config)
        return cls.from_config(OmegaConf.create(read_yaml(Path(path))[0]["model"]))

    def load_checkpoint(self, url_or_filename: str) -> LoadedKeys:
        """Load trained weights, ours, LAVIS' or VPGTrans', over this model; frozen parts may be absent.

        Raises IntegrityError for what does not fit, where LAVIS leaves it out in silence, and UnsafeError for a pickle
        of more than tensors.
        """
        from lavis_ext.models.weights import load_over, read_checkpoint

        key, path = "checkpoint", local_file(url_or_filename)
        if hasattr(self, "net"):
            load_over(self, path, key)
            return LoadedKeys([], [])
        state = self.own_names(read_checkpoint(path, key), f"{key} {path}")
        self.load_trainable_state(state)
        return LoadedKeys(sorted(set(self._persistent()) - set(state)), [])

    def load_from_pretrained(self, url_or_filename: str, **kwargs: Any) -> LoadedKeys:
        """Load the tensors of a checkpoint that this model has too, as a start: Q-Former and tower of the first stage.

        The names that were not loaded are returned and logged. Raises IntegrityError where no name or a shape differs.
        """
        from lavis_ext.models.weights import read_checkpoint, translate_for

        key, path = "load_from_pretrained", local_file(url_or_filename)
        state, mine = read_checkpoint(path, key), self._persistent()
        if hasattr(self, "net"):
            state = translate_for(self, state, f"{key} {path}")
        else:
            state = self.own_names(state, f"{key} {path}")
        shared = {name: tensor for name, tensor in state.items() if name in mine}
        if not shared:
            what = f"has no name of this {type(self).__name__}: {listed(state)}"
            raise IntegrityError(f"{key} {path}", what, "name a checkpoint of this architecture")
        fit(f"{key} {path}", {name: mine[name] for name in shared}, shared)
        left = LoadedKeys(sorted(set(mine) - set(shared)), sorted(set(state) - set(shared)))
        log.info("%s: %d tensors; not in it: %s", path, len(shared), listed(left.missing_keys))
        return left

    def own_names(self, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """A checkpoint of a model without `net`: tied tensors once, under their first name.

        Raises IntegrityError for copies that differ.
        """
        from lavis_ext.models.weights import without_copies

        return without_copies(self, state, where)

    def load_checkpoint_from_config(self, cfg: Any, **kwargs: Any) -> None:
        """`finetuned` with `load_finetuned` (which is on unless it is given), else `pretrained`, as in LAVIS."""
        key = "finetuned" if cfg.get("load_finetuned", True) else "pretrained"
        if key == "pretrained" and not cfg.get("load_pretrained", True):
            return
        if not (path := cfg.get(key)):
            raise ConfigError(f"model.{key}", "is missing", f"name a checkpoint, or set model.load_{key}: False")
        self.load_checkpoint(path) if key == "finetuned" else self.load_from_pretrained(path, **kwargs)

    def before_training(self, **kwargs: Any) -> None:
        """LAVIS' call before the first step, with `dataset` and `task_type`."""

    def before_evaluation(self, **kwargs: Any) -> None:
        """LAVIS' call before the first evaluation step of a split, with `dataset` and `task_type`."""

    def get_optimizer_params(self, weight_decay: float, lr_scale: float = 1) -> list[dict[str, Any]]:
        """LAVIS' parameter groups; one that a subclass defines is what the run's optimizer gets."""
        return [{**group, "lr_scale": lr_scale} for group in self._groups(weight_decay)]

    def show_n_params(self, return_str: bool = True) -> str | int:
        """How many parameters there are: 1234567 → "1.2M", or the number."""
        count = sum(parameter.numel() for parameter in self.parameters())
        if not return_str:
            return count
        return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.1f}K"

    @classmethod
    def from_config(cls, config: Any) -> BaseModel:
        """The model of a config (of the class `Keys`); raises ConfigError for settings that cannot be built."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """A batch → named scalars; `loss` is the one to minimise."""
        return self.losses(self.outputs(batch), batch)

    def outputs(self, batch: Batch, view: str = "full", hidden: bool = False, attentions: bool = False) -> Outputs:
        """One forward pass under the mask of a view; hidden states and attention scores where they are asked for.

        Raises ConfigError unless a subclass defines it; distillation needs this, `losses` and `encoder_layers`.
        """
        raise self._not_distillable()

    def outputs_by_view(
        self, batch: Batch, views: Iterable[str], hidden: Collection[str] = (), attentions: Collection[str] = ()
    ) -> dict[str, Outputs]:
        """View → its `outputs`, in this order, which decides their dropout; `hidden` and `attentions` name views."""
        return {view: self.outputs(batch, view, view in hidden, view in attentions) for view in views}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The losses of a full view against the targets of its batch; `loss` is the one to minimise."""
        raise self._not_distillable()

    def encoder_layers(self) -> nn.ModuleList:
        """The layers that distillation maps to those of another model, the lowest first."""
        raise self._not_distillable()

    def _not_distillable(self) -> ConfigError:
        return ConfigError("model.arch", f"a {type(self).__name__} cannot be distilled", "name one that can, as oscar")

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def freeze(self, part: nn.Module | nn.Parameter) -> None:
        """Exclude a part from training: no gradients, and eval mode even after `.train()`."""
        part.requires_grad_(False)
        if isinstance(part, nn.Module):
            self._frozen.append(part.eval())

    def train(self, mode: bool = True) -> BaseModel:
        """As in torch, but frozen parts stay in eval mode (no dropout, no statistics)."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def frozen_names(self) -> set[str]:
        """Names of the parameters that take no gradient, and of the buffers of frozen parts."""
        inside = {id(buffer) for part in self._frozen for buffer in part.buffers()}
        names = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return names | {name for name, buffer in self.named_buffers() if id(buffer) in inside}

    def trainable_state(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint: persistent ones except the frozen; tied tensors under their first name."""
        frozen = self.frozen_names()
        return {name: tensor for name, tensor in self._persistent().items() if name not in frozen}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a checkpoint's tensors; frozen names may be absent.

        Raises IntegrityError with the names for anything else that is missing, unknown or of another shape; then no
        tensor is changed.
        """
        mine = self._persistent()
        fit(
            "checkpoint", {name: mine[name] for name in mine if name in state or name not in self.frozen_names()}, state
        )

    def load_part(self, state: Mapping[str, Tensor], prefixes: tuple[str, ...], where: str) -> None:
        """Load the tensors under `prefixes`; `state` may hold others too, a missing one raises IntegrityError."""
        part = {name: tensor for name, tensor in self._persistent().items() if name.startswith(prefixes)}
        fit(where, part, {name: state[name] for name in part if name in state})

    def _persistent(self) -> dict[str, Tensor]:
        saved = self.state_dict(keep_vars=True)
        buffers = {name: buffer for name, buffer in self.named_buffers() if name in saved}
        return {**dict(self.named_parameters()), **buffers}

    def optimizer_params(self, weight_decay: float) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer: those of `get_optimizer_params` where a subclass defines it."""
        own = type(self).get_optimizer_params is not BaseModel.get_optimizer_params
        return self.get_optimizer_params(weight_decay) if own else self._groups(weight_decay)

    def _groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups as LAVIS has them: no decay for vectors and for names with bias, ln, bn or LayerNorm.

        The scalars of `decayed` have a group of their own before the others without decay.
        """
        decayed: list[nn.Parameter] = []
        scalars: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                bare = parameter.ndim < 2 or any(word in name for word in NO_DECAY)
                (scalars if name in self.decayed else plain if bare else decayed).append(parameter)
        rates = ((decayed, weight_decay), (scalars, weight_decay), (plain, 0.0))
        groups: list[dict[str, Any]] = [{"params": params, "weight_decay": rate} for params, rate in rates]
        return [group for group in groups if group["params"]]

    def require_trainable(self) -> None:
        """Raise ConfigError if no parameter is trainable."""
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError("model", "every part is frozen", "unfreeze one, or set run.evaluate: True")


def local_file(name: str) -> str:
    """A checkpoint's path; one that an address names is fetched below the cache root, once."""
    if not is_url(str(name)):
        return str(name)
    from lavis_ext.models.weights import fetched

    return str(fetched(str(name), "checkpoint", cache_root()))


def fit(where: str, mine: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy `state` into tensors of the same names and shapes.

    Raises IntegrityError, and changes nothing, if names or shapes differ or a value is not finite.
    """
    shared = set(mine) & set(state)
    wrong = [f"{n} {list(state[n].shape)} for {list(mine[n].shape)}" for n in shared if state[n].shape != mine[n].shape]
    faults: list[tuple[str, Collection[str]]] = [
        ("missing", set(mine) - shared),
        ("unexpected", set(state) - shared),
        ("of another shape", wrong),
    ]
    found = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in faults if names)
    if found:
        raise IntegrityError(where, found, "load it into the architecture, sizes and freezing that it was saved from")
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        what = f"{len(broken)} tensors are not finite: {listed(broken)}"
        raise IntegrityError(where, what, "use an earlier checkpoint, from before the loss became nan or inf")
    with torch.no_grad():
        for name, tensor in state.items():
            mine[name].copy_(part_like(mine[name], tensor))


def listed(names: Iterable[str]) -> str:
    """The first names, sorted, and how many more there are, for a message."""
    known = sorted(names)
    more = f" … and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return ", ".join(known[:LISTED]) + more


def world() -> tuple[int, int]:
    """Rank and number of processes; 0 of 1 where nothing is distributed."""
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)


def sum_over_ranks(count: Tensor) -> Tensor:
    """The sum of a tensor without gradient over all ranks: a collective."""
    total = count.detach().clone()
    if world()[1] > 1:
        dist.all_reduce(total)
    return total


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a DTensor, a collective; any other tensor unchanged."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def part_like(like: Tensor, tensor: Tensor) -> Tensor:
    """This rank's shard of a full tensor where `like` is a DTensor, on its device and in its dtype; else unchanged."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(device=like.device, dtype=like.dtype)
    placed: Any = like
    return distribute_tensor(moved, placed.device_mesh, placed.placements, src_data_rank=None)


def gather_rows(rows: Tensor) -> Tensor:
    """[n, …] of each rank → [Σn, …] in the order of ranks, on every rank; n may differ.

    The gradient of a row, summed over all ranks, goes back to the rank that it came from.
    """
    if world()[1] == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def all_gather_with_grad(tensors: Tensor) -> Tensor:
    """`gather_rows` under LAVIS' name."""
    return gather_rows(tensors)


@torch.no_grad()
def concat_all_gather(tensor: Tensor) -> Tensor:
    """Rows of all ranks without a gradient (LAVIS' function)."""
    return gather_rows(tensor.detach())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, count = world()
        sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(count)]
        dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
        lengths = [int(size) for size in sizes]
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(count)]
        dist.all_gather(parts, padded)
        ctx.span = (sum(lengths[:rank]), sum(lengths[: rank + 1]))
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[slice(*ctx.span)]


# LAVIS has these here; nothing of ours needs them
_MORE = ("BaseEncoder", "MomentumDistilationMixin", "SharedQueueMixin", "tile")
__getattr__ = imported_on_use("lavis_ext.models", dict.fromkeys(_MORE, "mixins"))
