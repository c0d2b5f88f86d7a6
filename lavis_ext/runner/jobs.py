"""What `train` and `evaluate` do: one configuration in, one job folder out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_ext.errors import ConfigError
from lavis_ext.registry import models, runners
from lavis_ext.runner import checkpoint, drift
from lavis_ext.runner.device import build_accelerator, deterministic
from lavis_ext.runner.evaluation import Evaluator
from lavis_ext.runner.feeds import eval_feeds, open_datasets, train_feed
from lavis_ext.runner.files import write_json
from lavis_ext.runner.hooks import CheckpointHook, EvaluateHook, ScheduleHook
from lavis_ext.runner.job import Job, opened_job
from lavis_ext.runner.logs import JsonLog, LogHook, summary
from lavis_ext.runner.loop import Hook, Runner
from lavis_ext.runner.plan import Plan
from lavis_ext.runner.signals import SignalHook
from lavis_ext.runner.state import seed_everything
from lavis_ext.runner.steps import no_stop
from lavis_ext.schema import Config, ModelConfig
from lavis_ext.tasks.base import Task, setup_task

log = logging.getLogger(__name__)


def train(config: Config, data: Mapping[str, Any] | None = None) -> Path:
    """Train, validate and test as `config` says, or go on where the job of that name stopped; returns the job folder.

    `data` is what `prepare` knows of the data sets (`{"subset": …}`), kept as `data.json` for the report. Raises
    ConfigError before the first step for what cannot be trained, TrainingError for losses that are not finite,
    Preempted after SIGTERM.
    """
    model = require_model(config)
    accelerator = build_accelerator(config.run)
    with opened_job(config, accelerator) as job, deterministic(accelerator.device):
        runner = build_runner(job, model)
        resume(job, runner)
        job.begin(data)
        try:
            runner.train()
        finally:
            note_progress(job, runner)
        job.end(status="finished")
    return job.dir


def evaluate(config: Config, data: Mapping[str, Any] | None = None) -> Path:
    """Evaluate `test_splits` (else `valid_splits`) with the weights of the model section; returns the job folder.

    Metrics go to `evaluate.json`, to `log.jsonl` and to the report. Raises ConfigError if no split is named.
    """
    model = require_model(config)
    splits = config.run.test_splits or config.run.valid_splits
    if not splits:
        raise ConfigError("run.test_splits", "names no split to evaluate", "e.g. test_splits: [val]")
    accelerator = build_accelerator(config.run)
    with opened_job(config, accelerator) as job, deterministic(accelerator.device):
        task = build_task(job, model)
        task.model.to(accelerator.device)
        evaluator = build_evaluator(job, task, splits)
        job.begin(data)
        found = {split: evaluator.evaluate(split, "test", no_stop) for split in splits}
        if job.is_main:
            note_metrics(job.dir, found)
            write_json(job.dir / "faults.json", evaluator.faults())
        job.end(status="evaluated")
    return job.dir


def require_model(config: Config) -> ModelConfig:
    """The model section; raises ConfigError without one."""
    if config.model is None:
        raise ConfigError(config.path or "config", "has no model section", "add `model:` with arch and model_type")
    return config.model


def build_task(job: Job, model: ModelConfig) -> Task:
    """The registered model and task of the run; all ranks build the same weights."""
    seed_everything(job.config.run.seed)
    return setup_task(job.config.run, models.get(model.arch).from_config(model))


def build_evaluator(job: Job, task: Task, splits: list[str]) -> Evaluator:
    """An evaluator of these splits, with nothing to do where the task evaluates nothing."""
    if splits and not task.evaluates:
        log.warning("run.task '%s' evaluates nothing; set run.eval_task to another that does", job.config.run.task)
    wanted = splits if task.evaluates else []
    feeds = eval_feeds(job.config, open_datasets(job.config, wanted), wanted, job.accelerator)
    return Evaluator(task, feeds, job.dir, job.accelerator, job.config.run.seed, gallery=job.config.run.report)


def build_runner(job: Job, model: ModelConfig) -> Runner:
    """Data, model, task, hooks and loop, in an order that fails on empty data before a model is loaded."""
    run, config = job.config.run, job.config
    splits = list(dict.fromkeys([*run.valid_splits, *run.test_splits]))
    batches = train_feed(config, open_datasets(config, run.train_splits), job.accelerator)
    Plan.of(run, len(batches))
    task = build_task(job, model)
    evaluator = build_evaluator(job, task, splits)
    log_hook = LogHook(JsonLog(job.dir / "log.jsonl"))
    hooks: list[Hook] = [SignalHook(), ScheduleHook(), log_hook, EvaluateHook(), CheckpointHook()]
    seed_everything(run.seed + job.accelerator.process_index)
    runner: Runner = runners.get(run.runner)(run, task, batches, evaluator, hooks, job.accelerator)
    runner.config = drift.fingerprint(config)
    return runner


def resume(job: Job, runner: Runner) -> None:
    """Go on from this job's newest whole checkpoint, else from `run.resume_ckpt_path`; else start."""
    run, processes = job.config.run, job.accelerator.num_processes
    with job.accelerator.main_process_first():  # which sets damaged ones aside before the others look
        saved = checkpoint.load_newest(job.dir)
    if saved is None and run.resume_ckpt_path:
        saved = checkpoint.load(Path(run.resume_ckpt_path).expanduser().absolute())
    if saved is None:
        return
    if not run.allow_config_drift:
        drift.require_same(saved.state["config"], runner.config, saved.path.name)
    if (ranks := len(saved.state["ranks"])) != processes:
        raise ConfigError(str(saved.path), f"was made by {ranks} processes, this run has {processes}", f"start {ranks}")
    runner.restore(saved)
    log.info("resuming from %s (step %d)", saved.path, runner.progress.step)


def note_progress(job: Job, runner: Runner) -> None:
    """Leave how far the run came and what it could not read, however it ended."""
    at = runner.progress
    if job.is_main:
        write_json(job.dir / "faults.json", {"train": runner.batches.faults.summary(), **runner.evaluator.faults()})
    job.note(step=at.step, epoch=at.epoch, best=at.best)


def note_metrics(folder: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Leave the metrics of each split in `evaluate.json` and in the log."""
    write_json(folder / "evaluate.json", found)
    for split, metrics in found.items():
        record = {"kind": "eval", "split": split, "label": "test", "step": 0, "epoch": 0, "metrics": metrics}
        JsonLog(folder / "log.jsonl").write(record)
        log.info("%s", summary(record, 1))
