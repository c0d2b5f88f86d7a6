"""Models and tasks, as a notebook calls them. Each cell is run by itself, in a small prepared world."""

# %% model-zoo
from lavis.models import model_zoo

assert "tiny" in dict(model_zoo)["blip2_opt"] and "tiny" in model_zoo.model_zoo["blip2"]
assert str(model_zoo).startswith("Architectures") and len(model_zoo) == sum(len(types) for _, types in model_zoo)

# %% load-model
import torch
from lavis.models import load_model

model = load_model("blip2_opt", "tiny", is_eval=True, device="cpu")
assert not model.training and model.device == torch.device("cpu")

# %% load-model-and-preprocess
import numpy as np
import torch
from lavis.models import load_model_and_preprocess
from PIL import Image

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model, vis_processors, txt_processors = load_model_and_preprocess("blip2_opt", "tiny", is_eval=True, device=device)
raw = Image.fromarray(np.full((40, 50, 3), 90, np.uint8))
image = vis_processors["eval"](raw).unsqueeze(0).to(device)
texts = model.generate({"image": image, "prompt": txt_processors["eval"]("A thing.")}, num_beams=1, max_length=4)
assert len(texts) == 1 and isinstance(texts[0], str)

# %% load-preprocess
from lavis.models import load_preprocess
from lavis.models.blip2_models.blip2_opt import Blip2OPT
from omegaconf import OmegaConf

vis, txt = load_preprocess(OmegaConf.load(Blip2OPT.default_config_path("tiny")).preprocess)
assert vis["eval"].image_size == 64 and txt["train"]("A!") == "a"
vis, txt = load_preprocess(OmegaConf.create({}))
assert vis["train"]("as it is") == "as it is" == txt["eval"]("as it is")

# %% outputs
import torch
from lavis.models import load_model

model = load_model("blip2", "tiny")
batch = {"image": torch.rand(2, 3, 64, 64), "text_input": ["a dog", "two cats"], "image_id": torch.tensor([0, 1])}
output = model(batch)
assert output.loss is output["loss"] and output.loss_itc + output.loss_itm + output.loss_lm == output.loss
output.loss.backward()
assert not hasattr(output, "loss_nothing") and set(output.keys()) >= {"loss", "loss_itc"}

# %% extract-features
import torch
from lavis.models import load_model

model = load_model("blip2_feature_extractor", "tiny", is_eval=True)
sample = {"image": torch.rand(1, 3, 64, 64), "text_input": ["a dog"]}
image, text = model.extract_features(sample, mode="image"), model.extract_features(sample, mode="text")
similarity = (image.image_embeds_proj @ text.text_embeds_proj[:, 0, :].t()).max()
assert -1.001 <= similarity <= 1.001 and model.extract_features(sample).multimodal_embeds.shape[0] == 1

# %% image-text-matching
import torch
from lavis.models import load_model

model = load_model("blip2_image_text_matching", "tiny", is_eval=True)
sample = {"image": torch.rand(1, 3, 64, 64), "text_input": ["a dog"]}
itm = torch.nn.functional.softmax(model(sample, match_head="itm"), dim=1)
assert itm.shape == (1, 2) and model(sample, match_head="itc").numel() == 1

# %% from-pretrained
import pytest
from lavis.common.registry import registry
from lavis.models.blip2_models.blip2_opt import Blip2OPT

model = Blip2OPT.from_pretrained(model_type="tiny")
assert type(model) is Blip2OPT is registry.get_model_class("blip2_opt")
with pytest.raises(Exception, match="did you mean"):
    Blip2OPT.from_pretrained(model_type="tinny")

# %% pretrained-model-config-dict
import os

from lavis.common.registry import registry

cls = registry.get_model_class("blip2_opt")
assert "tiny" in cls.PRETRAINED_MODEL_CONFIG_DICT and "pretrain_opt2.7b" in cls.PRETRAINED_MODEL_CONFIG_DICT.keys()
assert os.path.isfile(cls.default_config_path("tiny"))

# %% model-from-config
from lavis.common.registry import registry
from omegaconf import OmegaConf

cls = registry.get_model_class("blip2")
cfg = OmegaConf.load(cls.default_config_path("tiny")).model
cfg.num_query_token = 5
assert cls.from_config(cfg).net.query_tokens.shape[1] == 5

# %% load-checkpoint
import torch
from lavis.models import load_model

torch.manual_seed(1)
first = load_model("blip2", "tiny")
torch.save({"model": first.state_dict()}, "first.pth")
second = load_model("blip2", "tiny")
message = second.load_checkpoint("first.pth")
assert message.missing_keys == [] and all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
third = load_model("blip2", "tiny", checkpoint="first.pth")
assert torch.equal(third.net.query_tokens, first.net.query_tokens)

# %% load-checkpoint-misfit
import pytest
import torch
from lavis.models import load_model

model = load_model("blip2", "tiny")
state = model.state_dict()
state["strange"] = torch.zeros(2)
torch.save({"model": state}, "strange.pth")
with pytest.raises(Exception, match="strange"):  # LAVIS leaves it out in silence
    model.load_checkpoint("strange.pth")
with pytest.raises(Exception, match="no such file"):
    model.load_checkpoint("nowhere.pth")

# %% load-from-pretrained
import torch
from lavis.models import load_model

first, second = load_model("blip2", "tiny"), load_model("blip2_opt", "tiny")
state = {name: tensor for name, tensor in first.state_dict().items() if name.startswith(("net.vision", "net.query"))}
torch.save({"model": {**state, "t5_proj.bias": torch.ones(3), "other": torch.ones(1)}}, "start.pth")
before = second.net.language_projection.weight.detach().clone()
message = second.load_from_pretrained(url_or_filename="start.pth")
assert torch.equal(second.net.query_tokens, first.net.query_tokens) and message.missing_keys
assert {"t5_proj.bias", "other"} <= set(message.unexpected_keys)
assert torch.equal(second.net.language_projection.weight, before)

# %% load-checkpoint-address
import os

import torch
from lavis.common.utils import get_cache_path
from lavis.models import load_model

os.makedirs("mirror/example.org")  # in the place of the address
os.environ["LAVIS_EXT_MIRROR"] = os.path.abspath("mirror")
try:
    torch.manual_seed(5)
    first, second = load_model("blip2", "tiny"), load_model("blip2", "tiny")
    torch.save({"model": first.state_dict()}, "mirror/example.org/blip2.pth")
    second.load_checkpoint("https://example.org/blip2.pth")
    assert torch.equal(first.net.query_tokens, second.net.query_tokens)
    assert os.path.isfile(get_cache_path("models/example.org/blip2.pth"))
finally:
    del os.environ["LAVIS_EXT_MIRROR"]

# %% optimizer-params
from lavis.models import load_model

model = load_model("blip2", "tiny")
groups = model.get_optimizer_params(weight_decay=0.05, lr_scale=1)
assert {group["weight_decay"] for group in groups} == {0.05, 0.0} and all(group["lr_scale"] == 1 for group in groups)
count = sum(p.numel() for group in groups for p in group["params"])
assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)
assert model.show_n_params(return_str=False) >= count and model.show_n_params()[-1] in "KM"

# %% custom-model
import pytest
import torch
import yaml
from lavis.common.registry import registry
from lavis.models import load_model, load_model_and_preprocess, model_zoo
from lavis.models.base_model import BaseModel
from torch import nn

with open("my_model.yaml", "w") as file:
    model = {"arch": "my_model", "model_type": "base", "width": 6, "load_finetuned": False, "load_pretrained": False}
    yaml.safe_dump({"model": model, "preprocess": {"vis_processor": {"eval": {"name": "blip_image_eval", "image_size": 8}}}}, file)


@registry.register_model("my_model")
class MyModel(BaseModel):
    PRETRAINED_MODEL_CONFIG_DICT = {"base": __import__("os").path.abspath("my_model.yaml")}

    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, width)

    def forward(self, samples):
        return {"loss": self.layer(samples["image"].flatten(1)).square().mean(), "logits": samples["image"]}

    @classmethod
    def from_config(cls, cfg):
        model = cls(width=cfg.get("width", 4))
        model.load_checkpoint_from_config(cfg)
        return model


model = load_model("my_model", "base")
assert model.layer.out_features == 6 and type(MyModel.from_pretrained("base")) is MyModel
assert model({"image": torch.rand(2, 3, 8, 8)}).loss.requires_grad and dict(model_zoo)["my_model"] == ["base"]
assert load_model_and_preprocess("my_model", "base")[1]["eval"].image_size == 8
with pytest.raises(Exception, match="no type"):
    load_model("my_model", "large")
torch.save({"model": model.state_dict()}, "mine.pth")
assert model.load_checkpoint("mine.pth").missing_keys == []
assert torch.equal(load_model("my_model", "base", checkpoint="mine.pth").layer.weight, model.layer.weight)

# %% setup-task
from argparse import Namespace

import lavis.tasks as tasks
from lavis.common.config import Config
from lavis.tasks.captioning import CaptionTask

cfg = Config(Namespace(cfg_path="run.yaml", options=None))
task = tasks.setup_task(cfg)
assert type(task) is CaptionTask is type(CaptionTask.setup_task(cfg=cfg))
datasets, model = task.build_datasets(cfg), task.build_model(cfg)
assert sorted(datasets["coco_caption"]) == ["train", "val"] and len(datasets["coco_caption"]["train"]) == 6
data = datasets["coco_caption"]["val"]
rows = task.valid_step(model=model, samples=data.collater([data[0], data[1]]))
assert [set(row) for row in rows] == [{"caption", "image_id"}] * 2
loss, losses = task.train_step(model=model, samples=datasets["coco_caption"]["train"].collater([datasets["coco_caption"]["train"][0]]))
assert loss.requires_grad and losses["loss"] is loss

# %% after-evaluation
import json
import os
from argparse import Namespace

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.tasks import setup_task

os.makedirs("out/result")
registry.mapping["paths"]["result_dir"] = os.path.abspath("out/result")
cfg = Config(Namespace(cfg_path="run.yaml", options=None))
task = setup_task(cfg)
data, model = task.build_datasets(cfg)["coco_caption"]["val"], task.build_model(cfg)
task.before_evaluation(model=model, dataset=data)
rows = task.valid_step(model=model, samples=data.collater([data[i] for i in range(3)]))
metrics = task.after_evaluation(val_result=rows, split_name="val", epoch=0)
assert "agg_metrics" in metrics and len(json.load(open("out/result/val_epoch0.json"))) == 3

# %% save-result
import json

from lavis.tasks.base_task import BaseTask

rows = [{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}, {"image_id": 2, "caption": "c"}]
path = BaseTask.save_result(result=rows, result_dir=".", filename="val_epoch0", remove_duplicate="image_id")
assert json.load(open(path)) == [rows[0], rows[2]]

# %% custom-task
import torch
from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask


@registry.register_task("my_task")
class MyTask(BaseTask):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    @classmethod
    def setup_task(cls, cfg):
        return cls(factor=cfg.run_cfg.get("factor", 2))

    def valid_step(self, model, samples):
        return [{"value": self.factor * value} for value in model(samples)]

    def after_evaluation(self, val_result, split_name, epoch, **kwargs):
        return {"agg_metrics": sum(row["value"] for row in val_result)}


task = MyTask(factor=3)
rows = task.valid_step(lambda samples: samples["x"], {"x": [1, 2]})
assert task.after_evaluation(val_result=rows, split_name="val", epoch=0) == {"agg_metrics": 9}
assert task.inst_id_key == "instance_id" and registry.get_task_class("my_task") is MyTask
model = torch.nn.Linear(1, 1)
model.device = "cpu"
assert [row["value"] for row in MyTask(1).evaluation(lambda s: s["x"], [], cuda_enabled=False)] == []

# %% caption-task-subclass
from argparse import Namespace

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.tasks.captioning import CaptionTask


@registry.register_task("short_captions_task")
class ShortTask(CaptionTask):
    def valid_step(self, model, samples):
        rows = super().valid_step(model=model, samples=samples)
        return [{**row, "caption": row["caption"][: self.most]} for row in rows]

    @property
    def most(self):
        return 3 * self.num_beams  # keys of `run:` are attributes


cfg = Config(Namespace(cfg_path="run.yaml", options=["run.task=short_captions_task"]))
from lavis.tasks import setup_task

task = setup_task(cfg)
model, data = task.build_model(cfg), task.build_datasets(cfg)["coco_caption"]["val"]
assert all(len(row["caption"]) <= 3 for row in task.valid_step(model, data.collater([data[0]])))

# %% task-with-its-own-loop
from argparse import Namespace

import pytest
from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.runners import RunnerBase
from lavis.tasks.base_task import BaseTask


@registry.register_task("own_loop")
class OwnLoop(BaseTask):
    def train_epoch(self, epoch, model, data_loader, optimizer, lr_scheduler, **kwargs):
        raise AssertionError


cfg = Config(Namespace(cfg_path="run.yaml", options=["run.task=own_loop"]))
with pytest.raises(Exception, match="train_epoch"):
    RunnerBase(cfg=cfg, task=OwnLoop(), model=None, datasets={}, job_id="never")

# %% task-with-report-metrics
from argparse import Namespace

import pytest
from lavis.common.config import Config
from lavis.runners import RunnerBase
from lavis.tasks.vqa import VQATask


class Reported(VQATask):
    def _report_metrics(self, result_file, split):
        raise AssertionError


with pytest.raises(Exception, match="_report_metrics"):
    RunnerBase(Config(Namespace(cfg_path="run.yaml", options=None)), Reported(), None, {}, "never")

# %% task-values-by-position
import pytest
from lavis.tasks.captioning import CaptionTask


class Mine(CaptionTask):
    def __init__(self, num_beams, max_len, **kwargs):
        super().__init__(num_beams=num_beams, max_len=max_len, **kwargs)

    def valid_step(self, model, samples):
        return super().valid_step(model, samples)


assert Mine(3, 7).num_beams == 3
with pytest.raises(Exception, match="by name"):
    CaptionTask(3, 7)

# %% blip2-base
import pytest

with pytest.raises(ImportError):
    from lavis.models.blip2_models.blip2 import Blip2Base

# %% compute-sim-matrix
from lavis.models import load_model

assert not hasattr(load_model("blip2", "tiny"), "compute_sim_matrix")  # the task `retrieval` ranks

# %% instruct-load
import torch
from lavis.models import load_model, load_model_and_preprocess, model_zoo
from lavis.models.blip2_models.blip2_t5_instruct import Blip2T5Instruct
from lavis.models.blip2_models.blip2_vicuna_instruct import Blip2VicunaInstruct

assert {"vicuna7b", "vicuna13b"} <= set(dict(model_zoo)["blip2_vicuna_instruct"])
assert {"flant5xl", "flant5xxl"} <= set(Blip2T5Instruct.PRETRAINED_MODEL_CONFIG_DICT)
model, vis_processors, txt_processors = load_model_and_preprocess("blip2_vicuna_instruct", "tiny", is_eval=True, device="cpu")
assert type(model) is Blip2VicunaInstruct and vis_processors["eval"].image_size == 64
assert isinstance(load_model(name="blip2_t5_instruct", model_type="tiny"), Blip2T5Instruct)

# %% instruct-generate
import torch
from lavis.models import load_model_and_preprocess
from PIL import Image

model, vis_processors, _ = load_model_and_preprocess(name="blip2_vicuna_instruct", model_type="tiny", is_eval=True, device="cpu")
image = vis_processors["eval"](Image.new("RGB", (50, 40), "red")).unsqueeze(0)
samples = {"image": image, "prompt": "What is unusual about this image?"}
short = model.generate(samples, num_beams=1, max_length=4)
assert len(short) == 1 and isinstance(short[0], str) and samples["prompt"].startswith("What")
torch.manual_seed(0)
some = model.generate(
    samples,
    use_nucleus_sampling=True,
    num_beams=1,
    max_length=6,
    min_length=1,
    top_p=0.9,
    repetition_penalty=1.5,
    length_penalty=1.0,
    num_captions=3,
    temperature=1.0,
)
assert len(some) == 3
video = image.unsqueeze(2).repeat(1, 1, 4, 1, 1)
assert len(model.generate({"image": video, "prompt": "describe the video"}, num_beams=1, max_length=3)) == 1

# %% instruct-answers
import torch
from lavis.models import load_model

model = load_model("blip2_t5_instruct", "tiny", is_eval=True)
samples = {"image": torch.rand(2, 3, 64, 64), "text_input": ["is it red?", "how many?"]}
answers = model.predict_answers(
    samples=samples,
    answer_list=None,
    inference_method="generate",
    num_beams=2,
    max_len=4,
    min_len=1,
    num_ans_candidates=128,
    prompt="Question: {} Short answer:",
)
assert len(answers) == 2 and samples["text_input"][0] == "is it red?"
choices = {**samples, "choices": [["yes", "no"], ["one", "two", "three"]]}
assert len(model.predict_answers(choices, prompt="Question: {} Options: {}. Short answer:", num_beams=1, max_len=3)) == 2
words = {**samples, "ocr_tokens": [["stop"], ["exit", "left"]]}
assert len(model.predict_answers(words, prompt="OCR tokens: {}. Question: {} Short answer:", num_beams=1, max_len=3)) == 2

# %% instruct-rank
import torch
from lavis.models import load_model

model = load_model("blip2_t5_instruct", "tiny", is_eval=True)
samples = {"image": torch.rand(2, 3, 64, 64), "text_input": ["is it red?", "how many?"]}
# LAVIS takes `rank` for `generate`
assert set(model.predict_answers(samples, inference_method="rank", answer_list=["yes", "no", "two"])) <= {"yes", "no", "two"}

# %% instruct-classes
import torch
from lavis.models import load_model

for arch in ("blip2_vicuna_instruct", "blip2_t5_instruct"):
    model = load_model(arch, "tiny", is_eval=True)
    samples = {"image": torch.rand(2, 3, 64, 64), "prompt": "what is it?"}
    ranks = model.predict_class(samples, candidates=["a dog", "a cat", "a ball"])
    assert ranks.shape == (2, 3) and sorted(ranks[0].tolist()) == [0, 1, 2]
    best = model.predict_class(samples=samples, candidates=["a dog", "a cat", "a ball"], n_segments=3)[:, 0]
    assert best.shape == (2,)
    own = model.predict_class({**samples, "text_input": ["x", "y"], "prompt": "{}?"}, [["yes", "no"], ["one", "two", "three"]])
    assert [len(row) for row in own] == [2, 3]

# %% instruct-forward
import torch
from lavis.models import load_model

model = load_model("blip2_vicuna_instruct", "tiny").train()
samples = {"image": torch.rand(2, 3, 64, 64), "text_input": ["what is it?", "how many?"], "text_output": ["a dog", "two"]}
output = model(samples)
output["loss"].backward()
assert output.loss is output["loss"] and model.net.qformer.embeddings.word_embeddings.weight.grad.abs().sum() > 0

# %% instruct-few-shots
import torch
from lavis.common.registry import registry
from omegaconf import OmegaConf

cls = registry.get_model_class("blip2_t5_instruct")
cfg = OmegaConf.load(cls.default_config_path("tiny")).model
cfg.num_few_shot_examples, cfg.few_shot_prob = 2, 1.0
model = cls.from_config(cfg).train()
shots = [{"image": torch.rand(2, 3, 64, 64), "text_input": ["a", "b"]} for _ in range(2)]
batch = {"image": torch.rand(2, 3, 64, 64), "text_input": ["what?", "who?"], "text_output": ["a dog", "two"]}
assert model({**batch, "few_shot_samples": shots}).loss != model(batch).loss

# %% instruct-trimmed-checkpoint
import torch
from lavis.models import load_model
from lavis.models.blip2_models.blip2_vicuna_instruct import Blip2VicunaInstruct
from omegaconf import OmegaConf

hidden = 96
state = {"llm_proj.bias": torch.ones(hidden), "query_tokens": torch.zeros(1, 16, hidden), "Qformer.bert.embeddings.LayerNorm.bias": torch.ones(hidden)}
torch.save({"model": state}, "instruct_blip_trimmed.pth")
cfg = OmegaConf.load(Blip2VicunaInstruct.default_config_path("tiny")).model
model = Blip2VicunaInstruct.from_config(cfg)
message = model.load_from_pretrained("instruct_blip_trimmed.pth")
assert message.unexpected_keys == [] and message.missing_keys
assert torch.equal(model.net.language_projection.bias, torch.ones(hidden))
assert torch.equal(model.net.qformer.embeddings.layernorm.bias, torch.ones(hidden))
