"""What both stages of BLIP-2 share: the vision tower, and the names by which scripts of LAVIS know the parts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.types import Batch
from lavis_ext.metrics.vqa import lemmatize
from lavis_ext.models.base_model import BaseModel
from lavis_ext.models.network import BERT, DTYPES, load_bert_tokenizer
from lavis_ext.models.weights import named_as_upstream, translate_for

PARTS = {
    "ln_vision": "net.vision_model.post_layernorm",
    "query_tokens": "net.query_tokens",
    "vision_proj": "net.vision_projection",
    "text_proj": "net.text_projection",
    "itm_head": "net.itm_head",
}
"""LAVIS' attributes → ours."""
POSITIONS = ".bert.embeddings.position_ids"
"""A constant that LAVIS saves with each Q-Former."""
LANGUAGE_PARTS = {"model": "net.language_model", "proj": "net.language_projection", "tokenizer": "text.tokenizer"}
"""The same after the prefix of the language model: `opt_model`, `t5_proj`, `llm_tokenizer`."""


class ConfigKey:
    """A key of the model's section as an attribute that LAVIS' scripts read and set; plain in a model without one."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, kind: type | None = None) -> Any:
        if model is None:
            return self
        held = vars(model)
        if "config" not in held and self.name in held:
            return held[self.name]
        return getattr(held.get("config"), self.name)

    def __set__(self, model: Any, value: Any) -> None:
        held = vars(model)
        if "config" not in held:
            held[self.name] = value
            return
        held["config"] = replace(held["config"], **{self.name: value})
        if hasattr(held.get("text"), self.name):
            setattr(held["text"], self.name, value)


class Blip2Base(BaseModel):
    """The base of BLIP-2's models; `net` is transformers' network, `config` their section.

    A class in LAVIS' manner has neither, and builds its parts by `init_tokenizer`, `init_vision_encoder` and
    `init_Qformer`.
    """

    bert_model: ClassVar[str] = BERT
    """Folder or hub name of the BERT whose tokenizer and weights these take."""
    vit_weights: ClassVar[str | None] = ""
    """A file of the tower's weights in place of the published one; None: random."""
    vit_config: ClassVar[Mapping[str, Any]] = {}
    """transformers' keys of the tower over the published ones."""

    upstream_prefix: ClassVar[str] = ""
    """Of `{}_proj` and `{}_model` in LAVIS: `opt`, `t5`, `llama` or `llm`; "" without a language model."""

    max_txt_len = ConfigKey()

    def __getattr__(self, name: str) -> Any:
        """What torch has, else a part by LAVIS' name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("visual_encoder", "Qformer") and "net" in self._modules:
                return self.view(name)
            prefix, _, part = name.rpartition("_")
            own = prefix and prefix == type(self).upstream_prefix
            place = LANGUAGE_PARTS.get(part) if own else PARTS.get(name)
            if place is None or "net" not in self._modules:
                raise
            return attrgetter(place)(self)

    def view(self, name: str) -> Any:
        """LAVIS' `visual_encoder` or `Qformer` over the parts of `net`; its tensors are these, under other names."""
        from lavis_ext.models.parts import QformerView, TowerView

        views = self.__dict__.setdefault("_views", {})
        if name not in views:
            views[name] = QformerView(self.net) if name == "Qformer" else TowerView(self.net.vision_model)
        return views[name]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in torch; tensors under LAVIS' names are translated first. Raises IntegrityError for names of neither."""
        if "net" in self._modules and named_as_upstream(state_dict):
            state_dict = translate_for(self, state_dict, "load_state_dict")
        elif "net" not in self._modules:
            state_dict = self.own_names(state_dict, "load_state_dict", copies=True)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _lemmatize(self, answers: list[str]) -> list[str]:
        """Nouns and verbs in their base form (LAVIS' method); raises ConfigError without spaCy."""
        return lemmatize(answers)

    def own_names(self, state: Mapping[str, Tensor], where: str, copies: bool = False) -> dict[str, Tensor]:
        """As for any model; a tower under LAVIS' names gets those of `init_vision_encoder`'s."""
        tower = self._modules.get("visual_encoder")
        if tower is not None and any(name.startswith("visual_encoder.") for name in state):
            from lavis_ext.models.parts import with_own_tower

            state = with_own_tower(state, tower.state_dict(prefix="visual_encoder."), where)
        if copies:
            return {name: tensor for name, tensor in state.items() if not name.endswith(POSITIONS)}
        return super().own_names(state, where)

    @classmethod
    def init_tokenizer(cls, truncation_side: str = "right") -> Any:
        """BERT's tokenizer with `[DEC]` (LAVIS' method); raises NetworkError where it cannot be had."""
        return load_bert_tokenizer(cls.bert_model, "Blip2Base.bert_model", truncation_side=truncation_side)

    @classmethod
    def init_Qformer(  # noqa: N802
        cls, num_query_token: int, vision_width: int, cross_attention_freq: int = 2
    ) -> Any:
        """A Q-Former from BERT's weights, with LAVIS' names inside, and its queries [1, Q, C] (LAVIS' method).

        It reads pictures of width `vision_width` in every `cross_attention_freq`-th layer. Raises NetworkError where
        BERT cannot be had.
        """
        from lavis_ext.models.parts import build_qformer

        return build_qformer(cls.bert_model, num_query_token, vision_width, cross_attention_freq)

    def init_vision_encoder(
        self, model_name: str, img_size: int, drop_path_rate: float, use_grad_checkpoint: bool, precision: str
    ) -> tuple[Any, LayerNorm]:
        """The tower `eva_clip_g` or `clip_L` with its weights, and a norm for what it sees (LAVIS' method).

        `visual_encoder(images)` [B, P, W] has `num_features` and `get_num_layer()`. Raises ConfigError for another
        tower, precision or a drop path, which transformers' tower lacks; NetworkError where weights cannot be had.
        """
        from lavis_ext.models.parts import build_tower, load_tower, require_no_drop_path

        require_no_drop_path("init_vision_encoder", drop_path_rate)
        tower = build_tower(model_name, img_size, self.vit_config, use_grad_checkpoint, precision)
        if self.vit_weights is not None:
            load_tower(tower, model_name, self.vit_weights)
        self.vit_name = model_name
        return tower, LayerNorm(tower.num_features)

    def maybe_autocast(self, dtype: torch.dtype = torch.float16) -> Any:
        """Automatic precision on a GPU, nothing on a CPU (LAVIS' method)."""
        return nullcontext() if self.device.type == "cpu" else torch.autocast(self.device.type, dtype=dtype)

    def freeze_tower(self, tower: Any, precision: str) -> None:
        """Exclude the vision tower from training, in `precision`; its last norm trains with the Q-Former, in fp32."""
        self.freeze(tower)
        tower.post_layernorm.requires_grad_(True)
        tower.to(DTYPES[precision])

        def as_float(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(item.float() for item in inputs)

        tower.post_layernorm.float().register_forward_pre_hook(as_float)


class LayerNorm(nn.LayerNorm):
    """torch's in float32, for inputs of any precision."""

    def forward(self, x: Tensor) -> Tensor:
        """[…, C] → the same, in the precision of `x`."""
        return super().forward(x.float()).to(x.dtype)


def disabled_train(self: Any, mode: bool = True) -> Any:
    """In the place of a module's `train`, which then changes nothing (LAVIS' function)."""
    return self


def fitting_images(batch: Batch, device: torch.device, size: int) -> Tensor:
    """`image` [B,3,S,S] on `device`; raises ConfigError if S is not the model's."""
    images: Tensor = batch["image"].to(device)
    if tuple(images.shape[1:]) != (3, size, size):
        found = "×".join(map(str, images.shape[1:]))
        raise ConfigError(
            "vis_processor.image_size", f"images of {found} for a model of 3×{size}×{size}", f"set it to {size}"
        )
    return images
