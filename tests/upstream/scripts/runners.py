"""Runs from a script: LAVIS' `train.py` and what people change in it. Each cell is run by itself, in a small world."""

# %% train
import json
import logging
import random
from argparse import Namespace

import lavis.runners.runner_base as base
import lavis.tasks as tasks
import numpy as np
import torch
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, init_distributed_mode
from lavis.common.logger import setup_logger
from lavis.common.registry import registry
from lavis.common.utils import now

cfg = Config(Namespace(cfg_path="run.yaml", options=["run.output_dir=out"]))
init_distributed_mode(cfg.run_cfg)
seed = cfg.run_cfg.seed + get_rank()
random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
setup_logger()
cfg.pretty_print()
task = tasks.setup_task(cfg)
datasets = task.build_datasets(cfg)
model = task.build_model(cfg)
runner_cls = registry.get_runner_class(cfg.run_cfg.get("runner", "runner_base"))
runner = runner_cls(cfg=cfg, job_id=now(), task=task, model=model, datasets=datasets)
before = model.net.query_tokens.detach().clone()
told, handler = [], logging.Handler()
handler.emit = lambda record: told.append(record.getMessage())
base.log.addHandler(handler)
base.log.setLevel(logging.INFO)
runner.train()
base.log.removeHandler(handler)
base.log.setLevel(logging.NOTSET)
assert [line for line in told if line.startswith("run: ")] == [f"run: {runner.output_dir}"]
assert not torch.equal(before, model.net.query_tokens) and runner.progress.step == 3
assert json.loads((runner.output_dir / "run.json").read_text())["status"] == "finished"
assert (runner.result_dir / "val_epoch0.json").is_file() and list(runner.output_dir.glob("checkpoint_*"))
assert registry.get_path("output_dir") == str(runner.output_dir)

# %% evaluate
from argparse import Namespace

from lavis.common.config import Config
from lavis.runners import RunnerBase
from lavis.tasks import setup_task

cfg = Config(Namespace(cfg_path="run.yaml", options=["run.test_splits=[val]", "run.evaluate=True", "run.output_dir=out"]))
task = setup_task(cfg)
runner = RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), "evaluated")
found = runner.evaluate(skip_reload=True)
assert "agg_metrics" in found["val"] and (runner.result_dir / "val_epochtest.json").is_file()

# %% two-runners
from argparse import Namespace

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.runners import RunnerBase
from lavis.tasks import setup_task

for name in ("one", "two"):  # LAVIS dies at the second: its paths are registered already
    cfg = Config(Namespace(cfg_path="run.yaml", options=["run.max_iters=1", "run.valid_splits=[]", "run.output_dir=out"]))
    task = setup_task(cfg)
    RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), name).train()
    assert registry.get_path("output_dir").endswith(f"/out/{name}")

# %% filtered-run
from argparse import Namespace

from lavis.common.config import Config
from lavis.runners import RunnerBase
from lavis.tasks import setup_task

cfg = Config(Namespace(cfg_path="run.yaml", options=["run.valid_splits=[]", "run.output_dir=out"]))
task = setup_task(cfg)
datasets, model = task.build_datasets(cfg), task.build_model(cfg)
train = datasets["coco_caption"]["train"]
train.annotation = [ann for ann in train.annotation if ann["caption"].endswith("0.")]
runner = RunnerBase(cfg, task, model, datasets, "filtered")
assert len(runner.train_loader) == 1  # 3 samples in batches of 2, the last one left out
runner.train()
assert runner.progress.samples == 2

# %% plain-torch-dataset
from argparse import Namespace

import torch
from lavis.common.config import Config
from lavis.runners import RunnerBase
from lavis.tasks import setup_task


class Plain(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"image": torch.rand(3, 64, 64), "text_input": f"number {index}", "image_id": index}


cfg = Config(Namespace(cfg_path="run.yaml", options=["run.valid_splits=[]", "run.output_dir=out"]))
task = setup_task(cfg)
runner = RunnerBase(cfg, task, task.build_model(cfg), {"mine": {"train": Plain()}}, "plain")
batch = next(iter(runner.dataloaders["train"]))
assert batch["image"].shape == (2, 3, 64, 64) and len(batch["text_input"]) == 2
runner.train()
assert runner.progress.step == 2 and runner.device.type == "cpu"

# %% same-numbers
import json
from argparse import Namespace

from lavis.common.config import Config
from lavis.runners import RunnerBase
from lavis.tasks import setup_task

losses = []
for name in ("one", "two"):
    cfg = Config(Namespace(cfg_path="run.yaml", options=["run.valid_splits=[]", "run.output_dir=out", "run.log_freq=1"]))
    import torch

    torch.manual_seed(3)
    task = setup_task(cfg)
    RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), name).train()
    lines = [json.loads(line) for line in open(f"out/{name}/log.jsonl")]
    losses.append([line["loss"] for line in lines if "loss" in line])
assert len(losses[0]) == 3 and losses[0] == losses[1]

# %% custom-schedule
from argparse import Namespace

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.runners import RunnerBase
from lavis.tasks import setup_task


@registry.register_lr_scheduler("halves")
class Halves:
    def __init__(self, optimizer, max_epoch, min_lr, init_lr, decay_rate=None, warmup_start_lr=-1, warmup_steps=0, **kwargs):
        self.optimizer, self.init_lr = optimizer, init_lr

    def step(self, cur_epoch, cur_step):
        for group in self.optimizer.param_groups:
            group["lr"] = self.init_lr / 2 ** (cur_step + 1)


cfg = Config(Namespace(cfg_path="run.yaml", options=["run.lr_sched=halves", "run.valid_splits=[]", "run.output_dir=out"]))
task = setup_task(cfg)
runner = RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), "halves")
runner.train()
assert runner.optimizer.param_groups[0]["lr"] == 1e-3 / 8

# %% runner-with-its-own-loop
import pytest
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase


@registry.register_runner("own_runner")
class Own(RunnerBase):
    def train_epoch(self, epoch):
        raise AssertionError


with pytest.raises(Exception, match="train_epoch"):
    Own(cfg=None, task=None, model=None, datasets={}, job_id="never")

# %% runner-subclass
from argparse import Namespace

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase
from lavis.tasks import setup_task


@registry.register_runner("telling")
class Telling(RunnerBase):
    def train(self):
        self.told = True
        super().train()


cfg = Config(Namespace(cfg_path="run.yaml", options=["run.runner=telling", "run.valid_splits=[]", "run.output_dir=out"]))
task = setup_task(cfg)
runner = registry.get_runner_class("telling")(cfg, task, task.build_model(cfg), task.build_datasets(cfg), "told")
runner.train()
assert runner.told and runner.progress.step == 3

# %% samples-position
from argparse import Namespace

import torch
import yaml
from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.models.base_model import BaseModel
from lavis.runners import RunnerBase
from lavis.tasks import setup_task

with open("ramp.yaml", "w") as file:
    yaml.safe_dump({"model": {"arch": "ramp", "model_type": "base", "load_finetuned": False}}, file)
seen = []


@registry.register_model("ramp")
class Ramp(BaseModel):
    PRETRAINED_MODEL_CONFIG_DICT = {"base": __import__("os").path.abspath("ramp.yaml")}

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 2))

    def forward(self, samples):
        seen.append((samples["epoch"], samples["iters"], samples["num_iters_per_epoch"]))
        return {"loss": self.weight.square().mean()}

    @classmethod
    def from_config(cls, cfg):
        return cls()


options = ["model.arch=ramp", "model.model_type=base", "run.task=image_text_pretrain", "run.max_epoch=2", "run.output_dir=out"]
text = open("run.yaml").read().replace("  num_beams: 1\n", "").replace("  max_len: 4\n", "").replace("[val]", "[]")
open("ramp_run.yaml", "w").write(text)
cfg = Config(Namespace(cfg_path="ramp_run.yaml", options=options))
task = setup_task(cfg)
RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), "ramp").train()
assert seen == [(0, 0, 3), (0, 1, 3), (0, 2, 3), (1, 0, 3), (1, 1, 3), (1, 2, 3)]

# %% task-of-losses
from argparse import Namespace

import numpy as np
from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.runners import RunnerBase
from lavis.tasks import setup_task
from lavis.tasks.base_task import BaseTask


@registry.register_task("losses")
class LossTask(BaseTask):
    def __init__(self, num_beams, report_metric=True):
        super().__init__()
        self.num_beams = num_beams
        self.report_metric = report_metric

    @classmethod
    def setup_task(cls, cfg):
        return cls(num_beams=cfg.run_cfg.num_beams, report_metric=cfg.run_cfg.get("report_metric", True))

    def valid_step(self, model, samples):
        loss = model({**samples, "text_input": ["a thing"] * len(samples["image"])})["loss"].item()
        return [loss]  # one number a batch

    def after_evaluation(self, val_result, split_name, epoch, **kwargs):
        return {"agg_metrics": -np.float32(np.mean(val_result)), "note": "not a number"}


cfg = Config(Namespace(cfg_path="run.yaml", options=["run.task=losses", "run.output_dir=out", "run.test_splits=[val]"]))
task = setup_task(cfg)
runner = RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), "losses")
runner.train()
assert runner.progress.best["metric"] < 0 and runner.progress.best["split"] == "val"

# %% task-with-its-own-loop
import json
from argparse import Namespace

import torch
from lavis.common.config import Config
from lavis.common.logger import MetricLogger, SmoothedValue
from lavis.common.registry import registry
from lavis.datasets.data_utils import prepare_sample
from lavis.runners import RunnerBase
from lavis.tasks import setup_task
from lavis.tasks.captioning import CaptionTask


@registry.register_task("plain")
class Plain(CaptionTask):
    def before_training(self, model, dataset, **kwargs):
        super().before_training(model, dataset, **kwargs)


@registry.register_task("told_epochs")
class ToldEpochs(CaptionTask):
    epochs = []

    def train_epoch(self, epoch, model, data_loader, optimizer, lr_scheduler, scaler=None, **kwargs):
        self.epochs.append((epoch, len(data_loader), scaler))
        model.train()
        return super().train_epoch(epoch, model, data_loader, optimizer, lr_scheduler, scaler=scaler, **kwargs)


@registry.register_task("own_loop")
class OwnLoop(CaptionTask):
    def _train_inner_loop(
        self, epoch, iters_per_epoch, model, data_loader, optimizer, lr_scheduler, scaler=None, start_iters=None,
        log_freq=50, cuda_enabled=False, accum_grad_iters=1,
    ):
        if not hasattr(data_loader, "__next__"):
            data_loader = iter(data_loader)
        logger = MetricLogger(delimiter="  ")
        logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
        for i in logger.log_every(range(iters_per_epoch), log_freq, "mine"):
            samples = prepare_sample(next(data_loader), cuda_enabled=cuda_enabled)
            lr_scheduler.step(cur_epoch=epoch, cur_step=i)
            with torch.autocast("cpu", enabled=scaler is not None):
                loss, loss_dict = self.train_step(model=model, samples=samples)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            logger.update(**loss_dict)
            logger.update(lr=optimizer.param_groups[0]["lr"])
        return {k: f"{meter.global_avg:.6f}" for k, meter in logger.meters.items()}


ends, told = {}, {}
for name in ("plain", "told_epochs", "own_loop"):
    options = [f"run.task={name}", "run.output_dir=out", "run.max_epoch=2", "run.log_freq=100", "run.lr_sched=linear_warmup_cosine_lr"]
    cfg = Config(Namespace(cfg_path="run.yaml", options=options))
    torch.manual_seed(4)
    task = setup_task(cfg)
    runner = RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), name)
    runner.train()
    assert runner.progress.step == 6 and runner.progress.samples == 12 and (runner.output_dir / "best.json").is_file()
    ends[name] = runner.model.net.query_tokens.detach().clone()
    lines = [json.loads(line) for line in open(f"out/{name}/log.jsonl")]
    told[name] = [(line["lr"], round(line["loss"], 3)) for line in lines if "loss" in line]
assert ToldEpochs.epochs == [(0, 3, None), (1, 3, None)]
assert torch.equal(ends["plain"], ends["own_loop"]) and torch.equal(ends["plain"], ends["told_epochs"])
assert told["plain"] == told["own_loop"] == told["told_epochs"] and len(told["plain"]) == 2


@registry.register_task("stopped_loop")
class StoppedLoop(OwnLoop):
    steps = 0

    def train_step(self, model, samples):
        StoppedLoop.steps += 1
        if StoppedLoop.steps == 5:  # in the second epoch, which the second start repeats
            runner.stop_requested = lambda: 15
        return super().train_step(model, samples)


options = ["run.task=stopped_loop", "run.output_dir=out", "run.max_epoch=2", "run.lr_sched=linear_warmup_cosine_lr"]
for number in range(2):
    cfg = Config(Namespace(cfg_path="run.yaml", options=options))
    torch.manual_seed(4)
    task = setup_task(cfg)
    runner = RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), "stopped")
    try:
        runner.train()
    except Exception as error:
        assert number == 0 and type(error).__name__ == "Preempted" and runner.progress.step == 3
assert StoppedLoop.steps == 5 + 3 and runner.progress.step == 6
assert torch.equal(ends["plain"], runner.model.net.query_tokens.detach())

# %% task-with-its-own-iterations
from argparse import Namespace

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.runners.runner_iter import RunnerIter
from lavis.tasks import setup_task
from lavis.tasks.captioning import CaptionTask


@registry.register_task("own_iterations")
class OwnIterations(CaptionTask):
    starts = []

    def train_iters(self, epoch, start_iters, iters_per_inner_epoch, model, data_loader, **kwargs):
        self.starts.append((start_iters, iters_per_inner_epoch))
        return super().train_iters(epoch, start_iters, iters_per_inner_epoch, model, data_loader, **kwargs)


options = ["run.runner=runner_iter", "run.max_iters=5", "run.iters_per_inner_epoch=2", "run.accum_grad_iters=2"]
cfg = Config(Namespace(cfg_path="run.yaml", options=["run.task=own_iterations", "run.output_dir=out", *options]))
task = setup_task(cfg)
runner = RunnerIter(cfg, task, task.build_model(cfg), task.build_datasets(cfg), "iterations")
runner.train()
assert OwnIterations.starts == [(0, 2), (2, 2), (4, 1)] and runner.progress.step == 3

# %% loop-of-a-task-by-hand
import torch
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.models import load_model
from lavis.processors import load_processor
from lavis.tasks.base_task import BaseTask

train = load_dataset("coco_caption")["train"]
train.set_processors(load_processor("blip_image_eval", {"image_size": 64}), load_processor("blip_caption"))
loader = torch.utils.data.DataLoader(train, batch_size=2, collate_fn=train.collater)
model = load_model("blip2_opt", "tiny")
optimizer = torch.optim.AdamW(model.get_optimizer_params(0.05), lr=1e-3)
schedule = registry.get_lr_scheduler_class("linear_warmup_cosine_lr")(
    optimizer=optimizer, max_epoch=2, min_lr=1e-5, init_lr=1e-3, warmup_steps=2, warmup_start_lr=1e-4
)
stats = BaseTask().train_epoch(0, model, loader, optimizer, schedule, accum_grad_iters=2)
assert float(stats["loss"]) > 0 and stats["lr"] == "0.001" and BaseTask.setup_task().inst_id_key == "instance_id"

# %% task-evaluation
from argparse import Namespace

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.runners import RunnerBase
from lavis.tasks import setup_task
from lavis.tasks.base_task import BaseTask
from lavis.tasks.retrieval import RetrievalTask


@registry.register_task("by_itself")
class ByItself(BaseTask):
    def evaluation(self, model, data_loader, **kwargs):
        seen = sum(len(samples["image"]) for samples in data_loader)
        return {"seen": seen, "of": len(data_loader.dataset), "agg_metrics": 1.0}

    def after_evaluation(self, val_result, split_name, epoch):
        return val_result


@registry.register_task("nothing")
class Nothing(BaseTask):
    def evaluation(self, model, data_loader, cuda_enabled=True):
        pass


for name, expected in (("by_itself", {"seen": 3.0, "of": 3.0, "agg_metrics": 1.0}), ("nothing", {})):
    options = [f"run.task={name}", "run.output_dir=out", "run.test_splits=[val]", "run.evaluate=True"]
    cfg = Config(Namespace(cfg_path="run.yaml", options=options))
    task = setup_task(cfg)
    runner = RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), name)
    assert runner.evaluate(skip_reload=True)["val"] == expected

# %% stream-of-another-library
from argparse import Namespace

import pytest
import torch
from lavis.common.config import Config
from lavis.runners import RunnerBase
from lavis.tasks import setup_task


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([])


cfg = Config(Namespace(cfg_path="run.yaml", options=["run.valid_splits=[]", "run.output_dir=out"]))
task = setup_task(cfg)
with pytest.raises(Exception, match="image_text_shards"):
    RunnerBase(cfg, task, task.build_model(cfg), {"mine": {"train": Stream()}}, "stream").train()

# %% runner-attributes
from argparse import Namespace

import pytest
from lavis.common.config import Config
from lavis.runners.runner_base import RunnerBase
from lavis.tasks import setup_task

cfg = Config(Namespace(cfg_path="run.yaml", options=["run.output_dir=out", "run.valid_splits=[]"]))
task = setup_task(cfg)
runner = RunnerBase(cfg=cfg, job_id="x", task=task, model=task.build_model(cfg), datasets=task.build_datasets(cfg))
assert runner.config is cfg and runner.task is task and runner.job_id == "x" and runner.model.device == runner.device
assert (runner.max_epoch, runner.init_lr, runner.train_splits, runner.valid_splits) == (1, 1e-3, ["train"], [])
assert not (runner.cuda_enabled or runner.use_distributed or runner.evaluate_only) and runner.log_freq == 50
assert str(runner.result_dir).endswith("/out/x/result") and len(runner.dataloaders["train"]) == 3
with pytest.raises(AttributeError):
    runner.optimizer  # made by train()
runner.train()
assert runner.optimizer.param_groups and runner.max_epoch == 1 and runner.unwrap_dist_model(runner.model) is runner.model

# %% custom-vqa-task
import json
from argparse import Namespace

from lavis.common.config import Config
from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.runners import RunnerBase
from lavis.tasks import setup_task
from lavis.tasks.vqa import VQATask


@registry.register_task("my_vqa")
class MyVQA(VQATask):
    def valid_step(self, model, samples):
        answers = model.predict_answers(
            samples=samples,
            answer_list=self.answer_list,
            inference_method=self.inference_method,
            num_beams=self.num_beams,
            max_len=self.max_len,
            min_len=self.min_len,
            prompt=self.prompt,
        )
        return [{"question_id": int(q), "answer": a} for a, q in zip(answers, samples["question_id"])]

    def after_evaluation(self, val_result, split_name, **kwargs):
        file = self.save_result(
            val_result,
            result_dir=registry.get_path("result_dir"),
            filename=f"{split_name}_vqa_result",
            remove_duplicate="question_id",
        )
        return self._report_metrics(result_file=file, split=split_name)

    @main_process
    def _report_metrics(self, result_file, split):
        return {"agg_metrics": len(json.load(open(result_file)))}


text = open("run.yaml").read().replace("coco_caption", "coco_vqa").replace("task: captioning", "task: my_vqa")
open("vqa.yaml", "w").write(text.replace("max_len: 4", "max_len: 4\n  inference_method: generate"))
cfg = Config(Namespace(cfg_path="vqa.yaml", options=["run.output_dir=out", "run.evaluate=True", "run.test_splits=[val]"]))
task = setup_task(cfg)
runner = RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), "vqa")
assert runner.evaluate(skip_reload=True)["val"]["agg_metrics"] == 3
