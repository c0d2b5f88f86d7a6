"""The task `distill`: (1 − α)·L_task + α·Σ w·term around a wrapped task.

The teacher is fixed, or (`teacher_update`) follows its student by Reptile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lavis_ext.common.config.schema import RunConfig, own_keys
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.registry import objectives, tasks
from lavis_ext.common.types import Batch
from lavis_ext.datasets.collate import to_device
from lavis_ext.distill.cache import LogitCache
from lavis_ext.distill.reptile import TeacherUpdate
from lavis_ext.distill.settings import WHOLE, DistillConfig, DistillRunConfig, layer_pairs, section_of, section_problems
from lavis_ext.distill.teacher import (
    MultiView,
    OutputSpec,
    Partner,
    build_teacher,
    digest,
    distance,
    misfits,
    partners,
    start_student,
)
from lavis_ext.distill.terms import Common, Moment, Term
from lavis_ext.models.base_model import BaseModel, Outputs
from lavis_ext.tasks.base_task import BaseTask, Row

Terms = Mapping[str, tuple[float, Term]]
"""Name → weight and term."""


@dataclass(frozen=True)
class ActiveTerms:
    """The terms that count at one point of a run, and their share `alpha`; without either, the loss is the task's."""

    terms: Terms
    alpha: float
    progress: float
    silent: tuple[str, ...] = ()
    """Terms that do not count (any more)."""

    @classmethod
    def at(cls, terms: Terms, alpha: float, progress: float) -> ActiveTerms:
        """The terms that count after a share `progress` of the run."""
        active = {name: pair for name, pair in terms.items() if alpha and not pair[1].over(progress)}
        silent = tuple(name for name in terms if name not in active)
        return cls(active, alpha if active else 0.0, progress, silent)

    def need(self, task: bool) -> OutputSpec:
        """The outputs that the terms need; with `task` also those of the task's loss."""
        return OutputSpec.of((term for _, term in self.terms.values()), task)

    def loss(
        self, task: Tensor, student: Mapping[str, Outputs], teacher: Mapping[str, Outputs], moves: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(1 − α)·`task` + α·Σ w·term, and each term by itself; `moves` lets terms update their state."""
        if not self.terms:
            return task, {name: torch.zeros_like(task, requires_grad=False) for name in self.silent}
        moment = Moment(self.progress, moves)
        values = {name: term(student, teacher, moment) for name, (_, term) in self.terms.items()}
        total = torch.stack([weight * values[name] for name, (weight, _) in self.terms.items()]).sum()
        parts = {**values, **{name: torch.zeros_like(total, requires_grad=False) for name in self.silent}}
        return (1 - self.alpha) * task + self.alpha * total, parts


class PreviousBatch(NamedTuple):
    """The batch before this one, and the teacher's outputs for it (None after a resume: to be computed again)."""

    batch: Batch
    theirs: Mapping[str, Outputs] | None


@tasks.register("distill", config=DistillRunConfig)
class Distill(BaseTask):
    """`run.distill.task` with a teacher in its loss; it is evaluated by the student alone, as without one.

    A run that only evaluates reads no teacher. Where the teacher moves, each batch makes one inner step of the student,
    one step of the teacher towards it, and then the loss that the runner minimises, at the new teacher.
    """

    teacher: BaseModel

    def __init__(self, model: nn.Module, run: RunConfig, teacher: BaseModel | None = None) -> None:
        distill = section_of(run)
        if distill is None:
            raise ConfigError("run.distill", "is missing", "say `task` and `teacher` under it")
        if found := list(section_problems(run, getattr(getattr(model, "module", model), "config", None))):
            raise ConfigError.of(found)
        super().__init__(model, run)
        self.config: DistillConfig = distill
        plain = replace(run, task=distill.task, **dict[str, Any](distill=None))
        self.wrapped: BaseTask = tasks.get(self.config.task).from_config(plain, model)
        self.terms = build_terms(self.config)
        self.seen, self.total = 0, 1
        self.update: TeacherUpdate | None = None
        self.cache: LogitCache | None = None
        self.held: PreviousBatch | None = None
        self.measured: dict[str, float] = {}
        self.prepared = False
        if not run.evaluate:
            self._load_teacher(teacher)

    @property
    def evaluates(self) -> bool:  # type: ignore[override]
        """Whether the wrapped task does."""
        return self.wrapped.evaluates

    @property
    def counts_batches(self) -> bool:  # type: ignore[override]
        """Whether the teacher moves, or a term does."""
        moves = self.config.teacher_update != "none" or any(term.remembers for _, term in self.terms.values())
        return moves or self.wrapped.counts_batches

    def _load_teacher(self, given: BaseModel | None) -> None:
        """Build the teacher where none is given, check that it fits, and initialise the student from it where asked."""
        student: BaseModel = self.network
        if type(self.wrapped).step is not BaseTask.step:
            what = f"'{self.config.task}' has a training step of its own"
            raise ConfigError("run.distill.task", what, "teach a task whose loss is its model's")
        self.teacher = build_teacher(self.config, student.config) if given is None else given  # type: ignore[arg-type]
        problems = list(misfits(student, self.teacher, [term for _, term in self.terms.values()]))
        if problems:
            raise ConfigError.of(problems)
        start_student(student, self.teacher, self.config)
        self.partners = self._partners()
        self.digest = digest(self.teacher)
        self.own, self.other = MultiView(student), MultiView(self.teacher)

    def _partners(self) -> list[Partner]:
        """Partners under `strategy`; none for a fixed teacher of other sizes."""
        student, teacher = self.network, self.teacher
        try:
            depths = len(student.encoder_layers()), len(teacher.encoder_layers())
            return partners(student, teacher, layer_pairs(self.config.strategy, *depths))
        except ConfigError:
            if self.config.teacher_update != "none":
                raise
            return []

    def _prepare_teacher(self) -> None:
        """Once, when the student is on its device: move the teacher there, and make the buffers of its update."""
        if self.prepared:
            return
        self.prepared = True
        if any(hasattr(parameter, "full_tensor") for parameter in self.network.parameters()):
            self.partners = []
            if self.config.teacher_update != "none":
                raise ConfigError("run.parallel", WHOLE, "set parallel: ddp, or run.distill.teacher_update: none")
        self.teacher.to(self.network.device)
        if self.config.teacher_update != "none":
            self.update = TeacherUpdate(self.network, self.teacher, self.partners, self.run, self.config)

    def before_train(self, batches: Any, total: int) -> None:
        """Note the length of the run, open or fill the cache of logits, and call the wrapped task."""
        self._prepare_teacher()
        self.total = max(total, 1)
        if self.config.cache != "none":
            need = ActiveTerms.at(self.terms, 1.0, 0.0).need(task=False)
            self.cache = LogitCache.of(self.run, self.other, self.digest, need, batches) if need.views else None
        self.wrapped.before_train(batches, total)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, `loss_task`, `loss_<term>` (each before its weight), and measures of the teacher.

        Those are `teacher_loss` (its task loss on this batch, where its full view is computed), `teacher_distance`
        (from its student, over partners), and `teacher_moved` (from where it began, if it moves).
        """
        self._prepare_teacher()
        active = ActiveTerms.at(self.terms, self.config.alpha, min(self.seen / self.total, 1.0))
        mine = self.own(batch, active.need(task=True))
        found: dict[str, Tensor] = self.network.losses(mine["full"], batch)
        if self.update is not None:
            self._move(self.update, batch, mine, found["loss"], active)
        theirs = self._teach(batch, active)
        loss, parts = active.loss(found["loss"], mine, theirs, moves=True)
        if self.config.meta_batch == "next":
            self.held = PreviousBatch(batch, theirs)
        others = {name: value for name, value in found.items() if name != "loss"}
        losses = {"loss": loss, "loss_task": found["loss"], **{f"loss_{name}": part for name, part in parts.items()}}
        report = {**others, **losses, **self._measure(batch, theirs)}
        self.seen += 1
        return report

    def _teach(self, batch: Batch, active: ActiveTerms) -> Mapping[str, Outputs]:
        """The teacher's outputs for a batch, cached or computed; none where no term counts."""
        if not active.terms:
            return {}
        if self.cache is not None:
            return self.cache.outputs(batch, active.need(task=False).views)
        with torch.no_grad():
            found: dict[str, Outputs] = self.other(batch, active.need(task=False))
        return found

    def _move(
        self, update: TeacherUpdate, batch: Batch, mine: Mapping[str, Outputs], task: Tensor, active: ActiveTerms
    ) -> None:
        """The inner step and the teacher's step, on this batch or on the one before it (`meta_batch`).

        On this batch the first inner gradient uses the graph of the outer loss: both are at θ_s, under the same
        dropout, so the student's forward passes run once. Of the batch before, the teacher's outputs are kept.
        """
        refuse_half(task.device)
        if self.config.meta_batch == "next":
            if self.held is None:
                return
            batch, theirs = self.held.batch, self.held.theirs or self._teach(self.held.batch, active)
            mine = self.own(batch, active.need(task=True))
            task = self.network.losses(mine["full"], batch)["loss"]
        else:
            theirs = self._teach(batch, active)
        own = list(update.inner.mine.values())
        loss, _ = active.loss(task, mine, theirs, moves=False)
        first = torch.autograd.grad(loss, own, retain_graph=self.config.meta_batch == "same", allow_unused=True)

        def gradient(shadow: Mapping[str, Tensor]) -> Sequence[Tensor | None]:
            torch.clear_autocast_cache()  # it holds casts of the shadow from before its last step
            there = self.own.under(shadow, batch, active.need(task=True))
            ahead, _ = active.loss(self.network.losses(there["full"], batch)["loss"], there, theirs, moves=False)
            return torch.autograd.grad(ahead, list(shadow.values()), allow_unused=True)

        update.take(first, gradient, active.progress)

    @torch.no_grad()
    def _measure(self, batch: Batch, theirs: Mapping[str, Outputs]) -> dict[str, Tensor]:
        """The measures in `step`; distances are computed at the first batch after each line of the log."""
        if self.partners and self.seen % (max(self.run.log_freq, 1) * self.run.accum_grad_iters) == 0:
            mine, teachers = dict(self.network.named_parameters()), dict(self.teacher.named_parameters())
            pairs = [(teachers[pair.teacher], mine[pair.student]) for pair in self.partners]
            self.measured = {"teacher_distance": float(distance(*zip(*pairs, strict=True)))}
            if self.update is not None:
                self.measured["teacher_moved"] = float(self.update.way())
        found = {name: torch.tensor(value, device=self.network.device) for name, value in self.measured.items()}
        if self.cache is None and "full" in theirs:
            found["teacher_loss"] = self.teacher.losses(theirs["full"], batch)["loss"]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Batches seen, last measures, the teacher where it moves, and the state of the wrapped task."""
        state = {"seen": self.seen, "measured": self.measured, "digest": self.digest}
        state |= {"wrapped": self.wrapped.state_dict()}
        return state | ({} if self.update is None else {"update": self.update.state_dict()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it; raises IntegrityError where the run's teacher is not the one of the checkpoint."""
        if not state:
            return
        if state["digest"] != self.digest:
            what = "is not the teacher that the checkpoint was made with"
            raise IntegrityError("run.distill.teacher", what, "put it back, or start under another run.job_id")
        self._prepare_teacher()
        self.seen, self.measured = state["seen"], dict(state["measured"])
        self.wrapped.load_state_dict(state["wrapped"])
        if self.update is not None:
            self.update.load_state_dict(state["update"])

    def rank_state(self) -> dict[str, Any]:
        """The batch of the next inner step, and the terms' state of this rank's batches."""
        held = {} if self.held is None else to_device(self.held.batch, "cpu")
        terms = {name: state for name, (_, term) in self.terms.items() if (state := term.state_dict())}
        state = {"held": held, "terms": terms, "wrapped": self.wrapped.rank_state()}
        return {key: value for key, value in state.items() if value}

    def load_rank_state(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        for name, remembered in state.get("terms", {}).items():
            self.terms[name][1].load_state_dict(remembered)
        if "held" in state:
            self.held = PreviousBatch(to_device(state["held"], self.network.device), None)
        self.wrapped.load_rank_state(state.get("wrapped", {}))

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """The wrapped task's."""
        self.wrapped.model = self.model
        self.wrapped.before_evaluation(split, datasets)

    def valid_step(self, batch: Batch) -> list[Row]:
        """The wrapped task's."""
        self.wrapped.model = self.model
        return self.wrapped.valid_step(batch)

    def share(self, rows: Sequence[Row], split: str, datasets: Sequence[Any], rank: int, world: int) -> Any:
        """The wrapped task's."""
        return self.wrapped.share(rows, split, datasets, rank, world)

    def receive(self, parts: list[Any]) -> None:
        """For the wrapped task."""
        self.wrapped.receive(parts)

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """The wrapped task's."""
        return self.wrapped.after_evaluation(rows, split, datasets, out_dir, epoch)


def refuse_half(device: torch.device) -> None:
    """Raise ConfigError under fp16 autocast: the gradients of the inner step are not scaled."""
    kind = device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        what = "fp16 gradients of the inner step would vanish, nothing scales them"
        raise ConfigError("run.precision", what, "set precision: bf16 or no, or run.distill.teacher_update: none")


def build_terms(config: DistillConfig) -> dict[str, tuple[float, Term]]:
    """Name → weight and term, in the order of the run file; raises ConfigError for keys that do not fit."""
    common = Common(config.temperature, config.kd_weights)
    found: dict[str, tuple[float, Term]] = {}
    for term in config.terms:
        keys = own_keys(objectives, term.name, term.args, f"run.distill.terms {term.name}")
        made: Term = objectives.get(term.name)(common, keys)
        found[term.name] = (made.weight if term.weight is None else term.weight, made)
    return found
