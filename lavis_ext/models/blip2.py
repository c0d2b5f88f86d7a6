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
from lavis_ext.models.network import DTYPES, load_bert_tokenizer
from lavis_ext.models.weights import named_as_upstream, translate_for

PARTS = {
    "ln_vision": "net.vision_model.post_layernorm",
    "query_tokens": "net.query_tokens",
    "vision_proj": "net.vision_projection",
    "text_proj": "net.text_projection",
    "itm_head": "net.itm_head",
}
"""LAVIS' attributes → ours."""
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

    LAVIS' methods that build its own tower and Q-Former are not here: parts come from a config.
    """

    upstream_prefix: ClassVar[str] = ""
    """Of `{}_proj` and `{}_model` in LAVIS: `opt`, `t5`, `llama` or `llm`; "" without a language model."""

    max_txt_len = ConfigKey()

    def __getattr__(self, name: str) -> Any:
        """What torch has, else a part by LAVIS' name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            prefix, _, part = name.rpartition("_")
            own = prefix and prefix == type(self).upstream_prefix
            place = LANGUAGE_PARTS.get(part) if own else PARTS.get(name)
            if place is None or "net" not in self._modules:
                raise
            return attrgetter(place)(self)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in torch; tensors under LAVIS' names are translated first. Raises IntegrityError for names of neither."""
        if "net" in self._modules and named_as_upstream(state_dict):
            state_dict = translate_for(self, state_dict, "load_state_dict")
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _lemmatize(self, answers: list[str]) -> list[str]:
        """Nouns and verbs in their base form (LAVIS' method); raises ConfigError without spaCy."""
        return lemmatize(answers)

    @classmethod
    def init_tokenizer(cls, truncation_side: str = "right") -> Any:
        """BERT's tokenizer with `[DEC]` (LAVIS' method); raises NetworkError where it cannot be had."""
        return load_bert_tokenizer(truncation_side=truncation_side)

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


def fitting_images(batch: Batch, device: torch.device, size: int) -> Tensor:
    """`image` [B,3,S,S] on `device`; raises ConfigError if S is not the model's."""
    images: Tensor = batch["image"].to(device)
    if tuple(images.shape[1:]) != (3, size, size):
        found = "×".join(map(str, images.shape[1:]))
        raise ConfigError(
            "vis_processor.image_size", f"images of {found} for a model of 3×{size}×{size}", f"set it to {size}"
        )
    return images
