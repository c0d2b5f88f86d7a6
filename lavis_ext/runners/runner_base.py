"""The training loop, for epochs and iterations, CPU and GPU, one rank and many; everything around a step is a hook."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from lavis_ext.common.config.schema import OpenModelConfig, RunConfig
from lavis_ext.common.dist_utils import get_world_size
from lavis_ext.common.errors import ConfigError, Preempted, TrainingError
from lavis_ext.common.files import decode_json, expanded
from lavis_ext.common.registry import registry, runners
from lavis_ext.common.types import Batch
from lavis_ext.common.utils import now
from lavis_ext.datasets.collate import to_device
from lavis_ext.runners import checkpoint
from lavis_ext.runners.checkpoint import random_state, restore_random_state
from lavis_ext.runners.display import closing_lines
from lavis_ext.runners.distributed import (
    ShardedSteps,
    broadcast_from_main,
    clip_gradients,
    find_layout,
    full_state_dict,
    gradient_norm,
    remap_rank_state,
    require_alike,
    require_windows,
    sharded_state,
    sync_unsharded_grads,
    unsharded,
    wrap,
)
from lavis_ext.runners.evaluation import EvaluationStopped, Evaluator
from lavis_ext.runners.files import write_json
from lavis_ext.runners.microbatch import (
    MicroBatch,
    Step,
    StepModule,
    batch_size,
    cycle,
    losses_of,
    memory_errors,
    no_stop,
    nonfinite_ids,
    oom_hint,
    sample_ids,
)
from lavis_ext.runners.schedule import RunLength, RunProgress, build_optimizer, regrouped
from lavis_ext.tasks.base_task import require_called

log = logging.getLogger(__name__)
MAX_SKIPPED = 25
UNUSED = ("train_epoch", "eval_epoch", "create_loaders", "_save_checkpoint", "_load_checkpoint", "_reload_best_model")
"""Methods of LAVIS' runners that have another shape here."""


class Hook:
    """Methods that the runner calls; each does nothing unless overridden. `after_train` comes after an error too."""

    name = ""
    """Key of its state in a checkpoint; "" if it has none."""

    def before_train(self, runner: RunnerBase) -> None:
        """Once, after a resume and before the first step."""

    def before_step(self, runner: RunnerBase) -> None:
        """Gradients are computed and finite; the optimizer steps next."""

    def after_step(self, runner: RunnerBase, step: Step) -> None:
        """After the optimizer's step."""

    def after_epoch(self, runner: RunnerBase) -> None:
        """After all batches of an (inner) epoch; `runner.progress` is still at its end."""

    def after_evaluation(self, runner: RunnerBase, split: str, label: str, metrics: dict[str, Any]) -> None:
        """A split was evaluated under `label`, an epoch or "best"."""

    def after_train(self, runner: RunnerBase) -> None:
        """At the end, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """State that an exact resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


@runners.register("runner_iter")
@runners.register("runner_base")
class RunnerBase:
    """Trains `task` on `batches`: an epoch is `len(batches)` micro-batches, or `iters_per_inner_epoch` of them.

    A run file's runner is made by `of`. `RunnerBase(cfg, task, model, datasets, job_id)` is LAVIS' form for scripts:
    `train()` then makes the rest, in the folder `output_dir`, and goes on where a run of that job stopped.
    """

    def __init__(self, cfg: Any, task: Any, model: Any, datasets: Any, job_id: str | None = None) -> None:
        """`cfg` is a `Config(args)`, `datasets` {data set: {split: rows}}, as `task.build_datasets(cfg)` gives."""
        self.refuse_unused()
        require_called(task)
        self.config, self.task, self.model, self.datasets = cfg, task, model, datasets
        self.job_id = job_id or now()
        self.batches: Any = None
        self.output_dir = expanded(Path(cfg.run_cfg.get("output_dir", "output"))).absolute() / self.job_id
        self.note_folders(self.output_dir)

    @classmethod
    def of(
        cls,
        run: RunConfig,
        task: Any,
        batches: Any,
        evaluator: Evaluator,
        hooks: Sequence[Hook],
        accelerator: Accelerator,
    ) -> RunnerBase:
        """A runner of parts that are made already, in the folder of `evaluator`."""
        runner = cls.__new__(cls)
        runner.refuse_unused()
        runner.assemble(run, task, batches, evaluator, hooks, accelerator)
        return runner

    def refuse_unused(self) -> None:
        """Raise ConfigError for a subclass with methods of LAVIS' loop, which would never be called."""
        if own := [name for name in UNUSED if hasattr(type(self), name)]:
            what = f"{type(self).__name__} defines {own[0]}, which this loop does not call"
            raise ConfigError("run.runner", what, "override run_epoch, run_step or evaluate_split, or write a hook")

    def assemble(
        self,
        run: RunConfig,
        task: Any,
        batches: Any,
        evaluator: Evaluator,
        hooks: Sequence[Hook],
        accelerator: Accelerator,
    ) -> None:
        """Take the parts of the run, and make the optimizer."""
        self.run, self.task, self.batches, self.evaluator, self.hooks = run, task, batches, evaluator, tuple(hooks)
        self.accelerator, self.job_dir, self.model = accelerator, evaluator.job_dir, task.model
        self.plan = RunLength.of(run, len(batches))
        self.layout = ShardedSteps(accelerator.num_processes, run.accum_grad_iters)
        self.generators: list[Any] = []
        self.progress = RunProgress()
        self.wrapped = wrap(StepModule(task), run, accelerator)
        self.optimizer = build_optimizer(self.model, run)
        # accelerate's wrapper sees where fp16 skips a step; without, its searches for packages cost 1 ms a step
        self.stepper: Any = self.optimizer if accelerator.scaler is None else accelerator.prepare(self.optimizer)
        self.rate, self.is_best, self.overflows = 0.0, False, 0
        self.saved_at, self.in_place = -1, False
        self.settings: dict[str, Any] = {}
        """The values that decide the numbers of the run, flat; a checkpoint keeps them."""
        self.beside: dict[str, Any] = {}
        self.stop_requested: Callable[[], int] = no_stop
        self.epoch_of_task: Callable[[RunnerBase], None] | None = None
        """Runs an epoch where the task has a loop of its own."""
        self.feed: Iterator[Batch] = cycle(batches)
        # models and tasks in LAVIS' manner find the position in their samples
        self.counted = getattr(task, "lavis", False) or getattr(self.model, "Keys", None) is OpenModelConfig
        self.at = 0
        self.output_dir = self.job_dir
        self.note_folders(self.job_dir)

    def __getattr__(self, name: str) -> Any:
        """LAVIS' attributes that are keys of `run:`; what `train()` makes is not there before it."""
        if name == "run" and "config" in self.__dict__:
            return self.config.typed().run
        key = {"evaluate_only": "evaluate"}.get(name, name)
        known = RunConfig.__dataclass_fields__.keys() - {"optimizer"}  # the key is its name, the attribute the thing
        if key not in known or not {"run", "config"} & set(self.__dict__):
            raise AttributeError(f"a {type(self).__name__} has no '{name}' before its train()")
        return getattr(self.run, key)

    def note_folders(self, folder: Path) -> None:
        """Register the paths that LAVIS' tasks ask for; `result` is made with the first result."""
        self.result_dir = folder / "result"
        registry.paths.update(output_dir=str(folder), result_dir=str(self.result_dir))

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self.model.device

    @property
    def cuda_enabled(self) -> bool:
        """Whether the model is on a CUDA device."""
        return bool(self.device.type == "cuda")

    @property
    def use_distributed(self) -> bool:
        """Whether a launcher started several processes."""
        return get_world_size() > 1

    def unwrap_dist_model(self, model: Any) -> Any:
        """The model without the wrapper of a distributed run (LAVIS' method)."""
        return getattr(model, "module", model)

    @property
    def dataloaders(self) -> dict[str, Any]:
        """Split → batches of the run (LAVIS' attribute); before `train()` batches like those that it will make."""
        if self.batches is not None:
            return {"train": self.batches, **self.evaluator.feeds}
        found: dict[str, Any] = import_module("lavis_ext.runners.run").feeds_of(self)
        return found

    @property
    def train_loader(self) -> Any:
        """The batches of training."""
        return self.dataloaders["train"]

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return bool(self.accelerator.is_main_process)

    def train(self) -> None:
        """From `progress` to the end of the plan."""
        if self.batches is None:
            scripts: Any = import_module("lavis_ext.runners.run")
            start = scripts.evaluate if self.config.run_cfg.get("evaluate") else scripts.train
            for line in closing_lines(start(scripts.file_of(self), None, self)):
                log.info("%s", line)
            return
        try:
            self.notify("before_train")
            self.task.before_train(self.batches, self.plan.total)
            while self.progress.epoch < self.plan.epochs:
                self.run_epoch()
                self.notify("after_epoch")
                self.progress = self.progress.next_epoch()
            self.check_faults()
            self.test()
        finally:
            self.close()

    def run_epoch(self) -> None:
        """All steps that are left of this epoch."""
        self.task.model.train()
        if self.epoch_of_task is not None:
            self.epoch_of_task(self)
            return
        while size := self.plan.next_window(self.progress):
            step = self.run_step(size)
            self.notify("after_step", step)
            if step.stop:
                self.save_and_stop(step.stop)

    def run_step(self, size: int) -> Step:
        """`size` planned micro-batches, one optimizer step; weights change only if losses and gradient are finite."""
        started, taken = perf_counter(), self.layout.taken(size)
        with memory_errors(f"step {self.progress.step}", oom_hint(self.run)):
            window = [self.microbatch_step(taken, index) for index in range(taken)]
        self.progress.batch += size
        step = self.reduce_and_check(window, started)
        self.notify("before_step")
        if self.run.clip_grad_norm is not None:
            clip_gradients(self.trained(), self.run.clip_grad_norm, step.norm)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.samples += step.samples
        self._count_skipped()
        return step

    def microbatch_step(self, size: int, index: int) -> MicroBatch:
        """Micro-batch `index` of the `size` of a step, under the random state of the rank that it was planned for."""
        self.at = self.progress.batch + index
        if not self.generators:
            return self.backward(size, last=index == size - 1)
        place = index % len(self.generators)
        restore_random_state(self.generators[place])
        taken = self.backward(size, last=index == size - 1)
        self.generators[place] = random_state()
        return taken

    def backward(self, size: int, last: bool) -> MicroBatch:
        """Add the gradient of one micro-batch, divided by `size`; ranks reduce gradients at the last one only."""
        asked = perf_counter()
        batch = next(self.feed)
        waited = perf_counter() - asked
        batch = to_device(batch, self.accelerator.device, self.batches.normalizer)
        if self.counted:
            batch |= {"epoch": self.progress.epoch, "num_iters_per_epoch": self.plan.per_epoch, "iters": self.at}
        with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
            losses = self.wrapped(batch)
            loss = losses["loss"] if size == 1 else losses["loss"] / size
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return MicroBatch(sample_ids(batch), batch_size(batch), losses, waited)

    def reduce_and_check(self, window: Sequence[MicroBatch], started: float) -> Step:
        """Move the numbers of the step to the host in one reduction over ranks; raises TrainingError if not finite."""
        names, values = losses_of(window)
        self.accelerator.unscale_gradients()
        sync_unsharded_grads(self.wrapped, self.optimizer)
        norm = gradient_norm(self.trained())
        asked = self.stop_requested()
        counts = values.new_tensor([sum(part.samples for part in window), float(asked > 0)])
        mine = torch.cat([values.mean(0), counts, norm.detach().float().reshape(1).to(values.device)])
        *means, samples, stop, total_norm = (float(x) for x in self.reduced(mine).tolist())
        if not all(map(math.isfinite, means)) or not (math.isfinite(total_norm) or self.scaler):
            self.raise_nonfinite(window, values.tolist(), dict(zip(names, means, strict=True)), total_norm)
        return Step(
            losses=dict(zip(names, means, strict=True)),
            norm=total_norm,
            samples=round(samples * self.accelerator.num_processes),
            wait_s=sum(part.wait_s for part in window),
            spent_s=perf_counter() - started,
            stop=asked or (signal.SIGTERM if stop else 0),
        )

    def reduced(self, numbers: Tensor) -> Tensor:
        """The mean over ranks."""
        if self.accelerator.num_processes == 1:
            return numbers
        averaged: Tensor = self.accelerator.reduce(numbers, reduction="mean")
        return averaged

    @property
    def scaler(self) -> Any:
        """The fp16 loss scaler; None in other precisions."""
        return self.accelerator.scaler

    def trained(self) -> list[nn.Parameter]:
        """The parameters of the optimizer."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def raise_nonfinite(
        self, window: Sequence[MicroBatch], rows: list[list[float]], losses: dict[str, float], norm: float
    ) -> NoReturn:
        """Drop the gradient, write `nonfinite.json` and raise TrainingError with the ids of all ranks' samples."""
        self.stepper.zero_grad(set_to_none=True)
        of_loss = not all(map(math.isfinite, losses.values()))
        ids: list[str] = gather_object(nonfinite_ids(window, rows, blame_all=not of_loss))
        if self.is_main:
            shown = {name: str(value) for name, value in losses.items()}
            write_json(
                self.job_dir / "nonfinite.json",
                {"step": self.progress.step, "losses": shown, "norm": str(norm), "ids": ids},
            )
        what = "a loss" if of_loss else "the gradient"
        named = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        way_out = f"see {self.job_dir / 'nonfinite.json'}; lower run.init_lr or leave them out; no weight was changed"
        raise TrainingError(f"step {self.progress.step}", f"{what} is not finite; samples: {named}", way_out)

    def _count_skipped(self) -> None:
        if self.scaler is None or not self.stepper.step_was_skipped:
            self.overflows = 0
            return
        self.progress.skipped += 1
        self.overflows += 1
        if self.overflows >= MAX_SKIPPED:
            raise TrainingError(
                f"step {self.progress.step}", f"fp16 gradients overflow {MAX_SKIPPED} times in a row", "use bf16"
            )

    def evaluate(self, cur_epoch: int | str = "best", skip_reload: bool = False) -> dict[str, Any]:
        """{split: metrics} of `test_splits`, else `valid_splits`, with the weights that the model has (LAVIS' method).

        Of a runner that a script made; with `skip_reload` False the best weights of its folder are loaded first, if it
        has any.
        """
        if not skip_reload and cur_epoch == "best" and (folder := checkpoint.pointed(self.output_dir, "best")):
            self.model.load_trainable_state(checkpoint.load(folder).model)
        scripts: Any = import_module("lavis_ext.runners.run")
        job = scripts.evaluate(scripts.file_of(self, evaluate=True), None, self)
        for line in closing_lines(job):
            log.info("%s", line)
        found: dict[str, Any] = decode_json((job / "evaluate.json").read_text(encoding="utf-8"))
        return found

    def evaluate_split(self, split: str, label: str) -> dict[str, Any]:
        """Metrics of a split with the present weights; a signal ends the evaluation and the run.

        With several ranks the signal is handled at the next step instead, where all ranks learn of it.
        """
        alone = self.accelerator.num_processes == 1
        try:
            with unsharded(self.wrapped):
                return self.evaluator.evaluate(split, label, self.stop_requested if alone else no_stop)
        except EvaluationStopped as stop:
            self.save_and_stop(stop.args[0])

    def check_faults(self) -> None:
        """Raise PartialError if too many samples failed, once all data were seen; until then the mixture checks."""
        if self.layout.taken(self.plan.total) >= len(self.batches):
            self.batches.faults.check(final=True)

    def test(self) -> None:
        """Evaluate `test_splits` with the weights of the best checkpoint, or the last where there is no best."""
        splits, label = self.run.test_splits, str(max(self.progress.epoch - 1, 0))
        if not (splits and self.task.evaluates):
            return
        self.saved_at = self.progress.step  # a signal must not save the best weights under this step
        if self.progress.best and (folder := checkpoint.pointed(self.job_dir, "best")):
            self.model.load_trainable_state(checkpoint.load(folder).model)
            label = "best"
        found = {split: self.evaluate_split(split, label) for split in splits}
        for split, metrics in found.items():
            self.notify("after_evaluation", split, label, metrics)

    def save_and_stop(self, number: int) -> NoReturn:
        """Save the state at this step; raises Preempted, or KeyboardInterrupt after SIGINT."""
        if self.saved_at != self.progress.step:
            self.save(self.progress)
        way_out = "start the same command again"
        if not self.run.job_id:  # the next start would be a run of its own
            way_out += f" with --options run.job_id={self.job_dir.name}"
        if number == signal.SIGINT:
            raise KeyboardInterrupt(way_out)
        raise Preempted(f"step {self.progress.step}", "stopped after a clean checkpoint", way_out)

    def save(self, progress: RunProgress, best: bool = False) -> None:
        """Write a checkpoint that continues from `progress`, then prune; rank 0 writes the state of all ranks."""
        ranks = gather_object(self.rank_states())
        tensors = checkpoint.model_tensors(self.model, keep=self.is_main)
        optimizer = full_state_dict(self.optimizer.state_dict(), keep=self.is_main)
        write = partial(self._write, progress, ranks, tensors, optimizer, best)
        broadcast_from_main(self.accelerator, write, self.run.wait_minutes)
        self.saved_at = progress.step

    def checkpoint_size(self) -> int:
        """Bytes of a checkpoint: the trained tensors, and two of the optimizer's for each of its parameters."""
        tensors = [*self.model.trainable_state().values(), *(2 * self.trained())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _write(self, progress: RunProgress, ranks: list[Any], tensors: Any, optimizer: Any, best: bool) -> None:
        state = {
            "progress": progress.as_dict(),
            "optimizer": optimizer,
            "ranks": ranks,
            "config": self.settings,
            "layout": self.layout.as_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "frozen": sorted(self.model.frozen_names()),
            "hooks": {hook.name: hook.state_dict() for hook in self.hooks if hook.name},
            "task": self.task.state_dict(),
        }
        checkpoint.save(self.job_dir, progress.step, tensors, state, best, self.beside)
        checkpoint.prune(self.job_dir, self.run.keep_checkpoints)

    def rank_states(self) -> list[dict[str, Any]]:
        """This rank's state, and the generators of the other planned ranks whose micro-batches it runs."""
        first, *others = self.generators or [random_state()]
        batches, task = self.batches.state_dict(), self.task.rank_state()
        more = [{"random": one, "batches": {**batches, "faults": {}}, "task": task} for one in others]
        return [{"random": first, "batches": batches, "task": task}, *more]

    def reshard(self, layout: ShardedSteps, where: str) -> None:
        """Take the steps that were planned for another number of ranks; raises ConfigError where they would differ."""
        self.layout = layout
        if not layout.changed:
            return
        require_alike(self.model, self.task, layout, where)
        self.batches.reshard(layout.parts_per_rank, layout.concurrent)
        planned = len(self.batches) * layout.concurrent // layout.parts_per_rank
        self.plan = RunLength.of(replace(self.run, accum_grad_iters=layout.accum), planned)
        require_windows(self.plan, layout, where)

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: weights, optimizer, order of samples, generators, hooks and counts.

        Raises ConfigError for a number of processes that cannot take the same steps.
        """
        state, rank, world = saved.state, self.accelerator.process_index, self.accelerator.num_processes
        self.reshard(find_layout(state, world, self.run.accum_grad_iters, str(saved.path)), str(saved.path))
        self.model.load_trainable_state(saved.model)
        saved_state = regrouped(state["optimizer"], self.optimizer, self.model, self.run)
        self.optimizer.load_state_dict(sharded_state(saved_state, self.optimizer))
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = RunProgress(**state["progress"])
        mine = remap_rank_state(state["ranks"], rank, world, self.layout)
        self.batches.load_state_dict(mine["batches"])
        self.task.load_state_dict(state.get("task", {}))
        self.task.load_rank_state(mine.get("task", {}))
        self.feed = cycle(self.batches)
        for hook in self.hooks:
            if hook.name in state["hooks"]:
                hook.load_state_dict(state["hooks"][hook.name])
        self.generators = mine["random"] if self.layout.parts_per_rank > 1 else []
        for generators in mine["random"][:1]:
            restore_random_state(generators)
        self.in_place, self.saved_at = saved.path.parent == self.job_dir, self.progress.step
        if self.in_place and self.is_main:
            checkpoint.repoint(self.job_dir, saved.path, self.progress.best.get("step"))

    def notify(self, moment: str, *args: Any) -> None:
        """Call every hook's `moment`, in order."""
        for hook in self.hooks:
            getattr(hook, moment)(self, *args)

    def close(self) -> None:
        """Call every hook's `after_train`, even if one of them fails; its error is then raised."""
        self.batches.close()
        errors = []
        for hook in self.hooks:
            try:
                hook.after_train(self)
            except Exception as error:
                log.exception("%s.after_train", type(hook).__name__)
                errors.append(error)
        if errors:
            raise errors[0]
