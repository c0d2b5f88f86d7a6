"""Settings of an Oscar network (sizes of BERT, regions, head), from a `config.json` or a model section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import BertConfig

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.oscar.config import OscarConfig

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
OPTIONAL_SIZES = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "residual_range": None,
}
"""As transformers' BertConfig has them. `residual_range` is ours: how wide the projections begin that add to a layer's
input, where it is not `initializer_range`; narrow ones let deep small nets learn from nothing (arXiv:1908.11365)."""
WORD_HEADS = ("caption", "pretrain")
CLASSES = {
    "sequence": "ImageBertForSequenceClassification",
    "pair": "ImageBertForMultipleChoice",
    "caption": "BertForImageCaptioning",
    "pretrain": "BertImgForPreTraining",
}
"""Upstream's class for each head."""
EXTRAS = (
    *("num_labels", "loss_type", "classifier", "cls_hidden_scale", "num_choice"),
    *("img_feature_dim", "img_layer_norm_eps", "num_contrast_classes", "tie_weights"),
)


@dataclass(frozen=True)
class OscarSettings:
    """Sizes of transformers' BertConfig, and what Oscar has beside them, under upstream's names."""

    sizes: dict[str, Any]
    head: str = "sequence"
    num_labels: int = 2
    loss_type: str = "ce"
    classifier: str = "linear"
    cls_hidden_scale: int = 2
    num_choice: int = 2
    img_feature_dim: int = 2054
    use_img_layernorm: bool = False
    img_layer_norm_eps: float = 1e-12
    num_contrast_classes: int = 2
    tie_weights: bool = True

    @property
    def hidden_size(self) -> int:
        """The width H of every token."""
        return int(self.sizes["hidden_size"])

    @property
    def layers(self) -> int:
        """The number of layers."""
        return int(self.sizes["num_hidden_layers"])

    @property
    def has_words(self) -> bool:
        """Whether the head predicts words."""
        return self.head in WORD_HEADS

    def bert(self) -> BertConfig:
        """The configuration of transformers' BERT; attention is torch's own, fused one."""
        config = BertConfig(**self.sizes, pad_token_id=0)
        config._attn_implementation = "sdpa"
        return config

    def with_sizes(self, **changed: Any) -> OscarSettings:
        """The same with other sizes."""
        return replace(self, sizes={**self.sizes, **changed})


def read_settings(config: Mapping[str, Any], where: str) -> OscarSettings:
    """The settings in a `config.json` of Oscar's; `head` is "sequence" until the weights say otherwise.

    Raises IntegrityError where a size is missing.
    """
    lacking = [name for name in SIZES if not isinstance(config.get(name), int)]
    if lacking:
        raise IntegrityError(where, f"config.json gives no {', '.join(lacking)}", "name a checkpoint folder of Oscar's")
    sizes = {name: config[name] for name in SIZES} | {
        name: config.get(name, default) for name, default in OPTIONAL_SIZES.items()
    }
    return OscarSettings(
        sizes,
        num_labels=int(config.get("num_labels", 2)),
        loss_type=str(config.get("loss_type", "ce")),
        classifier=str(config.get("classifier", "linear")),
        cls_hidden_scale=int(config.get("cls_hidden_scale", 2)),
        num_choice=int(config.get("num_choice", 2)),
        img_feature_dim=int(config.get("img_feature_dim", 2054)),
        use_img_layernorm=bool(config.get("use_img_layernorm")),
        img_layer_norm_eps=float(config.get("img_layer_norm_eps", 1e-12)),
        num_contrast_classes=int(config.get("num_contrast_classes", 2)),
        tie_weights=bool(config.get("tie_weights", True)),
    )


def write_settings(settings: OscarSettings) -> dict[str, Any]:
    """These settings as a `config.json` of upstream's form."""
    return {
        "architectures": [CLASSES[settings.head]],
        "model_type": "bert",
        **{name: size for name, size in settings.sizes.items() if size is not None},
        **{name: getattr(settings, name) for name in EXTRAS},
        "img_feature_type": "faster_r-cnn",
        "use_img_layernorm": int(settings.use_img_layernorm),
    }


def wanted(config: OscarConfig, found: OscarSettings | None, words: int | None = None) -> OscarSettings:
    """The settings of a model section: over those of its weights (`found`), or from scratch for `words` tokens.

    Raises ConfigError for sizes and layers that do not exist.
    """
    head = config.used_head
    base = found or _from_scratch(config, words)
    return replace(
        base.with_sizes(num_hidden_layers=count_layers(config, base.layers), hidden_dropout_prob=config.drop_out),
        head=head,
        num_labels=config.num_labels or base.num_labels,
        loss_type=config.loss_type,
        classifier=config.classifier,
        cls_hidden_scale=config.cls_hidden_scale,
        num_choice=config.num_choice,
        use_img_layernorm=config.use_img_layernorm or base.use_img_layernorm,
        img_layer_norm_eps=base.img_layer_norm_eps if base.use_img_layernorm else config.img_layer_norm_eps,
        num_contrast_classes=config.num_contrast_classes,
        tie_weights=config.tie_weights,
    )


def _from_scratch(config: OscarConfig, words: int | None) -> OscarSettings:
    own = config.sizes.get("text_config", {})
    unknown = sorted(set(own) - {*SIZES, *OPTIONAL_SIZES})
    if unknown or set(config.sizes) - {"text_config"}:
        what = f"Oscar has no size '{(unknown or sorted(config.sizes))[0]}'"
        raise ConfigError(
            "model.sizes", what, f"give `text_config` with some of {', '.join([*SIZES, *OPTIONAL_SIZES])}"
        )
    sizes = {**OPTIONAL_SIZES, "vocab_size": words, **own}
    lacking = [name for name in SIZES if not sizes.get(name)]
    if lacking:
        raise ConfigError("model.sizes.text_config", f"lacks {', '.join(lacking)}", "give it, or name model.pretrained")
    return OscarSettings(sizes, img_feature_dim=config.img_feature_dim)


def count_layers(config: OscarConfig, there: int) -> int:
    """How many layers the model is to have; raises ConfigError where `pretrained` has no such layers."""
    if config.layers:
        wrong = [number for number in config.layers if not 0 <= number < there]
        if wrong or (config.num_hidden_layers or len(config.layers)) != len(config.layers):
            count = config.num_hidden_layers or len(config.layers)
            what = f"{config.layers} are not {count} of the layers 0 to {there - 1}"
            raise ConfigError("model.layers", what, "name layers of `pretrained`, or leave out num_hidden_layers")
        return len(config.layers)
    count = config.num_hidden_layers or there
    if config.pretrained and config.load_pretrained and count > there:
        raise ConfigError("model.num_hidden_layers", f"{count} of {there} layers", f"ask for at most {there}")
    return count
