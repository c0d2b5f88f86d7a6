"""The registry, Config(args) and the helpers of `common`, as a notebook calls them. Each cell is run by itself."""

# %% registry-mapping
from lavis.common.registry import registry

names = registry.mapping["builder_name_mapping"]
assert "coco_caption" in names and "coco_caption" in names.keys()
assert names["coco_caption"] is registry.get_builder_class("coco_caption")
assert "blip2_opt" in registry.mapping["model_name_mapping"] and registry.mapping["task_name_mapping"]["vqa"]
assert sorted(registry.mapping) == sorted([
    "builder_name_mapping", "task_name_mapping", "processor_name_mapping", "model_name_mapping",
    "lr_scheduler_name_mapping", "runner_name_mapping", "state", "paths",
])

# %% registry-paths
import os

from lavis.common.registry import registry

assert registry.get_path("cache_root") == os.environ["LAVIS_EXT_CACHE_ROOT"]
assert os.path.isdir(os.path.join(registry.get_path("library_root"), "configs"))
registry.register_path("my_results", "/data/results")
assert registry.get_path("my_results") == "/data/results"

# %% registry-cache-root
import os

from lavis.common.registry import registry
from lavis.common.utils import get_cache_path
from lavis.datasets.builders import load_dataset

world = os.environ.pop("LAVIS_EXT_CACHE_ROOT")  # a script names the folder in place of the environment
registry.mapping["paths"]["cache_root"] = world
try:
    assert get_cache_path("coco/images") == os.path.join(world, "coco/images")
    assert len(load_dataset("coco_caption")["train"]) == 6
finally:
    os.environ["LAVIS_EXT_CACHE_ROOT"] = world

# %% registry-state
from lavis.common.registry import registry

registry.register("experiment.note", "first")
assert registry.get("experiment.note") == "first"
assert registry.get("experiment.other", default=3, no_warning=True) == 3
assert registry.get("SPLIT_NAMES") == ["train", "val", "test"] and registry.get("MAX_INT") > 2**31
assert registry.unregister("experiment") == {"note": "first"}
assert registry.get("experiment.note", no_warning=True) is None

# %% registry-lists
from lavis.common.registry import registry

assert {"coco_caption", "coco_vqa", "flickr30k_caption"} <= set(registry.list_datasets())
assert {"blip2", "blip2_opt", "blip2_t5"} <= set(registry.list_models())
assert {"captioning", "vqa", "retrieval", "image_text_pretrain"} <= set(registry.list_tasks())
assert {"blip_caption", "blip2_image_train", "blip_image_eval"} <= set(registry.list_processors())
assert {"runner_base", "runner_iter"} <= set(registry.list_runners())
assert "linear_warmup_cosine_lr" in registry.list_lr_schedulers()

# %% registry-unknown
import pytest
from lavis.common.registry import registry

with pytest.raises(Exception, match="did you mean 'coco_caption'"):
    registry.get_builder_class("coco_captoin")
with pytest.raises(KeyError):
    registry.get_model_class("blip2_otp")
with pytest.raises(KeyError):
    registry.get_path("nowhere")

# %% registry-taken
import pytest
from lavis.common.registry import registry
from lavis.processors.base_processor import BaseProcessor


@registry.register_processor("twice")
class First(BaseProcessor):
    pass


with pytest.raises(KeyError):
    @registry.register_processor("twice")
    class Second(BaseProcessor):
        pass

registry.mapping["processor_name_mapping"].pop("twice")  # what a notebook does before a cell is run again


@registry.register_processor("twice")
class Third(BaseProcessor):
    pass


assert registry.get_processor_class("twice") is Third

# %% registry-taken-data-set
import pytest
from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder

with pytest.raises(KeyError):
    @registry.register_builder("coco_caption")
    class Mine(BaseDatasetBuilder):
        pass

# %% config-sections
from argparse import Namespace

from lavis.common.config import Config, node_to_dict
from lavis.common.registry import registry

cfg = Config(Namespace(cfg_path="run.yaml", options=["run.max_epoch=3", "run.init_lr=1e-4"]))
assert cfg.run_cfg.max_epoch == 3 and cfg.run_cfg["init_lr"] == 1e-4 and cfg.run_cfg.get("nothing", 7) == 7
assert "task" in cfg.run_cfg and cfg.run_cfg.task == "captioning"
assert cfg.model_cfg.arch == "blip2_opt" and cfg.model_cfg.image_size == 64  # from the model's own YAML
assert cfg.datasets_cfg.coco_caption.vis_processor.train.name == "blip_image_eval"
assert list(cfg.datasets_cfg) == ["coco_caption"] and "coco_caption" in cfg.get_config().datasets
assert cfg.to_dict()["run"]["max_epoch"] == 3 == node_to_dict(cfg.run_cfg)["max_epoch"]
assert registry.get("configuration") is cfg
cfg.pretty_print()

# %% config-options-in-pairs
from argparse import Namespace

from lavis.common.config import Config

cfg = Config(Namespace(cfg_path="run.yaml", options=["run.seed", "7", "run.train_splits", "[train]"]))
assert cfg.run_cfg.seed == 7 and cfg.run_cfg.train_splits == ["train"]
assert Config(Namespace(cfg_path="run.yaml", options=None)).run_cfg.seed == 1

# %% config-unknown-key
from argparse import Namespace

import pytest
from lavis.common.config import Config

with pytest.raises(Exception, match="did you mean 'max_epoch'") as error:
    Config(Namespace(cfg_path="run.yaml", options=["run.max_epochs=3", "datasets.coco_captoin.type=default"]))
assert len(error.value.problems) >= 2  # all mistakes at once

# %% config-changed
from argparse import Namespace

import pytest
from lavis.common.config import Config

cfg = Config(Namespace(cfg_path="run.yaml", options=None))
cfg.run_cfg.max_epoch = 4
cfg.run_cfg.distributed = False  # what LAVIS' init_distributed_mode writes
cfg.model_cfg.prompt = "a photo of"
file = cfg.typed()
assert file.run.max_epoch == 4 and file.model.prompt == "a photo of"
cfg.run_cfg.batch_size_train = 0
with pytest.raises(Exception, match="batch_size_train"):
    cfg.typed()

# %% logger
import logging

import torch
from lavis.common.logger import AttrDict, MetricLogger, SmoothedValue, setup_logger

setup_logger()
meters = MetricLogger(delimiter="  ")
meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
for step in meters.log_every(range(4), 2, "Train"):
    meters.update(loss=torch.tensor(float(step)), lr=0.1)
meters.synchronize_between_processes()
assert meters.loss.global_avg == 1.5 and meters.loss.median == 1.0 and meters.loss.max == 3.0
assert meters.meters["lr"].value == 0.1 and str(meters.meters["lr"]) == "0.100000"
assert meters.global_avg() == "lr: 0.1000  loss: 1.5000"
assert AttrDict(a=1).a == 1

# %% distributed
from types import SimpleNamespace

from lavis.common.dist_utils import (
    get_rank,
    get_world_size,
    init_distributed_mode,
    is_dist_avail_and_initialized,
    is_main_process,
    main_process,
)

args = SimpleNamespace()
init_distributed_mode(args)
assert (args.distributed, args.rank, args.world_size, args.gpu) == (False, 0, 1, 0)
assert (get_rank(), get_world_size(), is_main_process(), is_dist_avail_and_initialized()) == (0, 1, True, False)
assert main_process(lambda x: x + 1)(1) == 2

# %% utils
import json

from lavis.common.registry import registry
from lavis.common.utils import get_abs_path, get_cache_path, is_convertible_to_int, is_serializable, is_url, load_json, now

assert get_cache_path("a/b.json") == registry.get_path("cache_root") + "/a/b.json" and get_cache_path("/a") == "/a"
assert get_abs_path("configs/default.yaml").endswith("/configs/default.yaml")
assert is_url("https://example.org/a.json") and not is_url("a.json")
with open("x.json", "w") as file:
    json.dump([1], file)
assert load_json("x.json") == [1] and now().isdigit()
assert is_convertible_to_int("-12") and not is_convertible_to_int("1.5") and not is_serializable({1, 2})

# %% lr-scheduler
import torch
from lavis.common.optims import ConstantLRScheduler, LinearWarmupCosineLRScheduler, LinearWarmupStepLRScheduler
from lavis.common.registry import registry

optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
cls = registry.get_lr_scheduler_class("linear_warmup_cosine_lr")
assert cls is LinearWarmupCosineLRScheduler
schedule = cls(
    optimizer=optimizer, max_epoch=4, min_lr=0.0, init_lr=1e-3, decay_rate=None, warmup_start_lr=1e-5, warmup_steps=10
)
rates = []
for epoch, step in [(0, 0), (0, 5), (0, 20), (1, 0), (2, 3)]:
    schedule.step(cur_epoch=epoch, cur_step=step)
    rates.append(optimizer.param_groups[0]["lr"])
assert torch.allclose(torch.tensor(rates), torch.tensor([1e-5, 5.05e-4, 1e-3, 8.5355339e-4, 5e-4]))
LinearWarmupStepLRScheduler(optimizer, max_epoch=4, min_lr=1e-6, init_lr=1e-3, decay_rate=0.5).step(3, 0)
assert abs(optimizer.param_groups[0]["lr"] - 1.25e-4) < 1e-12
ConstantLRScheduler(optimizer, init_lr=2e-3, warmup_steps=0).step(1, 0)
assert optimizer.param_groups[0]["lr"] == 2e-3

# %% lr-schedule-functions
import torch
from lavis.common.optims import cosine_lr_schedule, step_lr_schedule, warmup_lr_schedule

optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)
for call, rate in (
    (lambda: cosine_lr_schedule(optimizer, epoch=2, max_epoch=4, init_lr=1.0, min_lr=0.5), 0.75),
    (lambda: warmup_lr_schedule(optimizer, step=1, max_step=4, init_lr=0.0, max_lr=1.0), 0.25),
    (lambda: warmup_lr_schedule(optimizer, 9, 4, 0.0, 1.0), 1.0),
    (lambda: step_lr_schedule(optimizer, epoch=2, init_lr=1.0, min_lr=0.1, decay_rate=0.5), 0.25),
):
    call()
    assert abs(optimizer.param_groups[0]["lr"] - rate) < 1e-12

# %% imports-of-train-py
import lavis.tasks as tasks
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, init_distributed_mode
from lavis.common.logger import setup_logger
from lavis.common.optims import LinearWarmupCosineLRScheduler, LinearWarmupStepLRScheduler
from lavis.common.registry import registry
from lavis.common.utils import now
from lavis.datasets.builders import *
from lavis.models import *
from lavis.processors import *
from lavis.runners import *
from lavis.tasks import *

assert Blip2OPT and COCOCapBuilder and Blip2ImageTrainProcessor and RunnerBase and RunnerIter and CaptionTask
assert registry.get_model_class("blip2_opt") is Blip2OPT and registry.get_task_class("captioning") is CaptionTask

# %% modules
from importlib import import_module

HELD = {
    "common.registry": "registry", "common.config": "Config ConfigValidator node_to_dict",
    "common.vqa_tools": "", "common.vqa_tools.vqa": "VQA", "common.vqa_tools.vqa_eval": "VQAEval",
    "common.logger": "MetricLogger",
    "common.dist_utils": "get_rank", "common.optims": "ConstantLRScheduler", "common.utils": "now",
    "datasets.builders": "load_dataset dataset_zoo load_dataset_config",
    "datasets.builders.base_dataset_builder": "BaseDatasetBuilder load_dataset_config",
    "datasets.builders.caption_builder": "COCOCapBuilder Flickr30kCapBuilder",
    "datasets.builders.image_text_pair_builder":
        "ConceptualCaption12MBuilder ConceptualCaption3MBuilder VGCaptionBuilder SBUCaptionBuilder Laion400MBuilder",
    "datasets.builders.vqa_builder": "COCOVQABuilder OKVQABuilder AOKVQABuilder VGVQABuilder GQABuilder",
    "datasets.builders.retrieval_builder": "COCORetrievalBuilder Flickr30kBuilder",
    "datasets.builders.classification_builder": "NLVRBuilder SNLIVisualEntailmentBuilder",
    "datasets.datasets.base_dataset": "BaseDataset ConcatDataset",
    "datasets.datasets.caption_datasets": "CaptionDataset CaptionEvalDataset",
    "datasets.datasets.coco_caption_datasets": "COCOCapDataset COCOCapEvalDataset NoCapsEvalDataset",
    "datasets.datasets.image_text_pair_datasets": "ImageTextPairDataset",
    "datasets.datasets.vqa_datasets": "VQADataset VQAEvalDataset",
    "datasets.datasets.coco_vqa_datasets": "COCOVQADataset COCOVQAEvalDataset",
    "datasets.datasets.aok_vqa_datasets": "AOKVQADataset AOKVQAEvalDataset",
    "datasets.datasets.gqa_datasets": "GQADataset GQAEvalDataset",
    "datasets.datasets.vg_vqa_datasets": "VGVQADataset",
    "datasets.datasets.retrieval_datasets": "RetrievalDataset RetrievalEvalDataset",
    "datasets.datasets.nlvr_datasets": "NLVRDataset NLVREvalDataset",
    "datasets.datasets.snli_ve_datasets": "SNLIVisualEntialmentDataset",
    "datasets.datasets.multimodal_classification_datasets": "MultimodalClassificationDataset",
    "datasets.datasets.laion_dataset": "LaionDataset LaionInstructDataset",
    "datasets.datasets.dataloader_utils": "MultiIterLoader PrefetchLoader IterLoader record_cuda_stream",
    "datasets.data_utils": "prepare_sample apply_to_sample move_to_cuda reorg_datasets_by_split concat_datasets",
    "processors": "load_processor BaseProcessor", "processors.base_processor": "BaseProcessor",
    "processors.blip_processors":
        "BlipCaptionProcessor BlipQuestionProcessor BlipImageTrainProcessor BlipImageEvalProcessor"
        " Blip2ImageTrainProcessor BlipImageBaseProcessor",
    "processors.clip_processors": "ClipImageTrainProcessor ClipImageEvalProcessor",
    "models": "load_model load_preprocess load_model_and_preprocess model_zoo BaseModel",
    "models.base_model":
        "BaseModel BaseEncoder MomentumDistilationMixin SharedQueueMixin tile all_gather_with_grad concat_all_gather",
    "models.eva_vit": "create_eva_vit_g", "models.clip_vit": "create_clip_vit_L",
    "processors.randaugment": "RandomAugment",
    "models.blip2_models.blip2_opt": "Blip2OPT", "models.blip2_models.blip2_t5": "Blip2T5",
    "models.blip2_models.blip2_qformer": "Blip2Qformer",
    "models.blip2_models.blip2_image_text_matching": "Blip2ITM",
    "tasks": "setup_task BaseTask", "tasks.base_task": "BaseTask", "tasks.captioning": "CaptionTask",
    "tasks.vqa": "VQATask GQATask AOKVQATask", "tasks.image_text_pretrain": "ImageTextPretrainTask",
    "tasks.retrieval": "RetrievalTask", "tasks.multimodal_classification": "MultimodalClassificationTask",
    "runners": "RunnerBase RunnerIter", "runners.runner_base": "RunnerBase", "runners.runner_iter": "RunnerIter",
}
for path, names in HELD.items():
    module = import_module(f"lavis.{path}")
    for name in names.split():
        assert getattr(module, name) is not None, (path, name)

# %% not-served
from importlib import import_module

import pytest
from lavis.common.registry import registry

for path in ("models.blip_models.blip_vqa", "models.albef_models", "datasets.builders.video_qa_builder", "tasks.dialogue"):
    with pytest.raises(ModuleNotFoundError):
        import_module(f"lavis.{path}")
with pytest.raises(KeyError):
    registry.get_model_class("albef_vqa")

# %% not-downloaders
import pytest

for name in ("download_url", "cache_url", "download_and_extract_archive", "download_and_untar", "get_redirected_url"):
    with pytest.raises(ImportError, match=f"common.utils.{name}: is not served here"):
        exec(f"from lavis.common.utils import {name}".replace("lavis.", "lavis_ext."))

# %% not-videos
import pytest

for path, name in (
    ("datasets.data_utils", "load_video"), ("datasets.data_utils", "load_clip"), ("processors.randaugment", "VideoRandomAugment"),
):
    with pytest.raises(ImportError, match=f"{name}: is not served here; videos"):
        exec(f"from lavis.{path} import {name}".replace("from lavis.", "from lavis_ext."))

# %% vqa-tools
import json

import pytest
from lavis.common.vqa_tools.vqa import VQA
from lavis.common.vqa_tools.vqa_eval import VQAEval

asked = [(11, 1, "what color", "other"), (12, 1, "how many", "number"), (21, 2, "what color", "other")]
given = [["red"] * 6 + ["dark-red"] * 4, ["2"] * 10, ["Blue."] * 10]
annotations = [
    {"question_id": number, "image_id": image, "question_type": kind, "answer_type": answer,
     "answers": [{"answer_id": i, "answer": text} for i, text in enumerate(texts, 1)]}
    for (number, image, kind, answer), texts in zip(asked, given)
]
info = {"info": {"year": 2026}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val", "license": {}}
json.dump({**info, "annotations": annotations}, open("a.json", "w"))
json.dump({**info, "questions": [{"question_id": n, "image_id": i, "question": "?"} for n, i, _, _ in asked]}, open("q.json", "w"))
result = [{"question_id": 11, "answer": "dark red"}, {"question_id": 12, "answer": "two"}, {"question_id": 21, "answer": "blue"}]
json.dump(result, open("r.json", "w"))

vqa = VQA("a.json", "q.json")
assert vqa.getQuesIds() == [11, 12, 21] and vqa.getQuesIds(imgIds=1) == [11, 12]
assert vqa.getQuesIds(quesTypes=["what color"], ansTypes="other") == [11, 21] and vqa.getImgIds(quesIds=[12, 21]) == [1, 2]
assert vqa.loadQA(ids=[12])[0]["answers"][0]["answer"] == "2" and vqa.qqa[11]["question"] == "?"
vqaRes = vqa.loadRes("r.json", "q.json")
assert vqaRes.qa[21]["image_id"] == 2 and vqaRes.dataset["task_type"] == "Open-Ended"
vqaEval = VQAEval(vqa, vqaRes, n=2)
vqaEval.evaluate()
# of ten who say "Blue.", all alike, nobody loses the stop, so that "blue" scores nothing (the official rule)
assert vqaEval.accuracy == {
    "overall": 66.67, "perQuestionType": {"what color": 50.0, "how many": 100.0},
    "perAnswerType": {"other": 50.0, "number": 100.0},
}
assert vqaEval.evalQA == {11: 100.0, 12: 100.0, 21: 0.0} and vqaEval.evalAnsType["number"] == {12: 100.0}
assert vqaEval.processDigitArticle(vqaEval.processPunctuation("The 1,000 dont's!")) == "1000 dont's"
vqaEval.evaluate(quesIds=[21])
assert vqaEval.accuracy["overall"] == 0.0
json.dump(result[:2], open("short.json", "w"))
with pytest.raises(Exception, match="lacks 1 that are"):
    vqa.loadRes("short.json", "q.json")

# %% config-validator
import pytest
from lavis.common.config import ConfigValidator, create_runner_config_validator

validator = ConfigValidator(description="My options")
validator.add_argument("size", type=int, help="Pixels.")
validator.add_argument("mode", type=str, choices=["fast", "exact"])
assert validator.validate({"size": "224", "mode": "fast"})["mode"] == "fast"
assert validator.arguments["size"].val == 224 and validator["size"] == "224" and "available arguments" in str(validator)
for wrong in ({"sise": 1}, {"size": "large"}, {"mode": "slow"}):
    with pytest.raises(Exception, match=next(iter(wrong))):
        validator.validate(wrong)
create_runner_config_validator().validate({"task": "captioning", "runner": "runner_base", "init_lr": 1e-5})

# %% files-by-their-names
import os

import numpy as np
from lavis.common.utils import cleanup_dir, load_file, makedir, save_file

makedir("out")
for value, name in (({"b": 1, "a": [2]}, "out/x.json"), ({"a": {"b": "é"}}, "out/x.yaml")):
    save_file(value, name, append_to_json=False)
    assert load_file(name) == value
save_file({"epoch": 0}, "out/log.json")
save_file({"epoch": 1}, "out/log.json")
assert len(open("out/log.json").readlines()) == 2
save_file(np.arange(6), "out/x.npy", verbose=False)
assert load_file("out/x.npy", mmap_mode="r")[-1] == 5
open("out/x.txt", "w").write("a\nb\n")
open("out/x.csv", "w").write("id,text\n1,a bird\n")
assert load_file("out/x.txt") == ["a\n", "b\n"] and load_file("out/x.csv")["text"][0] == "a bird"
cleanup_dir("out")
cleanup_dir("out")
assert not os.path.exists("out")

# %% files-that-are-pickles
import os
import pickle

import numpy as np
import pytest
from lavis.common.utils import cleanup_dir, load_file, save_file


class Foreign:
    def __reduce__(self):
        return os.mkdir, ("ran",)


with open("x.pkl", "wb") as file:
    pickle.dump(Foreign(), file)
with open("y.npy", "wb") as file:
    pickle.dump(Foreign(), file)
np.save("z.npy", np.array([Foreign()], dtype=object), allow_pickle=True)
for name, words in (("x.pkl", {}), ("y.npy", {}), ("z.npy", {}), ("z.npy", {"allow_pickle": True}), ("z.npy", {"mmap_mode": "r"})):
    with pytest.raises(Exception, match=name):
        load_file(name, **words)
assert not os.path.exists("ran")
with pytest.raises(Exception, match="pickle"):
    save_file([1], "x.pickle")
for folder in (os.environ["LAVIS_EXT_CACHE_ROOT"], ".", "~", "/"):
    with pytest.raises(Exception, match="holds"):
        cleanup_dir(folder)

# %% cached-file
import http.server
import os
import threading
from functools import partial

from lavis.common.dist_utils import download_cached_file
from lavis.common.utils import download_cached_file as same

os.mkdir("web")
with open("web/list.txt", "wb") as file:
    file.write(b"a bird\n" * 1000)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory="web"))
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}/list.txt"
try:
    path = download_cached_file(address, check_hash=False, progress=True)
    assert open(path, "rb").read() == b"a bird\n" * 1000
finally:
    server.shutdown()
    server.server_close()
assert path.startswith(os.environ["LAVIS_EXT_CACHE_ROOT"]) and same is download_cached_file

# %% registry-not-served
import pytest
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.models import load_model
from lavis.processors import load_processor

for call, name in (
    (registry.get_builder_class, "iconqa_instruct"),
    (load_dataset, "msrvtt_caption_instruct"),
    (registry.get_processor_class, "alpro_video_eval"),
    (load_processor, "beats_audio"),
    (registry.get_task_class, "dialogue"),
    (registry.get_model_class, "blip2_vicuna_xinstruct"),
    (lambda name: load_model(name, "base"), "blip_vqa"),
):
    with pytest.raises(Exception, match="LAVIS' .*not served here"):
        call(name)
