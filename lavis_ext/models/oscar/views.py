"""What a model may see of a batch: all of it, the text alone, or the regions alone."""

from __future__ import annotations

import torch
from torch import Tensor

from lavis_ext.errors import ConfigError

VIEWS = ("full", "text", "image")


def narrowed(inputs: dict[str, Tensor], view: str) -> dict[str, Tensor]:
    """The inputs that [CLS] depends on under a view: the text alone, or [CLS] and the regions; all under a 3-D mask.

    What no token sees changes nothing but itself, so that the classes are the same for half of the work.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if view not in ("text", "image") or inputs["img_feats"] is None or mask.dim() != ids.dim():
        return inputs
    text = ids.shape[-1]
    if view == "text":
        return {**inputs, "attention_mask": mask[..., :text], "img_feats": None}  # type: ignore[dict-item]
    first = {
        name: None if inputs[name] is None else inputs[name][..., :1]
        for name in ("input_ids", "token_type_ids", "position_ids")
    }
    return {**inputs, **first, "attention_mask": torch.cat([mask[..., :1], mask[..., text:]], -1)}  # type: ignore[dict-item]


def hide(mask: Tensor, text: int, view: str) -> Tensor:
    """A mask […, S] of `text` words and then regions under a view; raises ConfigError for one that there is not."""
    if view not in VIEWS:
        raise ConfigError("view", f"no '{view}'", f"choose from {', '.join(VIEWS)}")
    if view == "full":
        return mask
    mask = mask.clone()
    hidden = slice(text, None) if view == "text" else slice(None, text)
    mask[..., hidden] = 0
    return mask


def visible(mask: Tensor) -> Tensor:
    """bool [B, S]: whether a token sees any other, under a mask [B, S] of keys or [B, S, S]."""
    if mask.dim() == 3:
        return mask.bool().any(-1)
    return mask.bool().any(-1, keepdim=True).expand(mask.shape)
