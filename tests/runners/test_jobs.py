"""What `train` and `evaluate` leave behind, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_ext import runners as public
from lavis_ext.browse.run_report import moment
from lavis_ext.common.config.decode import ConfigDecoder, read_yaml
from lavis_ext.common.config.schema import (
    Config,
    DatasetConfig,
    ModelConfig,
    ProcessorConfig,
    ProcessorPair,
    RunConfig,
    run_config,
)
from lavis_ext.common.errors import (
    ConfigError,
    DiskError,
    OwnedError,
    PartialError,
    Preempted,
    TrainingError,
    UsageError,
)
from lavis_ext.common.registry import models, runners, tasks
from lavis_ext.features.vocabulary import LabelVocabulary
from lavis_ext.runners import job as job_module
from lavis_ext.runners import run as jobs
from lavis_ext.runners.device import build_accelerator, choose_cpu, choose_precision, deterministic
from lavis_ext.runners.distributed import is_rank_gone
from lavis_ext.runners.job import owned, redact_config
from lavis_ext.runners.runner_base import RunnerBase
from tests.support.runs import EvaluationFeed, log_lines, toy_runner, weights
from tests.support.toys import ToyDataset, ToyFeed, ToyModel, ToyTask, toy_run


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy model, task and data under their names for the time of a test."""
    for registry, item in ((models, ToyModel), (tasks, ToyTask)):
        registry.names()
        monkeypatch.setitem(registry._items, "toy", item)
    monkeypatch.setattr(jobs, "open_datasets", lambda config, splits: {"toy": {"train": ToyDataset(12)}})
    monkeypatch.setattr(jobs, "train_feed", lambda config, opened, accelerator: ToyFeed(opened["toy"]["train"]))
    feeds = {split: EvaluationFeed(ToyDataset(4, split=split)) for split in ("val", "test")}
    monkeypatch.setattr(jobs, "eval_feeds", lambda config, opened, splits, accelerator: {s: feeds[s] for s in splits})
    yield


def config(folder: Path, **keys: Any) -> Config:
    resolved = {"run": {"task": "toy", "hub_token": "s3cret"}, "url": "https://host/file?sig=s3cret"}
    model = ModelConfig(arch="toy", model_type="tiny")
    datasets = {"toy": DatasetConfig(name="toy")}
    return Config(run=toy_run(folder, **keys), model=model, datasets=datasets, cache_root="cache", resolved=resolved)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_training_leaves_all_that_it_should(tmp_path: Path) -> None:
    begun = time.monotonic()
    job = public.train(config(tmp_path, valid_splits=["val"], test_splits=["test"], report=True), {"subset": True})
    assert job == tmp_path / "job"
    names = {path.name for path in job.iterdir()}
    assert names >= {"config.yaml", "log.jsonl", "result", "report.html", "run.json", "faults.json", "checkpoint_best"}
    assert not names & {"owner.json", "nonfinite.json"}
    facts = read(job / "run.json")
    assert facts["status"] == "finished"
    assert moment(facts["started"]) <= moment(facts["ended"])
    assert 0 < facts["seconds"] <= time.monotonic() - begun + 0.1
    assert facts["step"] == 18
    assert facts["best"]["metric"] == 0.5
    assert read(job / "faults.json")["train"]["toy/train"]["seen"] == 36
    assert {line["split"] for line in log_lines(tmp_path) if line["kind"] == "eval"} == {"val", "test"}
    assert "subset:" in (job / "report.html").read_text()


@pytest.mark.fault("D12")
def test_secrets_are_struck_from_what_is_written(tmp_path: Path) -> None:
    job = public.train(config(tmp_path, report=True, max_epoch=1))
    assert "hub_token: '***'" in (job / "config.yaml").read_text()
    for path in job.rglob("*"):
        assert path.is_dir() or b"s3cret" not in path.read_bytes()


def test_a_number_is_no_secret() -> None:
    told = redact_config({"model": {"num_query_token": 32, "hub_token": "s3cret"}})
    assert "num_query_token: 32" in told
    assert "s3cret" not in told


def test_an_evaluation_leaves_its_metrics(tmp_path: Path) -> None:
    job = public.evaluate(config(tmp_path, test_splits=["test"], evaluate=True, report=True))
    assert read(job / "evaluate.json") == {"test": {"CIDEr": 0.5, "agg_metrics": 0.5}}
    assert (job / "result" / "test_epochtest.json").is_file()
    assert read(job / "run.json")["status"] == "evaluated"
    assert "CIDEr" in (job / "report.html").read_text()
    (line,) = log_lines(tmp_path)
    assert (line["split"], line["label"], line["step"], line["epoch"]) == ("test", "test", 0, 0)


def test_an_evaluation_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no split"):
        public.evaluate(config(tmp_path))


def test_an_evaluation_without_usable_samples_is_exit_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyTask, "valid_step", lambda self, batch: [])
    with pytest.raises(PartialError) as caught:
        public.evaluate(config(tmp_path, test_splits=["test"]))
    assert caught.value.exit_code == 8
    assert read(tmp_path / "job" / "run.json")["exit_code"] == 8


@pytest.mark.fault("K14")
def test_empty_data_is_exit_3_before_a_model_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "open_datasets", lambda config, splits: {"toy": {"train": ToyDataset(0)}})
    monkeypatch.setattr(jobs, "build_task", None)
    with pytest.raises(ConfigError, match="no batch") as caught:
        public.train(config(tmp_path))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "job").exists()


@pytest.mark.fault("K09")
def test_the_same_command_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = public.train(config(tmp_path / "whole"))
    real = RunnerBase.run_step

    def hit(self: RunnerBase, size: int) -> Any:
        if self.progress.step == 8 and not self.in_place:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, size)

    monkeypatch.setattr(RunnerBase, "run_step", hit)
    with pytest.raises(Preempted):
        public.train(config(tmp_path / "hit"))
    assert read(tmp_path / "hit" / "job" / "run.json")["exit_code"] == 75
    assert public.train(config(tmp_path / "hit")) == tmp_path / "hit" / "job"
    assert log_lines(tmp_path / "hit") == log_lines(tmp_path / "whole")
    for name in ("model.safetensors", "tensors.safetensors"):
        ours, theirs = (job / "checkpoint_18" / name for job in (tmp_path / "hit" / "job", whole))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("content", ['"started, seconds, best"', "[]", '{"started": ', "7"])
def test_facts_of_an_earlier_start_that_are_none_are_written_anew(content: str, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "run.json").write_text(content)
    assert read(public.train(config(tmp_path, max_epoch=1)) / "run.json")["status"] == "finished"


@pytest.mark.fault("K11")
def test_a_changed_configuration_is_refused_unless_allowed(tmp_path: Path) -> None:
    job = public.train(config(tmp_path, max_epoch=1))
    before = read(job / "run.json")
    with pytest.raises(ConfigError, match="max_epoch: was 1, now 2"):
        public.train(config(tmp_path, max_epoch=2))
    assert read(job / "run.json") == before
    public.train(config(tmp_path, max_epoch=2, allow_config_drift=True))
    assert log_lines(tmp_path)[-1]["step"] == 12


def test_an_explicit_checkpoint_starts_another_job(tmp_path: Path) -> None:
    first = public.train(config(tmp_path / "a", max_epoch=1))
    keys = {"max_epoch": 2, "allow_config_drift": True, "resume_ckpt_path": str(first / "checkpoint_6")}
    public.train(config(tmp_path / "b", **keys))
    assert [line["step"] for line in log_lines(tmp_path / "b")] == list(range(7, 13))


@pytest.mark.fault("K12")
def test_a_checkpoint_of_other_ranks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public.train(config(tmp_path, max_epoch=1))
    real = jobs.checkpoint.load_newest

    def doubled(folder: Path) -> Any:
        saved = real(folder)
        saved.state["layout"]["world"] = 2
        return saved

    monkeypatch.setattr(jobs.checkpoint, "load_newest", doubled)
    with pytest.raises(ConfigError, match="was made by 2 processes × accum_grad_iters 1, this run has 1 × 1"):
        public.train(config(tmp_path, max_epoch=1))


@pytest.mark.fault("K01")
def test_a_stopped_run_has_a_report_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyModel, "from_config", lambda config: poisoned())
    with pytest.raises(TrainingError):
        public.train(config(tmp_path, report=True))
    assert "not finite" in (tmp_path / "job" / "report.html").read_text()
    assert read(tmp_path / "job" / "run.json")["exit_code"] == 11


def poisoned() -> ToyModel:
    model = ToyModel()
    model.poisoned = "5"
    return model


def test_a_job_that_runs_elsewhere_is_exit_9(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    with owned(tmp_path / "job"), pytest.raises(OwnedError):
        public.train(config(tmp_path))


def test_jobs_without_a_name_do_not_share_a_folder(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"job_id": None, "max_epoch": 1}
    assert public.train(config(tmp_path, **keys)) != public.train(config(tmp_path, **keys))


def test_a_report_that_fails_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ValueError("no page")

    monkeypatch.setattr(job_module, "write_run_report", broken)
    assert read(public.train(config(tmp_path, report=True, max_epoch=1)) / "run.json")["status"] == "finished"


def test_answers_of_a_split_that_is_only_evaluated_must_be_those_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"train": ["net", "down"], "val": ["net", "blue"]}

    def opened(config: Config, splits: Any) -> Any:
        sets = {}
        for split in splits:
            sets[split] = ToyDataset(12, split=split)
            sets[split].labels = LabelVocabulary([0, 1], words[split])
        return {"toy": sets}

    monkeypatch.setattr(jobs, "open_datasets", opened)
    with pytest.raises(ConfigError, match="class 1 is 'blue'"):
        public.train(config(tmp_path, valid_splits=["val"]))


def test_a_run_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model section"):
        public.train(replace(config(tmp_path), model=None))


def test_both_names_of_the_loop_are_one() -> None:
    assert runners.get("runner_base") is runners.get("runner_iter") is RunnerBase


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "gpu0", "", "cuda:99"])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.device"):
        choose_cpu(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="this machine has 0 GPUs"):
        choose_cpu("cuda")
    assert choose_cpu("auto")


def test_unused_parameters_are_looked_for_where_the_run_says_so(tmp_path: Path) -> None:
    for asked in (True, False):
        handler = build_accelerator(toy_run(tmp_path, find_unused_parameters=asked)).ddp_handler
        assert handler is not None and handler.find_unused_parameters is asked


def test_kernels_are_deterministic_for_the_block() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled() is before


def test_precision_follows_amp_and_the_device() -> None:
    run = RunConfig(task="toy", amp=True)
    assert choose_precision(run, use_cpu=True) == "bf16"
    assert choose_precision(run, use_cpu=False) == "fp16"
    assert choose_precision(RunConfig(task="toy"), use_cpu=False) == "no"
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        choose_precision(RunConfig(task="toy", precision="fp16"), use_cpu=True)


def test_wandb_that_is_missing_is_told_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        public.train(config(tmp_path, wandb=True))


def test_a_split_that_no_data_set_has_is_named(tmp_path: Path) -> None:
    evaluator = jobs.Evaluator(None, {"val": None}, tmp_path, None, 0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="vall"):
        evaluator.evaluate("vall", "0", lambda: 0)


def test_a_configuration_made_in_code_is_written_and_read_again(tmp_path: Path) -> None:
    run = run_config("image_text_pretrain", eval_task="captioning", num_beams=2)
    made = Config(run=run, model=models.config("blip2")(arch="blip2", model_type="tiny"), datasets={}, cache_root="")
    (tmp_path / "config.yaml").write_text(redact_config(asdict(made)))
    tree, _ = read_yaml(tmp_path / "config.yaml")
    door = ConfigDecoder()
    assert door.build(RunConfig, tree["run"], "run") == run
    assert door.build(ModelConfig, tree["model"], "model") == made.model
    assert door.problems == []


@dataclass(frozen=True, kw_only=True)
class Sized(ModelConfig):
    """Of a model that takes pictures of one size."""

    vit_model: str = "small"
    image_size: int = 224


def test_pictures_of_another_size_than_the_models_are_found_before_it_is_built(tmp_path: Path) -> None:
    made = config(tmp_path)
    small = ProcessorPair(train=ProcessorConfig(name="blip_image_train", args={"image_size": 96}))
    data = {"toy": DatasetConfig(name="toy", vis_processor=small)}
    with pytest.raises(ConfigError) as caught:
        public.train(replace(made, model=Sized(arch="toy", model_type="tiny"), datasets=data))
    assert "image_size" in caught.value.problems[0].where and not (tmp_path / "job").exists()


def test_a_disk_that_no_checkpoint_fits_on_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(DiskError):
        public.train(config(tmp_path))
    assert not (tmp_path / "job" / "log.jsonl").exists() and not (tmp_path / "job" / "run.json").exists()


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_what_a_job_says_of_itself_when_it_begins(evaluation: bool, trained: bool, tmp_path: Path) -> None:
    """An evaluation beside a training leaves that run's configuration and facts; only rank 0 writes."""
    before = {"started": "then", "seconds": 7.0, "best": {"step": 3}, "error": "full", "exit_code": 6, "command": "old"}
    (tmp_path / "run.json").write_text(json.dumps(before))
    if trained:
        (tmp_path / "latest.json").write_text("{}")
    beside = evaluation and trained
    for main in (False, True):
        made: Any = SimpleNamespace(is_main_process=main)
        job = job_module.Job(config(tmp_path), tmp_path, made)
        job.begin(None, evaluation)
        written = {path.name for path in tmp_path.iterdir()} - {"run.json", "latest.json"}
        assert written == ({"evaluate.yaml" if beside else "config.yaml", "data.json"} if main else set())
    facts = read(tmp_path / "run.json")
    assert (facts["started"], facts["seconds"], facts["status"]) == ("then", 7.0, "running")
    assert "error" not in facts and "exit_code" not in facts
    assert (facts.get("command") == "old") == beside


def test_no_rank_is_gone_before_they_have_met() -> None:
    assert not is_rank_gone()


@pytest.mark.parametrize("skip", [False, True])
def test_a_script_s_evaluation_loads_the_best_weights_unless_it_is_told_not_to(
    skip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = toy_runner(tmp_path, metrics=[0.5], valid_splits=["val"], max_epoch=1)
    runner.train()
    trained = weights(runner)
    with torch.no_grad():
        for parameter in runner.model.parameters():
            parameter.mul_(not parameter.requires_grad)
    zeros = weights(runner)
    (tmp_path / "evaluate.json").write_text('{"val": {"agg_metrics": 1}}')
    monkeypatch.setattr(jobs, "file_of", lambda *_, **__: None)
    monkeypatch.setattr(jobs, "evaluate", lambda *_: tmp_path)
    assert runner.evaluate(skip_reload=skip) == {"val": {"agg_metrics": 1}}
    assert weights(runner) == (zeros if skip else trained) and zeros != trained


def test_metrics_are_written_and_shown_split_by_split(tmp_path: Path) -> None:
    shown: list[tuple[str, float, int]] = []
    display: Any = SimpleNamespace(
        record=lambda record, count: shown.append((record["split"], record["metrics"]["agg_metrics"], count))
    )
    jobs.note_metrics(tmp_path, {"val": {"agg_metrics": 0.5}, "test": {"agg_metrics": 0.25}}, display)
    assert shown == [("val", 0.5, 1), ("test", 0.25, 1)]
    assert read(tmp_path / "evaluate.json")["test"] == {"agg_metrics": 0.25}


def test_what_a_script_brings_is_what_runs(tmp_path: Path) -> None:
    script: Any = SimpleNamespace(task=object(), model=object(), datasets={"toy": {"train": ToyDataset(2)}})
    job = job_module.Job(config(tmp_path), tmp_path, build_accelerator(config(tmp_path).run))
    given = jobs.given_by(job, script)
    assert given.task is script.task and given.model is script.model
    assert set(given.opened(job, ["train"])["toy"]) == {"train"} and given.opened(job, []) == {}
    assert jobs.given_by(job, None) == jobs.Given()


def test_a_script_s_task_without_a_model_gets_that_of_the_run(tmp_path: Path) -> None:
    made = config(tmp_path)
    job = job_module.Job(made, tmp_path, build_accelerator(made.run))
    other = torch.nn.Linear(1, 1)
    for model, kind in ((None, ToyModel), (other, torch.nn.Linear)):
        task = jobs.build_task(job, given=jobs.Given(ToyTask(torch.nn.Linear(2, 2), made.run), model))
        assert type(task.model) is kind and (model is None or task.model is other)


def test_only_the_first_rank_writes_what_an_evaluation_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module.Job, "is_main", property(lambda self: False))
    job = public.evaluate(config(tmp_path, test_splits=["test"], evaluate=True))
    written = {path.name for path in job.iterdir()}
    assert not written & {"evaluate.json", "log.jsonl", "faults.json", "run.json", "config.yaml"}
