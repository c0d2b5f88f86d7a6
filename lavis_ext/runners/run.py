"""`train` and `evaluate`: one configuration in, one job folder out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lavis_ext.common.config.check import require_sizes
from lavis_ext.common.config.schema import Config, ModelConfig
from lavis_ext.common.config.script import Config as Script
from lavis_ext.common.errors import ConfigError, DiskError
from lavis_ext.common.files import expanded, not_there
from lavis_ext.common.registry import runners, tasks
from lavis_ext.features.vocabulary import LabelVocabulary
from lavis_ext.models.settings import names_url
from lavis_ext.models.zoo import build_model, warn_if_random
from lavis_ext.runners import checkpoint
from lavis_ext.runners.checkpoint import seed_everything
from lavis_ext.runners.data import (
    Opened,
    adopted,
    beside,
    eval_feeds,
    joined,
    open_datasets,
    require_beside,
    train_feed,
    vocabulary,
    with_num_labels,
)
from lavis_ext.runners.device import build_accelerator, deterministic
from lavis_ext.runners.display import Display, facts_of
from lavis_ext.runners.distributed import broadcast_from_main, find_layout, main_first
from lavis_ext.runners.evaluation import Evaluator
from lavis_ext.runners.files import write_json
from lavis_ext.runners.hooks import CheckpointHook, EvaluateHook, ScheduleHook, SignalHook
from lavis_ext.runners.job import Job, OwnerHook, fingerprint, opened_job, read_json, require_same
from lavis_ext.runners.logs import JsonLog, LogHook
from lavis_ext.runners.microbatch import no_stop
from lavis_ext.runners.runner_base import Hook, RunnerBase
from lavis_ext.runners.schedule import RunLength
from lavis_ext.runners.task_loop import run_epoch_of_task
from lavis_ext.tasks.base_task import BaseTask, require_called, setup_task, taken
from lavis_ext.tasks.loop import has_own_loop

log = logging.getLogger(__name__)


def train(
    config: Config,
    data: Mapping[str, Any] | None = None,
    script: RunnerBase | None = None,
    display: Display | None = None,
) -> Path:
    """Train, validate and test as `config` says, or go on where the job of that name stopped; returns the job folder.

    `data` is what `prepare` recorded of the data sets (`{"subset": …}`), kept as `data.json` for the report. Raises
    ConfigError before the first step for what cannot be trained, DiskError for a disk that no checkpoint fits on,
    TrainingError for losses that are not finite and for ranks that are gone, Preempted after SIGTERM. `script` is a
    runner in LAVIS' form, with its task, model and data sets; `display` is where the run shows itself.
    """
    require_model(config)
    require_sizes(config)
    accelerator, display = build_accelerator(config.run), display or Display()
    with opened_job(config, accelerator) as job, deterministic(accelerator.device), shown(display):
        runner = build_runner(job, script, display)
        resume(job, runner)
        require_space(job, runner)
        job.begin(data)
        if job.is_main:
            feeds = {"train": runner.batches, **runner.evaluator.feeds}
            facts = facts_of(runner.task, feeds, accelerator, runner)
            job.note(samples=facts["data"])
            display.opened({**facts, "folder": str(job.dir)})
        try:
            runner.train()
        except BaseException:
            with suppress(DiskError):  # what ended the run is told, not that its last facts found no room
                note_progress(job, runner)
            raise
        note_progress(job, runner)
        job.end(status="finished")
    return job.dir


@contextmanager
def shown(display: Display) -> Iterator[None]:
    """Close the display at the end of the block, whatever ends it."""
    try:
        yield
    finally:
        display.close()


def evaluate(
    config: Config,
    data: Mapping[str, Any] | None = None,
    script: RunnerBase | None = None,
    display: Display | None = None,
) -> Path:
    """Evaluate `test_splits` (else `valid_splits`) with the weights of the model section; returns the job folder.

    Metrics go to `evaluate.json`, to `log.jsonl` and to the report. Raises ConfigError if no split is named.
    """
    require_model(config)
    splits = config.run.test_splits or config.run.valid_splits
    if not splits:
        raise ConfigError("run.test_splits", "names no split to evaluate", "e.g. test_splits: [val]")
    require_sizes(config)
    accelerator, display = build_accelerator(config.run), display or Display()
    with opened_job(config, accelerator) as job, deterministic(accelerator.device), shown(display):
        given = given_by(job, script)
        opened = given.opened(job, splits)
        task = build_task(job, vocabulary(opened), given)
        task.model.to(accelerator.device)
        evaluator = build_evaluator(job, task, splits, opened, given)
        job.begin(data, evaluation=True)
        if job.is_main:
            evaluator.watch = display.evaluating
            facts = facts_of(task, evaluator.feeds, accelerator)
            # a script's model may have learnt in this process
            random = given.model is None and warn_if_random(require_model(job.config))
            weights = {"weights": "random"} if random else {}
            job.note(samples={**job.facts.get("samples", {}), **facts["data"]}, **weights)
            display.opened({**facts, "folder": str(job.dir)})
        found = {split: evaluator.evaluate(split, "test", no_stop) for split in splits}
        if job.is_main:
            note_metrics(job.dir, found, display)
            write_json(job.dir / "faults.json", {**read_json(job.dir / "faults.json"), **evaluator.faults()})
        job.end(status="evaluated")
    return job.dir


def require_model(config: Config) -> ModelConfig:
    """The model section; raises ConfigError without one."""
    if config.model is None:
        raise ConfigError(config.path or "config", "has no model section", "add `model:` with arch and model_type")
    return config.model


@dataclass(frozen=True)
class Given:
    """What a script made before the run: its task, model and data sets; None for what the run file says."""

    task: Any = None
    model: Any = None
    datasets: Opened | None = None

    def opened(self, job: Job, splits: Sequence[str]) -> Opened:
        """The data sets of some splits, the script's or those of the run file."""
        if self.datasets is None:
            return first_opened(job, splits)
        some = {name: {key: one for key, one in held.items() if key in splits} for name, held in self.datasets.items()}
        return some if splits else {}


def given_by(job: Job, script: RunnerBase | None) -> Given:
    """What a runner in LAVIS' form brings, or a task in LAVIS' manner builds by its own methods."""
    if script is not None:
        return Given(script.task, script.model, adopted(script.datasets))
    kind = tasks.get(job.config.run.task)
    if not getattr(kind, "lavis", False):
        return Given()
    cfg = Script.of(job.config)
    task = setup_task(cfg)
    require_called(task)
    own = type(task).build_datasets is not BaseTask.build_datasets
    opened = (
        main_first(job.accelerator, partial(task.build_datasets, cfg), job.config.run.wait_minutes) if own else None
    )
    return Given(task, None, adopted(opened) if opened is not None else None)


def build_task(job: Job, answers: LabelVocabulary | None = None, given: Given = Given()) -> BaseTask:
    """The registered model and task of the run; all ranks build the same weights.

    A classifier gets as many classes as `answers` has; the job's configuration is changed accordingly.
    """
    job.config = with_num_labels(job.config, answers)
    model = require_model(job.config)
    seed_everything(job.config.run.seed)
    run, build = job.config.run, partial(build_model, model, Path(job.config.cache_root))
    # rank 0 fetches weights that are named by a URL before the others look
    fetched = partial(main_first, job.accelerator, build, run.wait_minutes) if names_url(model) else build
    if given.task is None:
        return setup_task(run, fetched())
    task: BaseTask = given.task
    if given.model is not None:
        return taken(task, run, given.model)
    own = type(task).build_model is not BaseTask.build_model
    return taken(task, run, task.build_model(Script.of(job.config)) if own else fetched())


def first_opened(job: Job, splits: Sequence[str]) -> Opened:
    """The data sets of some splits; rank 0 opens them first: opening may convert annotation files, once for all."""
    return main_first(job.accelerator, partial(open_datasets, job.config, splits), job.config.run.wait_minutes)


def build_evaluator(job: Job, task: BaseTask, splits: list[str], opened: Opened, given: Given = Given()) -> Evaluator:
    """An evaluator of these splits, of none where the task does not evaluate.

    `opened` are the data sets that are open already, of these or other splits; raises ConfigError where their answers
    differ.
    """
    if splits and not task.evaluates:
        log.warning("run.task '%s' evaluates nothing; set run.eval_task to another that does", job.config.run.task)
    wanted = splits if task.evaluates else []
    known = {split for datasets in opened.values() for split in datasets}
    lacking = [split for split in wanted if split not in known]
    both = joined(opened, given.opened(job, lacking))
    vocabulary(both)
    feeds = eval_feeds(job.config, both, wanted, job.accelerator)
    return Evaluator(task, feeds, job.dir, job.accelerator, job.config.run.seed, gallery=job.config.run.report)


def build_runner(job: Job, script: RunnerBase | None = None, display: Display | None = None) -> RunnerBase:
    """Data, model, task, hooks and loop, in an order that fails on empty data before a model is loaded."""
    run, given = job.config.run, given_by(job, script)
    opened = given.opened(job, run.train_splits)
    splits = list(dict.fromkeys([*run.valid_splits, *run.test_splits]))
    batches = train_feed(job.config, opened, job.accelerator)
    RunLength.of(run, len(batches))  # raises for empty data, before a model is loaded
    answers = vocabulary(opened)
    task = build_task(job, answers, given)
    evaluator = build_evaluator(job, task, splits, opened, given)
    log_hook = LogHook(JsonLog(job.dir / "log.jsonl"), display)
    if job.is_main:
        evaluator.watch = log_hook.display.evaluating
    hooks: list[Hook] = [OwnerHook(job), SignalHook(), ScheduleHook(), log_hook, EvaluateHook(), CheckpointHook()]
    seed_everything(run.seed + job.accelerator.process_index)
    parts = (job.config.run, task, batches, evaluator, hooks, job.accelerator)
    if script is None:
        runner: RunnerBase = runners.get(run.runner).of(*parts)
    else:
        runner = script
        runner.assemble(*parts)
    if has_own_loop(task):
        runner.epoch_of_task = run_epoch_of_task
    runner.settings, runner.beside = fingerprint(job.config), beside(answers)
    return runner


def file_of(script: RunnerBase, evaluate: bool = False) -> Config:
    """The run file of a runner in LAVIS' form, with its job's name, as the script has changed it."""
    config: Config = script.config.typed()
    return replace(config, run=replace(config.run, job_id=script.job_id, evaluate=evaluate or config.run.evaluate))


def feeds_of(script: RunnerBase) -> dict[str, Any]:
    """Split → batches of a runner in LAVIS' form, like those that its run will make."""
    config, opened = file_of(script), adopted(script.datasets)
    run, accelerator = config.run, build_accelerator(config.run)
    known = {split for splits in opened.values() for split in splits}
    others = [split for split in dict.fromkeys([*run.valid_splits, *run.test_splits]) if split in known]
    feeds: dict[str, Any] = dict(eval_feeds(config, opened, others, accelerator))
    if run.train_splits:
        wanted = {n: {k: one for k, one in held.items() if k in run.train_splits} for n, held in opened.items()}
        feeds["train"] = train_feed(config, wanted, accelerator)
    return feeds


def resume(job: Job, runner: RunnerBase) -> None:
    """Go on from this job's newest whole checkpoint, else from `run.resume_ckpt_path`; else start."""
    run = job.config.run
    if job.is_main:
        checkpoint.sweep(job.dir)
    # rank 0 sets damaged ones aside before the others look
    saved = main_first(job.accelerator, partial(checkpoint.load_newest, job.dir), run.wait_minutes)
    if saved is None and run.resume_ckpt_path:
        saved = checkpoint.load(named_checkpoint(run.resume_ckpt_path))
    if saved is None:
        return
    if not run.allow_config_drift:
        layout = find_layout(saved.state, job.accelerator.num_processes, run.accum_grad_iters, str(saved.path))
        require_same(saved.state["config"], layout.fingerprint(runner.settings), saved.path.name, job.config)
    require_beside(runner.beside, saved.path)
    runner.restore(saved)
    log.info("resuming from %s (step %d)", saved.path, runner.progress.step)


def require_space(job: Job, runner: RunnerBase) -> None:
    """Raise DiskError before the first step where the disk is too small for a checkpoint."""
    run = job.config.run
    if runner.progress.epoch < runner.plan.epochs:
        kept = run.keep_checkpoints + bool(runner.evaluator.feeds and run.valid_splits)  # the best one besides
        look = partial(checkpoint.require_space, job.dir, runner.checkpoint_size(), kept)
        broadcast_from_main(job.accelerator, look, run.wait_minutes)


def named_checkpoint(path: str) -> Path:
    """The folder of a checkpoint, or the newest one of a run's folder; raises ConfigError for what is neither."""
    folder = expanded(path).absolute()
    if not folder.exists():
        way_out = "name a checkpoint or the folder of a run"
        raise ConfigError(f"run.resume_ckpt_path {path}", *not_there(path, "folder", otherwise=way_out))
    if folder.is_file():
        what = "is a file: the weights of LAVIS alone, without the state that a resume needs"
        raise ConfigError(f"run.resume_ckpt_path {path}", what, "set model.load_finetuned=True model.finetuned=FILE")
    return checkpoint.pointed(folder, "latest") or folder


def note_progress(job: Job, runner: RunnerBase) -> None:
    """Write how far the run came and the samples that it could not read, however it ended."""
    at = runner.progress
    if job.is_main:
        job.require_owner()
        write_json(job.dir / "faults.json", {"train": runner.batches.faults.summary(), **runner.evaluator.faults()})
    job.note(step=at.step, epoch=at.epoch, best=at.best)


def note_metrics(folder: Path, found: Mapping[str, Mapping[str, Any]], display: Display) -> None:
    """Write the metrics of each split to `evaluate.json` and to the log, and show them."""
    write_json(folder / "evaluate.json", found)
    for split, metrics in found.items():
        record = {"kind": "eval", "split": split, "label": "test", "step": 0, "epoch": 0, "metrics": metrics}
        JsonLog(folder / "log.jsonl").write(record)
        display.record(record, 1)
