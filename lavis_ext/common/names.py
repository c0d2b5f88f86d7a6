"""Registry name → the module that registers it, and the dataclass of the keys that it reads.

`check`, `list` and flags need names and keys, not networks: reading a table costs nothing, importing the models costs
seconds. `tests/architecture/test_names.py` compares the table with what the modules register.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple


def imported_on_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`: names from the modules that `homes` says, which need torch, numpy or the like."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find


class Home(NamedTuple):
    """The module that registers a name, and `module.Class` of its keys in a module that imports nothing heavy."""

    module: str
    keys: str = ""


def _in(module: str, keys: str = "", **names: str) -> dict[str, Home]:
    """The names of one module → their homes; the values are classes of the module `keys`, "" for none."""
    return {name: Home(module, f"{keys}.{kind}" if kind else "") for name, kind in names.items()}


MODELS = "lavis_ext.models.settings"
TASKS = "lavis_ext.tasks.settings"
OSCAR_TASKS = "lavis_ext.oscar.config"
SHAPES = "lavis_ext.datasets.builders.settings"
REGIONS = "lavis_ext.oscar.datasets.settings"
PICTURES = "lavis_ext.processors.settings"
TERMS = "lavis_ext.models.settings"
METRICS = "lavis_ext.metrics.settings"

NAMES: Mapping[str, Mapping[str, Home]] = {
    "model": {
        **_in("lavis_ext.models.stage1", MODELS, blip2="Blip2Config", blip2_feature_extractor="Blip2Config"),
        **_in("lavis_ext.models.stage1", MODELS, blip2_image_text_matching="Blip2Config"),
        **_in("lavis_ext.models.language", MODELS, blip2_opt="Blip2OptConfig", blip2_llama="Blip2LlamaConfig"),
        **_in("lavis_ext.models.language", MODELS, blip2_t5="Blip2T5Config"),
        **_in("lavis_ext.models.language", MODELS, blip2_vicuna="Blip2LlamaConfig"),
        **_in("lavis_ext.models.instruct", MODELS, blip2_t5_instruct="Blip2T5InstructConfig"),
        **_in("lavis_ext.models.instruct", MODELS, blip2_vicuna_instruct="Blip2VicunaInstructConfig"),
        **_in("lavis_ext.models.causal", MODELS, blip2_causal="Blip2AnyConfig", blip2_seq2seq="Blip2AnyConfig"),
        **_in("lavis_ext.models.projector", MODELS, vpgtrans_projector="ProjectorConfig"),
        **_in("lavis_ext.oscar.model", "lavis_ext.oscar.config", oscar="OscarConfig"),
    },
    "task": {
        **_in("lavis_ext.tasks.captioning", TASKS, captioning="CaptioningConfig", nocaps="CaptioningConfig"),
        **_in("lavis_ext.tasks.answering", TASKS, vqa="VqaConfig", gqa="GqaConfig", aok_vqa="VqaConfig"),
        **_in("lavis_ext.tasks.instruct", TASKS, instruct="InstructConfig"),
        **_in("lavis_ext.tasks.retrieval", TASKS, retrieval="RetrievalConfig"),
        **_in("lavis_ext.tasks.classification", TASKS, multimodal_classification="ClassificationConfig"),
        **_in("lavis_ext.tasks.classification", TASKS, image_text_pretrain="PretrainConfig"),
        **_in("lavis_ext.oscar.answering", OSCAR_TASKS, oscar_vqa="OscarVqaConfig", oscar_gqa="OscarClassConfig"),
        **_in("lavis_ext.oscar.answering", OSCAR_TASKS, oscar_nlvr2="OscarPairConfig"),
        **_in("lavis_ext.oscar.captioning", OSCAR_TASKS, oscar_caption="OscarCaptionConfig"),
        **_in("lavis_ext.oscar.retrieval", OSCAR_TASKS, oscar_retrieval="OscarRetrievalConfig"),
        **_in("lavis_ext.oscar.answering", OSCAR_TASKS, oscar_pretrain="OscarPretrainConfig"),
        **_in("lavis_ext.distill.task", "lavis_ext.distill.settings", distill="DistillRunConfig"),
    },
    "builder": {
        **_in("lavis_ext.datasets.builders.conversation", SHAPES, conversation="ConversationKeys"),
        **_in("lavis_ext.datasets.builders.image_caption", SHAPES, image_caption="CaptionKeys"),
        **_in("lavis_ext.datasets.builders.image_text_retrieval", SHAPES, image_text_retrieval="CaptionKeys"),
        **_in("lavis_ext.datasets.builders.image_text_shards", SHAPES, image_text_shards="ShardKeys"),
        **_in("lavis_ext.datasets.builders.labels", SHAPES, image_text_label="LabelKeys"),
        **_in("lavis_ext.datasets.builders.labels", SHAPES, paired_images="PairKeys"),
        **_in("lavis_ext.datasets.builders.vqa", SHAPES, vqa="VqaKeys"),
        **_in("lavis_ext.oscar.datasets.caption", REGIONS, region_caption="RegionCaptionKeys"),
        **_in("lavis_ext.oscar.datasets.vqa", REGIONS, region_pair="RegionPairKeys"),
        **_in("lavis_ext.oscar.datasets.pretrain", REGIONS, region_pretrain="RegionPretrainKeys"),
        **_in("lavis_ext.oscar.datasets.retrieval", REGIONS, region_retrieval="RegionRetrievalKeys"),
        **_in("lavis_ext.oscar.datasets.vqa", REGIONS, region_vqa="RegionVqaKeys"),
        **_in("lavis_ext.oscar.datasets.volta", REGIONS, volta_caption="VoltaKeys", volta_retrieval="VoltaKeys"),
    },
    "processor": {
        **_in("lavis_ext.processors.text", "lavis_ext.processors.text", blip_caption="BlipCaption"),
        **_in("lavis_ext.processors.text", "lavis_ext.processors.text", blip_question="BlipQuestion"),
        **_in("lavis_ext.processors.instructions", PICTURES, blip_instruction="InstructionKeys"),
        **_in("lavis_ext.processors.image", PICTURES, blip2_image_train="Blip2TrainKeys"),
        **_in("lavis_ext.processors.image", PICTURES, blip_image_train="BlipTrainKeys"),
        **_in("lavis_ext.processors.image", PICTURES, blip_image_eval="BlipEvalKeys"),
        **_in("lavis_ext.processors.image", PICTURES, clip_image_train="ClipTrainKeys"),
        **_in("lavis_ext.processors.image", PICTURES, clip_image_eval="ImageProcessorKeys"),
    },
    "objective": {
        **_in("lavis_ext.models.losses", TERMS, itc="LossKeys", itm="LossKeys", lm="LossKeys"),
        **_in("lavis_ext.distill.terms", TERMS, vanilla_kd="TermKeys", mkd="TermKeys", soft_ce="TermKeys"),
        **_in("lavis_ext.distill.terms", TERMS, akd="AkdKeys", ft="TermKeys"),
        **_in("lavis_ext.distill.terms", TERMS, pkd="HiddenKeys", td="LayerKeys", tinybert="LayerKeys"),
        **_in("lavis_ext.distill.relations", TERMS, mgskd="MgskdKeys"),
        **_in("lavis_ext.distill.relations", TERMS, emd="EmdKeys"),
    },
    "metric": {
        **_in("lavis_ext.metrics.scores", METRICS, coco_caption="CocoCaptionKeys"),
        **_in("lavis_ext.metrics.vqa", METRICS, vqa="MetricKeys", gqa="GqaKeys", aok_vqa="MetricKeys"),
        **_in("lavis_ext.metrics.vqa", METRICS, class_accuracy="MetricKeys"),
        **_in("lavis_ext.metrics.retrieval", METRICS, recall="MetricKeys"),
        **_in("lavis_ext.oscar.answering", METRICS, oscar_vqa="MetricKeys", oscar_gqa="MetricKeys"),
        **_in("lavis_ext.oscar.answering", METRICS, oscar_nlvr2="MetricKeys", oscar_pretrain="MetricKeys"),
        **_in("lavis_ext.oscar.retrieval", METRICS, oscar_retrieval="MetricKeys"),
    },
    "runner": _in("lavis_ext.runners.runner_base", runner_base="", runner_iter=""),
    "lr_scheduler": _in(
        "lavis_ext.runners.schedule",
        linear_warmup_cosine_lr="",
        linear_warmup_linear_lr="",
        linear_warmup_step_lr="",
        constant_lr="",
    ),
    "detector": {
        **_in("lavis_ext.features.detectors.published", butd_r101_c4="", vinvl_x152_c4="", tiny=""),
        **_in("lavis_ext.features.detectors.transformers_detector", hf_detector=""),
    },
}
