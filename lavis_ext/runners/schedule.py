"""Learning rates, the length of a run, and its optimizer. Rates are pure functions of the position in the run, so that
nothing is advanced or saved."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import lr_schedulers
from lavis_ext.models.base_model import BaseModel


@dataclass(frozen=True)
class Position:
    """A position in a run: (inner) epoch and micro-batch in it, counted from 0, and how many of both there are."""

    epoch: int
    batch: int
    batches_per_epoch: int
    max_epoch: int
    length: int | None = None
    """Micro-batches of the whole run; None: whole epochs."""

    @property
    def total(self) -> int:
        """Micro-batches of the whole run."""
        return self.max_epoch * self.batches_per_epoch if self.length is None else self.length

    @property
    def seen(self) -> int:
        """Micro-batches since the start of the run."""
        return self.epoch * self.batches_per_epoch + self.batch

    @property
    def elapsed(self) -> float:
        """Epochs since the start of the run, with their fraction."""
        return self.seen / max(self.batches_per_epoch, 1)


Schedule = Callable[[Position], float]


def warmup(run: RunConfig, batch: int) -> float:
    """`min(init_lr, warmup_lr + (init_lr - warmup_lr) * batch / warmup_steps)`; LAVIS counts micro-batches."""
    start = run.init_lr if run.warmup_lr < 0 else run.warmup_lr
    return min(run.init_lr, start + (run.init_lr - start) * batch / max(run.warmup_steps, 1))


def after_warmup(run: RunConfig, decayed: Callable[[float], float]) -> Schedule:
    """A schedule that warms up and then follows `decayed(epochs elapsed)`.

    `run.lr_granularity` "epoch" is LAVIS' rule: the whole of (inner) epoch 0 belongs to the warm-up, even where
    `warmup_steps` is longer or shorter than it, and the rate changes once an epoch. "iter" warms up for exactly
    `warmup_steps` micro-batches and then moves with every micro-batch.
    """

    def by_epoch(at: Position) -> float:
        return warmup(run, at.batch) if at.epoch == 0 else decayed(at.epoch)

    def by_batch(at: Position) -> float:
        return warmup(run, at.seen) if at.seen < run.warmup_steps else decayed(at.elapsed)

    return by_batch if run.lr_granularity == "iter" else by_epoch


@lr_schedulers.register("linear_warmup_cosine_lr")
def linear_warmup_cosine(run: RunConfig, max_epoch: int) -> Schedule:
    """`(init_lr - min_lr) * 0.5 * (1 + cos(pi * e / max_epoch)) + min_lr` after the warm-up, as LAVIS."""

    def decayed(epoch: float) -> float:
        return (run.init_lr - run.min_lr) * 0.5 * (1 + math.cos(math.pi * epoch / max_epoch)) + run.min_lr

    return after_warmup(run, decayed)


@lr_schedulers.register("linear_warmup_linear_lr")
def linear_warmup_linear(run: RunConfig, max_epoch: int) -> Schedule:
    """Oscar's: up to `init_lr` over `warmup_steps` micro-batches, then straight down to `min_lr` at the run's end.

    It moves with every optimizer step, whatever `run.lr_granularity` says; each has the rate of its first micro-batch.
    Oscar's warm-up starts at 0, which is `warmup_lr: 0`. The first step has the rate of position 0: upstream advanced
    its schedule before the optimizer.
    """

    def rate(at: Position) -> float:
        begun = at.seen - at.batch % run.accum_grad_iters
        if begun < run.warmup_steps:
            return warmup(run, begun)
        left = (at.total - begun) / max(at.total - run.warmup_steps, 1)
        return run.min_lr + (run.init_lr - run.min_lr) * max(left, 0.0)

    return rate


@lr_schedulers.register("linear_warmup_step_lr")
def linear_warmup_step(run: RunConfig, max_epoch: int) -> Schedule:
    """`max(min_lr, init_lr * lr_decay_rate ** e)` after the warm-up; raises ConfigError without `lr_decay_rate`."""
    if run.lr_decay_rate is None:
        raise ConfigError("run.lr_decay_rate", "linear_warmup_step_lr needs it", "set e.g. 0.9")
    rate = run.lr_decay_rate

    def decayed(epoch: float) -> float:
        return max(run.min_lr, run.init_lr * math.pow(rate, epoch))

    return after_warmup(run, decayed)


@lr_schedulers.register("constant_lr")
def constant(run: RunConfig, max_epoch: int) -> Schedule:
    """`init_lr` after the warm-up."""

    def decayed(epoch: float) -> float:
        return run.init_lr

    return after_warmup(run, decayed)


def stepped(run: RunConfig, max_epoch: int) -> Schedule:
    """The schedule of a registered class in LAVIS' form, asked through an optimizer of one group.

    Its rate must follow from epoch and step alone: nothing of it is in a checkpoint.
    """
    group = {"lr": run.init_lr}
    scheduler = lr_schedulers.get(run.lr_sched)(
        optimizer=SimpleNamespace(param_groups=[group]),
        max_epoch=max_epoch,
        min_lr=run.min_lr,
        init_lr=run.init_lr,
        decay_rate=run.lr_decay_rate,
        warmup_start_lr=run.warmup_lr,
        warmup_steps=run.warmup_steps,
    )

    def rate(at: Position) -> float:
        scheduler.step(cur_epoch=at.epoch, cur_step=at.batch)
        return float(group["lr"])

    return rate


@dataclass(frozen=True)
class RunLength:
    """The length of a run in micro-batches.

    `total` micro-batches in (inner) epochs of `per_epoch`; the last epoch is shorter where it does not divide. An
    optimizer step takes `window` micro-batches; the last window of an epoch holds what is left of it, and its losses
    are averaged over that many, so that no gradient is carried into the next epoch or left unused.
    """

    per_epoch: int
    total: int
    window: int = 1

    @classmethod
    def of(cls, run: RunConfig, batches: int) -> RunLength:
        """The length of a run whose data hold `batches` batches an epoch on this rank; raises ConfigError."""
        if batches < 1:
            raise ConfigError(
                "datasets", "the training splits hold no batch", "add samples or lower run.batch_size_train"
            )
        if run.accum_grad_iters < 1:
            raise ConfigError("run.accum_grad_iters", f"is {run.accum_grad_iters}", "give at least 1")
        per_epoch = run.iters_per_inner_epoch or batches
        total = run.max_iters if run.max_iters is not None else (run.max_epoch or 0) * per_epoch
        if total < 1 or per_epoch < 1:
            raise ConfigError("run", "does not say how long to train", "set run.max_epoch, or run.max_iters")
        return cls(per_epoch, total, run.accum_grad_iters)

    @property
    def epochs(self) -> int:
        """(Inner) epochs, the last one perhaps shorter."""
        return -(-self.total // self.per_epoch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return (self.epochs - 1) * -(-self.per_epoch // self.window) + -(-self.length(self.epochs - 1) // self.window)

    @property
    def max_epoch(self) -> int:
        """The number that LAVIS' schedules divide by: whole epochs, at least 1."""
        return max(self.total // self.per_epoch, 1)

    def length(self, epoch: int) -> int:
        """Micro-batches of one epoch."""
        return min(self.per_epoch, self.total - epoch * self.per_epoch)

    def next_window(self, progress: RunProgress) -> int:
        """Micro-batches of the next optimizer step; 0 at the end of an epoch."""
        return min(self.window, self.length(progress.epoch) - progress.batch)

    def position(self, progress: RunProgress) -> Position:
        """The position for the learning rate: the last micro-batch that was seen."""
        return Position(progress.epoch, max(progress.batch - 1, 0), self.per_epoch, self.max_epoch, self.total)


@dataclass
class RunProgress:
    """Progress of a run: `step` optimizer steps in all, `batch` micro-batches of `epoch`, and its best evaluation."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    samples: int = 0
    skipped: int = 0
    """Steps that the fp16 loss scaler left out because of an overflow."""
    best: dict[str, Any] = field(default_factory=dict)
    """`metric`, `step`, `epoch` and `split` of the best evaluation; empty before the first."""

    def next_epoch(self) -> RunProgress:
        """The same run at the start of the next epoch."""
        return replace(self, epoch=self.epoch + 1, batch=0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


# Parameter groups and their share of the learning rate.

BLOCK = re.compile(r"\b(?:vision_model|visual_encoder|visual)\..*\b(?:layers|blocks)\.(\d+)\.")
EMBEDDING = re.compile(r"\b(?:vision_model|visual_encoder|visual)\..*(?:embed|cls_token)")


def layer_scales(names: list[str], decay: float, above: int = 1) -> dict[str, float]:
    """Share of the learning rate of each parameter: `decay ** (depth + 1 - layer)` in the image encoder, 1 elsewhere.

    Layer 0 is the embeddings, n+1 the n-th block of `depth` (the rule of BEiT, EVA and LAVIS). `above` 0 is the rule of
    earlier versions, where the top block had share 1.
    """
    layers = {name: int(found[1]) + 1 for name in names if (found := BLOCK.search(name))}
    layers |= {name: 0 for name in names if name not in layers and EMBEDDING.search(name)}
    depth = max(layers.values(), default=0)
    return {name: decay ** (depth + above - layers[name]) if name in layers else 1.0 for name in names}


def parameter_groups(model: BaseModel, run: RunConfig, above: int = 1) -> list[dict[str, Any]]:
    """`model.optimizer_params` with each group split by the parameters' share of the learning rate (`lr_scale`).

    With `above` 0 those of earlier versions, in which the scalars of `decayed` were among the others without decay.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = layer_scales(list(names.values()), run.lr_layer_decay, above)
    wholes = model.optimizer_params(run.weight_decay)
    if above == 0 and model.decayed:
        scalars = [p for whole in wholes for p in whole["params"] if names[id(p)] in model.decayed]
        wholes = [whole for whole in wholes if whole["params"] != scalars]
        mixed = {id(parameter) for parameter in [*wholes[-1]["params"], *scalars]}
        wholes[-1]["params"] = [parameter for parameter in model.parameters() if id(parameter) in mixed]
    groups: list[dict[str, Any]] = []
    for whole in wholes:
        parts: dict[float, dict[str, Any]] = {}
        for parameter in whole["params"]:
            scale = scales[names[id(parameter)]]
            parts.setdefault(scale, {**whole, "params": [], "lr_scale": scale})["params"].append(parameter)
        groups += parts.values()
    return groups


def regrouped(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, model: BaseModel, run: RunConfig) -> Any:
    """An optimizer's state in the groups of `optimizer`; one of an earlier version keeps its rates and decays."""
    sizes = [len(group["params"]) for group in state["param_groups"]]
    earlier = parameter_groups(model, run, above=0)
    own = [group["params"] for group in optimizer.param_groups]
    if sizes == [len(params) for params in own] or sizes != [len(group["params"]) for group in earlier]:
        return state  # as it is; where it is of another model, the optimizer refuses it
    saved = [group for group in state["param_groups"] for _ in group["params"]]
    place = {id(parameter): number for number, parameter in enumerate(p for g in earlier for p in g["params"])}
    old = [place[id(parameter)] for params in own for parameter in params]
    starts = [sum(map(len, own[:number])) for number in range(len(own))]
    groups = [
        {**saved[old[start]], "params": list(range(start, start + len(params)))}
        for start, params in zip(starts, own, strict=True)
    ]
    values = {new: state["state"][was] for new, was in enumerate(old) if was in state["state"]}
    return {**state, "state": values, "param_groups": groups}


def build_optimizer(model: BaseModel, run: RunConfig) -> torch.optim.Optimizer:
    """`run.optimizer` with betas (0.9, beta2) over `parameter_groups`.

    Adamax adds the weight decay to the gradient, AdamW subtracts it from the weight; Oscar used both that way. Raises
    ConfigError if nothing is trainable, or for a number that the optimizer does not take.
    """
    model.require_trainable()
    kind = {"adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}[run.optimizer]
    settings: dict[str, Any] = {"lr": run.init_lr, "betas": (0.9, run.beta2), "eps": run.adam_epsilon}
    try:
        optimizer: torch.optim.Optimizer = kind(parameter_groups(model, run), **settings)
    except ValueError as error:
        raise ConfigError(f"run.optimizer {run.optimizer}", str(error), "change that number") from error
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group to its `lr_scale` × `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
