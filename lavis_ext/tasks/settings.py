"""The keys of tasks on BLIP-2, under LAVIS' names: what each reads of `run:` beside what all runs have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from lavis_ext.common.config.decode import Count, Natural, Positive
from lavis_ext.common.config.schema import Config, MetricConfig, RunConfig
from lavis_ext.common.errors import Problem, nearest
from lavis_ext.common.registry import tasks
from lavis_ext.metrics.settings import Normalised


@dataclass(frozen=True, kw_only=True)
class WritingConfig(RunConfig):
    """Settings of text generation."""

    num_beams: Count = 5
    max_len: Count = 30
    min_len: Natural = 1
    length_penalty: float | None = None
    """None: 1 for captions; for answers the model's, which is LAVIS': 0 of OPT and InstructBLIP's Vicuna, else -1."""
    prompt: str = ""
    report_metric: bool = True

    def problems(self, config: Config) -> Iterator[Problem]:
        """A min_len above max_len."""
        yield from super().problems(config)
        if self.min_len > self.max_len:
            yield Problem(
                "run.min_len", f"{self.min_len} is above max_len {self.max_len}", "raise max_len, or lower min_len"
            )


@dataclass(frozen=True, kw_only=True)
class CaptioningConfig(WritingConfig):
    """`captioning` and `nocaps`."""

    repetition_penalty: Positive = 1.0
    metrics: list[MetricConfig] = field(default_factory=lambda: [MetricConfig(name="coco_caption")])
    """Scores of captions by id; CIDEr + Bleu_4 selects the best checkpoint."""
    extra_metrics: list[Literal["METEOR", "SPICE"]] = field(default_factory=list)
    """Caption scores that need Java, beside BLEU, ROUGE-L and CIDEr; left out with a warning if it is not installed."""
    annotation_file: str | None = None
    sample_id_key: str | None = None
    caption_key: str = "caption"
    img_ids: list[str] = field(default_factory=list)

    ignored: ClassVar[Mapping[str, str]] = {
        **RunConfig.ignored,
        "top_p": "captions come from beam search, without sampling",
        "temperature": "captions come from beam search, without sampling",
        "load_gt_from_file": "annotation_file alone decides it",
        "inference_method": "captions are generated",
    }


@dataclass(frozen=True, kw_only=True)
class VqaConfig(WritingConfig):
    """`vqa`, `gqa` and `aok_vqa`."""

    inference_method: Literal["generate", "rank"] = "generate"
    num_ans_candidates: Count = 128
    metrics: list[MetricConfig] = field(default_factory=list)
    """Scores of answers by question; none named: the task's own, of the same name. `overall` selects the best."""
    anno_files: dict[str, str] = field(default_factory=dict)

    ignored: ClassVar[Mapping[str, str]] = {
        **RunConfig.ignored,
        "ques_files": "questions are those of the data set",
        "sample_id_key": "questions have their question_id",
    }


@dataclass(frozen=True, kw_only=True)
class GqaConfig(VqaConfig):
    """`gqa`."""

    gqa_normalize: Normalised = "both"
    """Whether given answers are normalised too before they are compared, or only predictions, as in VPGTrans."""


@dataclass(frozen=True, kw_only=True)
class InstructConfig(WritingConfig):
    """`instruct`."""

    max_len: Count = 128
    max_generated: Natural = 24
    """Of each data set of a split the first samples that are answered, for the report; 0: none."""

    ignored: ClassVar[Mapping[str, str]] = {
        **RunConfig.ignored,
        "prompt": "the conversation is all that the model reads",
        "report_metric": "the loss is measured always",
    }


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(RunConfig):
    """`retrieval`."""

    k_test: Natural = 128
    """Candidates of each row that the matching head re-ranks; 0: none."""
    metrics: list[MetricConfig] = field(default_factory=lambda: [MetricConfig(name="recall")])


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(RunConfig):
    """`multimodal_classification`."""

    report_metric: bool = True
    metrics: list[MetricConfig] = field(default_factory=lambda: [MetricConfig(name="class_accuracy")])

    ignored: ClassVar[Mapping[str, str]] = {
        **RunConfig.ignored,
        # LAVIS' files for InstructBLIP have them
        **dict.fromkeys(("inference_method", "prompt", "length_penalty"), "the likeliest class is taken"),
    }


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """`image_text_pretrain`: the keys of the task that validates are in the same section."""

    eval_task: str | None = None
    """The task that validates and tests (VPGTrans: `captioning`)."""

    ignored: ClassVar[Mapping[str, str]] = {
        **RunConfig.ignored,
        # VPGTrans' training files have them for the captioning task that its train.py adds
        **dict.fromkeys(("num_beams", "max_len", "min_len", "prompt"), "nothing is generated without an eval_task"),
    }

    @classmethod
    def also(cls, value: Mapping[str, Any]) -> Iterator[str]:
        """The task that validates."""
        if name := value.get("eval_task"):
            yield str(name)
            if name in tasks:
                yield from tasks.config(str(name)).also({**value, "eval_task": None})

    def examine(self, decoder: Any, key: str) -> None:
        """Note an error for an unknown `eval_task`."""
        super().examine(decoder, key)
        if self.eval_task and self.eval_task not in tasks:
            decoder.note(
                f"{key}.eval_task", f"no task named '{self.eval_task}'", nearest(self.eval_task, tasks.names())
            )
