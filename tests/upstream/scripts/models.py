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

# %% task-with-report-metrics
import json
from argparse import Namespace

from lavis.common.config import Config
from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.runners import RunnerBase
from lavis.tasks import setup_task
from lavis.tasks.captioning import CaptionTask
from lavis.tasks.vqa import VQATask


@registry.register_task("counted_words")
class CountedWords(CaptionTask):
    @main_process
    def _report_metrics(self, eval_result_file, split_name):
        rows = json.load(open(eval_result_file))
        scores = super()._report_metrics(eval_result_file, split_name)
        assert eval_result_file == f"{registry.get_path('result_dir')}/{split_name}_epochtest.json" and "CIDEr" in scores
        return {"agg_metrics": len(rows), "words": sum(len(row["caption"].split()) for row in rows)}


@registry.register_task("counted_answers")
class CountedAnswers(VQATask):
    def _report_metrics(self, result_file, split):
        return {"agg_metrics": len(json.load(open(result_file))), "split": split}


text = open("run.yaml").read()
open("vqa.yaml", "w").write(text.replace("coco_caption", "coco_vqa").replace("max_len: 4", "max_len: 4\n  inference_method: generate"))
for name, path in (("counted_words", "run.yaml"), ("counted_answers", "vqa.yaml")):
    options = [f"run.task={name}", "run.output_dir=out", "run.evaluate=True", "run.test_splits=[val]"]
    cfg = Config(Namespace(cfg_path=path, options=options))
    task = setup_task(cfg)
    runner = RunnerBase(cfg, task, task.build_model(cfg), task.build_datasets(cfg), name)
    assert runner.evaluate(skip_reload=True)["val"]["agg_metrics"] == 3.0

# %% task-with-unused-report-metrics
from argparse import Namespace

import pytest
from lavis.common.config import Config
from lavis.runners import RunnerBase
from lavis.tasks.retrieval import RetrievalTask


class Reported(RetrievalTask):
    def _report_metrics(self, scores_i2t, scores_t2i, txt2img, img2txt):
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
import torch
from lavis.models import load_model
from lavis.models.blip2_models.blip2 import Blip2Base

for arch in ("blip2", "blip2_opt", "blip2_vicuna_instruct"):
    model = load_model(arch, "tiny")
    assert isinstance(model, Blip2Base) and model.query_tokens.shape == (1, 16, 96)
    with model.maybe_autocast():
        assert model.ln_vision(torch.rand(1, 2, 96)).dtype == torch.float32
model = load_model("blip2_opt", "tiny")
assert model.opt_model is model.net.language_model and model.opt_tokenizer("a")["input_ids"]
assert load_model("blip2_vicuna_instruct", "tiny").llm_proj.out_features == 96
assert not hasattr(model, "t5_model") and not hasattr(model, "itm_head")


class Mine(Blip2Base):
    def __init__(self):
        super().__init__()
        self.query_tokens = torch.nn.Parameter(torch.zeros(1, 2, 3))


assert Mine().query_tokens.shape == (1, 2, 3) and not hasattr(Mine(), "ln_vision")

# %% blip2-base-parts
import torch
import torch.nn.functional as F
from lavis.models import load_model
from lavis.models.base_model import concat_all_gather
from lavis.models.blip2_models.blip2 import Blip2Base, LayerNorm, disabled_train
from torch import nn
from transformers import BertConfig, BertForMaskedLM

torch.manual_seed(0)
sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
load_model("blip2", "tiny").tokenizer.save_pretrained("bert")
words = BertConfig(vocab_size=1000, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
BertForMaskedLM(words).save_pretrained("bert")


class MyStage(Blip2Base):
    bert_model, vit_weights = "bert", None  # LAVIS fetches both
    vit_config = {"patch_size": 8, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}

    def __init__(self, freeze_vit=True, num_query_token=5, cross_attention_freq=2, embed_dim=16, max_txt_len=12):
        super().__init__()
        self.tokenizer = self.init_tokenizer()
        self.visual_encoder, self.ln_vision = self.init_vision_encoder("eva_clip_g", 32, 0, False, "fp32")
        if freeze_vit:
            for _, param in self.visual_encoder.named_parameters():
                param.requires_grad = False
            self.visual_encoder = self.visual_encoder.eval()
            self.visual_encoder.train = disabled_train
        self.Qformer, self.query_tokens = self.init_Qformer(
            num_query_token, self.visual_encoder.num_features, cross_attention_freq
        )
        self.Qformer.resize_token_embeddings(len(self.tokenizer))
        state_dict = self.Qformer.state_dict()
        for name, param in self.Qformer.named_parameters():
            if "_query" in name:
                param.data.copy_(state_dict[name.replace("_query", "")])
        self.vision_proj = nn.Linear(self.Qformer.config.hidden_size, embed_dim)
        self.text_proj = nn.Linear(self.Qformer.config.hidden_size, embed_dim)
        self.itm_head = nn.Linear(self.Qformer.config.hidden_size, 2)
        self.temp = nn.Parameter(0.07 * torch.ones([]))
        self.max_txt_len = max_txt_len

    def forward(self, samples):
        with self.maybe_autocast():
            image_embeds = self.ln_vision(self.visual_encoder(samples["image"]))
        image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long)
        query_tokens = self.query_tokens.expand(len(image_embeds), -1, -1)
        seen = self.Qformer.bert(
            query_embeds=query_tokens,
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=image_atts,
            use_cache=True,
            return_dict=True,
        )
        text = self.tokenizer(
            samples["text_input"], padding="max_length", truncation=True, max_length=self.max_txt_len, return_tensors="pt"
        )
        read = self.Qformer.bert(text.input_ids, attention_mask=text.attention_mask, return_dict=True)
        both = self.Qformer.bert(
            text.input_ids,
            query_embeds=query_tokens,
            attention_mask=torch.cat([torch.ones(query_tokens.shape[:2], dtype=torch.long), text.attention_mask], dim=1),
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=image_atts,
            return_dict=True,
        )
        ids = text.input_ids.clone()
        ids[:, 0] = self.tokenizer.bos_token_id
        written = self.Qformer(
            ids,
            attention_mask=torch.cat([torch.ones(query_tokens.shape[:2], dtype=torch.long), text.attention_mask], dim=1),
            past_key_values=seen.past_key_values,
            return_dict=True,
            labels=ids.masked_fill(ids == self.tokenizer.pad_token_id, -100),
        )
        image_feats = F.normalize(self.vision_proj(seen.last_hidden_state), dim=-1)
        text_feat = F.normalize(self.text_proj(read.last_hidden_state[:, 0]), dim=-1)
        itm = self.itm_head(both.last_hidden_state[:, : query_tokens.size(1)]).mean(dim=1)
        sim = torch.einsum("iqd,td->itq", image_feats, concat_all_gather(text_feat)).max(-1).values / self.temp
        loss_itc = F.cross_entropy(sim, torch.arange(len(sim)), label_smoothing=0.1)
        return {"loss": loss_itc + written.loss, "loss_lm": written.loss, "itm": itm, "images": image_feats, "texts": text_feat}

    @torch.no_grad()
    def generate(self, samples, num_beams=3):
        image_embeds = self.ln_vision(self.visual_encoder(samples["image"])).repeat_interleave(num_beams, dim=0)
        return self.Qformer.generate(
            input_ids=torch.full((len(samples["image"]), 1), self.tokenizer.bos_token_id),
            query_embeds=self.query_tokens.expand(len(image_embeds), -1, -1),
            max_length=8,
            min_length=4,
            num_beams=num_beams,
            do_sample=False,
            eos_token_id=self.tokenizer.sep_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=torch.ones(image_embeds.size()[:-1], dtype=torch.long),
        )


torch.manual_seed(1)
model = MyStage()
batch = {"image": torch.rand(3, 3, 32, 32), "text_input": ["a man on a bus", "two birds", "red"]}
output = model(batch)
output.loss.backward()
assert model.visual_encoder.get_num_layer() == 2 and isinstance(model.ln_vision, LayerNorm)
assert model.query_tokens.grad.abs().sum() > 0 and model.Qformer.bert.encoder.layer[0].crossattention.self.key.weight.grad is not None
assert model.visual_encoder.vision_model.encoder.layers[0].mlp.fc1.weight.grad is None
assert not hasattr(model.Qformer.bert.encoder.layer[1], "crossattention")  # every second layer sees the picture
found = model.generate(batch)
assert len(found) == 3 and found.shape[1] <= 8 and torch.equal(found, model.generate(batch))
torch.save({"model": model.state_dict()}, "mine.pth")
other = MyStage()
assert not torch.equal(other.query_tokens, model.query_tokens)
other.load_checkpoint("mine.pth")
assert torch.equal(other(batch).itm, output.itm)

# %% blip2-base-second-stage
from argparse import Namespace

import torch
import yaml
from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.models import load_model
from lavis.models.blip2_models.blip2 import Blip2Base, disabled_train
from lavis.runners import RunnerBase
from lavis.tasks import setup_task
from torch import nn
from transformers import BertConfig, BertForMaskedLM, OPTConfig, OPTForCausalLM

small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
words = load_model("blip2", "tiny").tokenizer
words.save_pretrained("bert")
BertForMaskedLM(BertConfig(vocab_size=len(words), **small)).save_pretrained("bert")
with open("mine.yaml", "w") as file:
    model = {"arch": "my_blip2", "model_type": "base", "load_finetuned": False, "load_pretrained": False, "num_query_token": 4}
    yaml.safe_dump({"model": model}, file)


@registry.register_model("my_blip2")
class MyBlip2(Blip2Base):
    PRETRAINED_MODEL_CONFIG_DICT = {"base": __import__("os").path.abspath("mine.yaml")}
    bert_model, vit_weights = "bert", None
    vit_config = {**small, "patch_size": 8}

    def __init__(self, num_query_token):
        super().__init__()
        self.visual_encoder, self.ln_vision = self.init_vision_encoder("clip_L", 64, 0, True, "fp16")
        for name, param in self.visual_encoder.named_parameters():
            param.requires_grad = False
        self.visual_encoder = self.visual_encoder.eval()
        self.visual_encoder.train = disabled_train
        self.Qformer, self.query_tokens = self.init_Qformer(num_query_token, self.visual_encoder.num_features)
        self.Qformer.cls = None
        self.Qformer.bert.embeddings.word_embeddings = None
        self.Qformer.bert.embeddings.position_embeddings = None
        for layer in self.Qformer.bert.encoder.layer:
            layer.output = None
            layer.intermediate = None
        self.opt_tokenizer = self.init_tokenizer()
        sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        self.opt_model = OPTForCausalLM(OPTConfig(vocab_size=len(self.opt_tokenizer), **sizes))
        for name, param in self.opt_model.named_parameters():
            param.requires_grad = False
        self.opt_proj = nn.Linear(self.Qformer.config.hidden_size, self.opt_model.config.hidden_size)

    def forward(self, samples):
        image = samples["image"]
        with self.maybe_autocast():
            image_embeds = self.ln_vision(self.visual_encoder(image).float())
        image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long).to(image.device)
        query_output = self.Qformer.bert(
            query_embeds=self.query_tokens.expand(image_embeds.shape[0], -1, -1),
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=image_atts,
            return_dict=True,
        )
        inputs_opt = self.opt_proj(query_output.last_hidden_state)
        tokens = self.opt_tokenizer(samples["text_input"], return_tensors="pt", padding="longest").to(image.device)
        embeds = torch.cat([inputs_opt, self.opt_model.model.decoder.embed_tokens(tokens.input_ids)], dim=1)
        empty = torch.full(inputs_opt.size()[:-1], -100).to(image.device)
        labels = torch.cat([empty, tokens.input_ids.masked_fill(tokens.attention_mask == 0, -100)], dim=1)
        mask = torch.cat([torch.ones_like(empty), tokens.attention_mask], dim=1)
        return {"loss": self.opt_model(inputs_embeds=embeds, attention_mask=mask, return_dict=True, labels=labels).loss}

    @classmethod
    def from_config(cls, cfg):
        model = cls(num_query_token=cfg.get("num_query_token"))
        model.load_checkpoint_from_config(cfg)
        return model


text = open("run.yaml").read().replace("  num_beams: 1\n", "").replace("  max_len: 4\n", "").replace("[val]", "[]")
open("mine_run.yaml", "w").write(text.replace("captioning", "image_text_pretrain").replace("lr: 1e-3", "lr: 1e-2"))
options = ["model.arch=my_blip2", "model.model_type=base", "run.output_dir=out"]
cfg = Config(Namespace(cfg_path="mine_run.yaml", options=options))
task = setup_task(cfg)
model = task.build_model(cfg)
tower, queries = model.visual_encoder.vision_model.embeddings.class_embedding.clone(), model.query_tokens.detach().clone()
runner = RunnerBase(cfg, task, model, task.build_datasets(cfg), "mine")
runner.train()
assert runner.progress.step == 3 and not torch.equal(model.query_tokens, queries)
assert torch.equal(model.visual_encoder.vision_model.embeddings.class_embedding, tower)
found = load_model("my_blip2", "base", checkpoint="out/mine")
assert torch.equal(found.query_tokens, model.query_tokens)

# %% blip2-parts-of-ours
import torch
from lavis.models import load_model

image = torch.rand(2, 3, 64, 64)
for arch, of_text in (("blip2", True), ("blip2_opt", False), ("blip2_vicuna_instruct", True)):
    model = load_model(arch, "tiny").eval()
    embeds = model.ln_vision(model.visual_encoder(image))
    assert torch.equal(embeds, model.net.vision_model(image).last_hidden_state)
    assert model.visual_encoder.num_features == 96 and model.visual_encoder.get_num_layer() == 2
    queries, atts = model.query_tokens.expand(2, -1, -1), torch.ones(embeds.size()[:-1], dtype=torch.long)
    picture = {"encoder_hidden_states": embeds, "encoder_attention_mask": atts}
    seen = model.Qformer.bert(query_embeds=queries, **picture, return_dict=True).last_hidden_state
    assert seen.shape == (2, 16, model.Qformer.config.hidden_size)
    if of_text:
        ids = torch.tensor([[2, 5, 6], [2, 7, 8]])
        mask = torch.ones(2, 16 + 3, dtype=torch.long)
        both = model.Qformer.bert(ids, query_embeds=queries, attention_mask=mask, **picture, return_dict=True)
        assert both.last_hidden_state.shape[1] == 16 + 3 and not torch.equal(both.last_hidden_state[:, :16], seen)
    if arch == "blip2":
        fused = model.fuse(embeds, model.texts(ids, torch.ones_like(ids)))
        assert torch.equal(both.last_hidden_state[:, :16], fused)
    names = set(model.state_dict())
    for part in (model.visual_encoder, model.Qformer):
        for param in part.parameters():
            param.requires_grad = False
    left = {name for name, param in model.named_parameters() if param.requires_grad}
    assert left and not any("qformer" in name or "vision_model.encoder" in name for name in left)
    assert "net.vision_model.post_layernorm.weight" in left and set(model.state_dict()) == names

# %% blip-outputs
import torch
from lavis.models.blip2_models.modeling_opt import OPTForCausalLM
from lavis.models.blip2_models.modeling_t5 import T5Config, T5ForConditionalGeneration
from lavis.models.blip2_models.Qformer import BertConfig, BertLMHeadModel
from lavis.models.blip_models.blip_outputs import BlipOutput, BlipOutputFeatures

output = BlipOutput(loss=torch.ones([]), loss_itc=torch.zeros([]))
assert output.loss == output["loss"] == 1 and list(output) == ["loss", "loss_itc"] and output[1] == 0
assert BlipOutputFeatures(image_embeds=torch.ones(1)).text_embeds is None

# %% features-of-a-text
from lavis.models import load_model

model = load_model("blip2_feature_extractor", "tiny", is_eval=True)
for image in ("", None):  # a search by text has no picture
    features = model.extract_features({"image": image, "text_input": ["a dog"]}, mode="text")
    assert features.text_embeds_proj.shape[0] == 1

# %% task-of-ours-by-hand
from argparse import Namespace

from lavis.common.config import Config
from lavis.tasks import setup_task
from lavis.tasks.captioning import CaptionTask
from lavis.tasks.vqa import VQATask

task = CaptionTask(num_beams=3, max_len=20, min_len=1, repetition_penalty=1.0, length_penalty=1.0, evaluate=False)
assert task.num_beams == 3 and task.max_len == 20 and task.report_metric and not hasattr(task, "nothing")
task = VQATask(num_beams=3, max_len=10, min_len=1, evaluate=True, num_ans_candidates=128, prompt="Q: {}")
assert task.prompt == "Q: {}" and task.answer_list is None
task = setup_task(Config(Namespace(cfg_path="run.yaml", options=None)))
assert (task.num_beams, task.max_len, task.inst_id_key) == (1, 4, "instance_id")

# %% compute-sim-matrix
import numpy as np
import torch
from lavis.datasets.builders import load_dataset
from lavis.models import load_model
from lavis.models.blip2_models.blip2 import compute_sim_matrix
from lavis.processors import load_processor
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

model = load_model("blip2", "tiny", is_eval=True)
data = load_dataset("coco_retrieval")["val"]
data.set_processors(load_processor("blip_image_eval").build(image_size=64), load_processor("blip_caption").build())
loader = DataLoader(data, batch_size=2, collate_fn=data.collater)
i2t, t2i = model.compute_sim_matrix(loader, task_cfg=OmegaConf.create({"k_test": 2}))
assert i2t.shape == (len(data.image), len(data.text)) == t2i.T.shape
assert ((i2t > -100).sum(1) == 2).all() and ((t2i > -100).sum(1) == 2).all()
again = compute_sim_matrix(model, loader, k_test=2)
assert np.array_equal(i2t, again[0]) and np.array_equal(t2i, again[1])

# %% first-stage-parts
import torch
import torch.nn.functional as F
from lavis.models import load_model

model = load_model("blip2", "tiny", is_eval=True)
images, texts = torch.rand(2, 3, 64, 64), ["a dog", "two cats"]
tokens = model.tokenizer(texts, padding="max_length", truncation=True, max_length=24, return_tensors="pt")
with torch.no_grad():
    feats, vit_feats = model.forward_image(images)
    image_embeds = F.normalize(model.vision_proj(feats), dim=-1)
    text_embeds = F.normalize(model.text_proj(model.forward_text(tokens)), dim=-1)
    scores = model.compute_itm(image_inputs=vit_feats, text_ids=tokens.input_ids, text_atts=tokens.attention_mask)
    known = model.extract_features({"image": images, "text_input": texts}, mode="image").image_embeds_proj
assert torch.allclose(image_embeds, known) and text_embeds.shape == (2, 64) and scores.shape == (2,)

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

# %% keys-as-attributes
import torch
from lavis.models import load_model

model = load_model("blip2_t5_instruct", "tiny")
assert (model.max_txt_len, model.max_output_txt_len, model.qformer_text_input, model.few_shot_prob) == (32, 32, True, 0)
batch = {"image": torch.rand(1, 3, 64, 64), "text_input": ["a b c d e f g h"], "text_output": ["x"]}
whole, model.max_txt_len = model(batch).loss, 4
assert model(batch).loss != whole and model.config.max_txt_len == 4
plain = load_model("blip2_opt", "tiny")
plain.max_txt_len, plain.prompt = 2, "a photo of"
assert plain({"image": batch["image"], "text_input": ["a b c d e f g h"]}).loss == plain({"image": batch["image"], "text_input": ["a b c"]}).loss

# %% load-state-dict
import pytest
import torch
from lavis.models import load_model

torch.manual_seed(1)
model, other = load_model("blip2_opt", "tiny"), load_model("blip2_opt", "tiny")
theirs = {"query_tokens": model.query_tokens.detach(), "opt_proj.bias": torch.ones(96)}
message = other.load_state_dict(theirs, strict=False)
assert torch.equal(other.query_tokens, model.query_tokens) and other.opt_proj.bias.sum() == 96
assert message.missing_keys and not message.unexpected_keys
other.load_state_dict(model.state_dict())
assert torch.equal(other.opt_proj.bias, model.opt_proj.bias)
with pytest.raises(Exception, match="strange"):
    other.load_state_dict({**theirs, "strange": torch.zeros(1)}, strict=False)

# %% model-subclass
import torch
from lavis.common.registry import registry
from lavis.models import load_model
from lavis.models.blip2_models.blip2_t5_instruct import Blip2T5Instruct


@registry.register_model("twice_instruct")
class Twice(Blip2T5Instruct):
    PRETRAINED_MODEL_CONFIG_DICT = {"tiny": Blip2T5Instruct.default_config_path("tiny")}

    def forward(self, samples):
        return {"loss": 2 * super().forward(samples)["loss"]}


batch = {"image": torch.rand(1, 3, 64, 64), "text_input": ["a"], "text_output": ["b"]}
model = load_model("twice_instruct", "tiny")
assert type(model) is Twice and model(batch).loss == 2 * Blip2T5Instruct.forward(model, batch)["loss"]

# %% notebook-of-blip2
import torch
from lavis.models import load_model_and_preprocess
from PIL import Image

raw_image = Image.new("RGB", (80, 60), "blue")
for name in ("blip2_t5", "blip2_opt"):
    model, vis_processors, _ = load_model_and_preprocess(name=name, model_type="tiny", is_eval=True, device=torch.device("cpu"))
    assert [*vis_processors.keys()] == ["train", "eval"]
    image = vis_processors["eval"](raw_image).unsqueeze(0)
    assert len(model.generate({"image": image})) == 1
    assert len(model.generate({"image": image}, use_nucleus_sampling=True, num_captions=3)) == 3
    context = [("which city is this?", "singapore"), ("why?", "it has a statue of a merlion")]
    prompt = " ".join("Question: {} Answer: {}.".format(*turn) for turn in context) + " Question: where? Answer:"
    assert len(model.generate({"image": image, "prompt": prompt}, use_nucleus_sampling=False)) == 1
model, vis_processors, text_processors = load_model_and_preprocess("blip2_image_text_matching", "tiny", is_eval=True)
pair = {"image": vis_processors["eval"](raw_image).unsqueeze(0), "text_input": text_processors["eval"]("merlion in Singapore")}
scores = torch.nn.functional.softmax(model(pair, match_head="itm"), dim=1)
assert f"{scores[:, 1].item():.3%}".endswith("%") and "%.4f" % model(pair, match_head="itc")

# %% towers
import pytest
import torch
from lavis.models.clip_vit import create_clip_vit_L
from lavis.models.eva_vit import create_eva_vit_g

sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
for create, dtype in ((create_eva_vit_g, torch.float32), (create_clip_vit_L, torch.float32)):
    torch.manual_seed(0)
    visual_encoder = create(28, use_checkpoint=False, precision="fp32", weights=None, sizes=sizes)
    assert visual_encoder.num_features == 16 and visual_encoder.get_num_layer() == 2
    assert visual_encoder(torch.rand(2, 3, 28, 28)).shape == (2, 5, 16)
with pytest.raises(Exception, match="drop path"):
    create_eva_vit_g(28, 0.4, weights=None, sizes=sizes)

# %% momentum
import copy

import pytest
import torch
from lavis.models.base_model import BaseEncoder, BaseModel, MomentumDistilationMixin, SharedQueueMixin, tile
from torch import nn


class Encoder(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward_features(self, samples, **kwargs):
        return self.layer(samples)


class Momentum(BaseModel, MomentumDistilationMixin, SharedQueueMixin):
    def __init__(self):
        super().__init__()
        self.visual_encoder, self.visual_encoder_m = Encoder(), Encoder()
        self.model_pairs = [[self.visual_encoder, self.visual_encoder_m]]
        self.momentum, self.queue_size = 0.9, 4
        self.copy_params()
        self.register_buffer("image_queue", torch.zeros(3, 4))
        self.register_buffer("text_queue", torch.zeros(3, 4))
        self.register_buffer("idx_queue", torch.full((1, 4), -100))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))


model = Momentum()
own, slow = model.visual_encoder.layer.weight, model.visual_encoder_m.layer.weight
assert torch.equal(own, slow) and own.requires_grad and not slow.requires_grad and model.visual_encoder.device.type == "cpu"
before = slow.clone()
with torch.no_grad():
    own.add_(1.0)
model._momentum_update()
torch.testing.assert_close(slow, before + 0.1)
for turn in range(3):
    feats = torch.full((2, 3), float(turn + 1))
    model._dequeue_and_enqueue(feats, -feats, torch.tensor([[turn], [turn + 10]]))
assert model.image_queue[0].tolist() == [3.0, 3.0, 2.0, 2.0] and model.text_queue[2].tolist() == [-3.0, -3.0, -2.0, -2.0]
assert model.idx_queue[0].tolist() == [2, 12, 1, 11] and int(model.queue_ptr) == 2
with pytest.raises(Exception, match="no multiple"):
    model._dequeue_and_enqueue(torch.zeros(3, 3), torch.zeros(3, 3))
assert tile(torch.tensor([[1, 2], [3, 4]]), 0, 2).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
