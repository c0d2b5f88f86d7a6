"""The keys of `arch: oscar` and of Oscar's tasks, most under the names of upstream's flags, and checks between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from lavis_ext.common.config.decode import Bound, Count, Natural, Positive
from lavis_ext.common.config.schema import Config, MetricConfig, ModelConfig, RunConfig
from lavis_ext.common.errors import Problem
from lavis_ext.tasks.settings import CaptioningConfig

Part = Annotated[float, Bound(0, 0.999)]
"""A share below the whole."""


@dataclass(frozen=True, kw_only=True)
class OscarConfig(ModelConfig):
    """A BERT over words, tags and regions, with one of four heads."""

    head: Literal["sequence", "pair", "caption", "pretrain"] = "sequence"
    """A class of one input or of `num_choice` together, words at masked places, or words and matching."""
    num_labels: Count | None = None
    """None: as many as the vocabulary of answers of the data set has."""
    loss_type: Literal["bce", "kl", "ce", "xe", "sfmx"] = "ce"
    """bce: sigmoid, summed over classes; kl: against soft targets; all others: softmax cross-entropy."""
    classifier: Literal["linear", "mlp"] = "linear"
    cls_hidden_scale: Count = 2
    """Width of the `mlp` classifier's inner layer, in hidden sizes."""
    use_pair: bool = False
    """Upstream's flag for `head: pair`."""
    num_choice: Count = 2
    img_feature_dim: Count = 2054
    """2048 numbers of appearance and 6 of the box."""
    use_img_layernorm: bool = False
    """A LayerNorm over the projected regions (VinVL); taken from the weights where there are any."""
    img_layer_norm_eps: Positive = 1e-12
    drop_out: Part = 0.1
    use_grad_checkpoint: bool = False
    num_hidden_layers: Count | None = None
    """Layers of a smaller model, the first of `pretrained`'s; None: all."""
    layers: list[Natural] = field(default_factory=list)
    """Which layers of `pretrained` a smaller model starts from, counted from 0; empty: the first."""
    num_contrast_classes: Annotated[int, Bound(2, 3)] = 2
    """`head: pretrain`: 2 (matches, or not), or 3 (the text or the tags do not)."""
    label_smoothing: Part = 0.0
    drop_worst_ratio: Part = 0.0
    """`head: caption`: share of the tokens with the highest loss that is left out …"""
    drop_worst_after: Natural = 0
    """… after so many training batches."""
    tie_weights: bool = True
    """The last matrix of a word head is that of the word embeddings."""
    freeze_embedding: bool = False
    """Word embeddings are not trained."""
    max_seq_a_length: Count = 40
    """`head: caption`: where the positions of object tags begin, as in training."""

    views: ClassVar[tuple[str, ...]] = ("full", "text", "image")

    @property
    def used_head(self) -> str:
        """The head that is built."""
        return "pair" if self.use_pair else self.head

    def problems(self, where: str = "model") -> Iterator[Problem]:
        """`use_pair` beside another head."""
        if self.use_pair and self.head not in ("sequence", "pair"):
            yield Problem(f"{where}.use_pair", f"head is '{self.head}'", "set head: pair, or use_pair: False")


HARD = ("ce", "xe", "sfmx")
SOFT = ("bce", "kl")
"""Losses against one class, and against a score of each class."""


@dataclass(frozen=True, kw_only=True)
class OscarRetrievalConfig(RunConfig):
    """`oscar_retrieval`: a class of each pair of image and caption."""

    metrics: list[MetricConfig] = field(default_factory=list)
    """Scores of the split; none named: the task's own, of the same name. `agg_metrics` picks the best."""

    wanted_head: ClassVar[str] = "sequence"
    wanted_losses: ClassVar[tuple[str, ...]] = HARD
    """Losses that fit the targets of the task's data sets."""

    def problems(self, config: Config) -> Iterator[Problem]:
        """A `model.head` or a `model.loss_type` that does not fit the task."""
        yield from super().problems(config)
        model = config.model
        if not isinstance(model, OscarConfig):
            return
        if model.used_head != self.wanted_head:
            what = f"'{model.used_head}' does not fit the run's task"
            yield Problem("model.head", what, f"set it to {self.wanted_head}")
        hard = any(dataset.args.get("soft_targets") is False for dataset in config.datasets.values())
        if model.loss_type not in self.wanted_losses and self.train_splits and not hard:
            what = f"'{model.loss_type}' does not fit the targets of the run's task"
            yield Problem("model.loss_type", what, f"set it to {' or '.join(self.wanted_losses)}")


@dataclass(frozen=True, kw_only=True)
class OscarClassConfig(OscarRetrievalConfig):
    """`oscar_gqa`: a class of each input."""

    report_metric: bool = True


@dataclass(frozen=True, kw_only=True)
class OscarVqaConfig(OscarClassConfig):
    """`oscar_vqa`: scores of all classes."""

    anno_files: dict[str, str] = field(default_factory=dict)

    wanted_losses: ClassVar[tuple[str, ...]] = SOFT


@dataclass(frozen=True, kw_only=True)
class OscarPairConfig(OscarClassConfig):
    """`oscar_nlvr2`: two images together."""

    wanted_head: ClassVar[str] = "pair"


@dataclass(frozen=True, kw_only=True)
class OscarPretrainConfig(RunConfig):
    """`oscar_pretrain`."""

    metrics: list[MetricConfig] = field(default_factory=list)
    """Scores of hidden words and of matching; none named: `oscar_pretrain`."""

    def problems(self, config: Config) -> Iterator[Problem]:
        """Another `model.head` than pretrain."""
        yield from super().problems(config)
        if isinstance(config.model, OscarConfig) and config.model.head != "pretrain":
            yield Problem("model.head", f"'{config.model.head}' is not what is pre-trained", "set it to pretrain")


@dataclass(frozen=True, kw_only=True)
class OscarCaptionConfig(CaptioningConfig):
    """`oscar_caption`."""

    max_len: Annotated[int, Bound(3)] = 30
    """Tokens with [CLS] and [SEP], as upstream's max_gen_length."""
    temperature: Positive = 1.0
    """Of the captions that `scst` samples."""
    num_keep_best: Count = 1
    """Captions an image of beam search; the first is scored."""
    use_cbs: bool = False
    """Beam search that names what was detected …"""
    min_constraints_to_satisfy: Annotated[int, Bound(0)] = 2
    """… at least so many of it."""
    scst: bool = False
    """Learn from CIDEr-D of sampled captions (Rennie et al., arXiv:1612.00563), instead of masked words."""
    sc_train_sample_n: Count = 5
    """Captions sampled for each image."""
    sc_baseline_type: Literal["greedy", "sample"] = "greedy"
    """What a sampled caption is compared with: the greedy one, or the mean of the other samples."""

    def problems(self, config: Config) -> Iterator[Problem]:
        """A `model.head` without words, and options of the search that exclude each other."""
        yield from super().problems(config)
        if isinstance(config.model, OscarConfig) and config.model.head != "caption":
            yield Problem("model.head", f"'{config.model.head}' writes no captions", "set it to caption")
        if self.num_keep_best > 1 and (self.use_cbs or self.num_beams == 1):
            yield Problem("run.num_keep_best", "only a plain beam search finds more than one", "set it to 1")
        if self.scst and self.sc_baseline_type == "sample" and self.sc_train_sample_n < 2:
            yield Problem("run.sc_train_sample_n", f"{self.sc_train_sample_n} is too small", "draw 5, as upstream does")
