"""What both stages of BLIP-2 share: the vision tower, and the names by which scripts of LAVIS know the parts."""

from __future__ import annotations

from contextlib import nullcontext
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.types import Batch
from lavis_ext.models.base_model import BaseModel
from lavis_ext.models.network import DTYPES, load_bert_tokenizer

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


class Blip2Base(BaseModel):
    """The base of BLIP-2's models; `net` is transformers' network, `config` their section.

    LAVIS' methods that build its own tower and Q-Former are not here: parts come from a config.
    """

    upstream_prefix: ClassVar[str] = ""
    """Of `{}_proj` and `{}_model` in LAVIS: `opt`, `t5`, `llama` or `llm`; "" without a language model."""

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
