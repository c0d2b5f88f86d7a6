"""Tensors from checkpoints: ours and transformers' (safetensors), LAVIS' `.pth` without running its pickle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lavis_ext.errors import ConfigError, IntegrityError, UnsafeError

Tensors = dict[str, Tensor]
LAVIS_NAMES = (
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.", "qformer."),
    (r"\.(attention|crossattention)\.self\.", r".\1.attention."),
    (r"^(opt|t5|llama)_proj\.", "language_projection."),
)
"""How the trained parts of a BLIP-2 checkpoint of LAVIS or VPGTrans are called in transformers' network."""


def read_checkpoint(path: str, key: str) -> Tensors:
    """Tensors of a file (`.safetensors`, `.pth`) or a folder (`checkpoint_*/` of ours, or in transformers' form).

    `key` is the config key that named it. Raises ConfigError if nothing is there, IntegrityError if it cannot be read,
    UnsafeError if it is a pickle of more than tensors.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = sorted(place.glob("model*.safetensors"))
        if not files:
            raise ConfigError(
                f"{key} {place}", "no model*.safetensors in the folder", "name a checkpoint folder or file"
            )
        state = {name: tensor for file in files for name, tensor in _read_safetensors(file, key).items()}
        return {f"net.{name}": tensor for name, tensor in state.items()} if (place / "config.json").is_file() else state
    if not place.is_file():
        raise ConfigError(f"{key} {place}", "no such file or folder", "check the path")
    return _read_safetensors(place, key) if place.suffix == ".safetensors" else _read_pickled(place, key)


def _read_safetensors(path: Path, key: str) -> Tensors:
    try:
        tensors: Tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(f"{key} {path}", f"cannot be read: {error}", "copy or save it again") from error
    return tensors


def _read_pickled(path: Path, key: str) -> Tensors:
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UnsafeError(
            f"{key} {path}", "holds more than tensors and plain values", "save its tensors as safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise IntegrityError(f"{key} {path}", f"cannot be read: {error}", "copy or save it again") from error
    state = tree.get("model", tree) if isinstance(tree, Mapping) else {}
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise IntegrityError(f"{key} {path}", "holds no tensors under `model`", "name a LAVIS checkpoint")
    return tensors


def translate(state: Mapping[str, Tensor]) -> Tensors:
    """A checkpoint of LAVIS, VPGTrans or ours under our names (`net.…`)."""
    return {_translate_name(name): tensor for name, tensor in state.items()}


def _translate_name(name: str) -> str:
    if name.startswith("net."):
        return name
    for pattern, replacement in LAVIS_NAMES:
        name = re.sub(pattern, replacement, name)
    return f"net.{name}"
