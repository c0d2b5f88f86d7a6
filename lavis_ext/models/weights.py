"""Tensors from checkpoints: ours and transformers' (safetensors), LAVIS' `.pth` without running its pickle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lavis_ext.errors import ConfigError, IntegrityError, UnsafeError
from lavis_ext.files import disk_errors, replacing
from lavis_ext.models.base import Model
from lavis_ext.models.lora import fit_names
from lavis_ext.models.upstream import STAGE1_ONLY, to_upstream, translate

log = logging.getLogger(__name__)
Tensors = dict[str, Tensor]
QFORMER_PARTS = ("net.query_tokens", "net.vision_model.post_layernorm.", "net.qformer.")
PROJECTION = ("net.language_projection.",)
TOWER = ("net.vision_model.embeddings.", "net.vision_model.encoder.")


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
    return read_tensors(place, key)


def read_tensors(path: Path, key: str) -> Tensors:
    """The tensors of one file, `.safetensors` or pickled; raises IntegrityError or UnsafeError that names `key`."""
    return _read_safetensors(path, key) if path.suffix == ".safetensors" else _read_pickled(path, key)


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


def parts_of(path: str, key: str) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of a checkpoint of ours, LAVIS or VPGTrans, and the prefixes of the part that `key` asks for.

    A vision tower that the Q-Former was trained with goes with it where the checkpoint holds one.
    """
    state = translate(read_checkpoint(path, key), f"{key} {path}")
    if key.endswith("proj_weight_path"):
        return state, PROJECTION
    tower = ("net.vision_model.",) if any(name.startswith(TOWER) for name in state) else ()
    return state, (*QFORMER_PARTS, *tower)


def load_over(model: Model, path: str, key: str) -> None:
    """Put a checkpoint of ours or of upstream over a model; raises IntegrityError for what does not fit.

    What only the first stage uses is passed over by a model of the second.
    """
    state = translate(read_checkpoint(path, key), f"{key} {path}")
    if random_tower(model) and not any(name.startswith(TOWER) for name in state):
        log.warning("%s holds no vision tower, and nothing else names one: it stays random", path)
    mine = model.state_dict()
    state = fit_names(state, mine)
    model.load_trainable_state({n: t for n, t in state.items() if n in mine or not STAGE1_ONLY.match(n)})


def random_tower(model: Model) -> bool:
    """Whether the vision tower of a model was made from sizes."""
    config = getattr(model, "config", None)
    return bool(hasattr(model, "net") and config and not (config.load_pretrained and config.pretrained))


def write_upstream(model: Model, path: Path, language: str = "opt") -> None:
    """Save what a model trained as LAVIS does, `{"model": tensors}`; raises DiskError.

    `language` is what its projection is named after there: `opt`, `t5` or `llama`.
    """
    save_upstream(to_upstream(model.trainable_state(), language), path)


def save_upstream(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write `{"model": tensors}` whole or not at all; raises DiskError."""
    state = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    with disk_errors(path, "free some space, or name another place", also=(RuntimeError,)), replacing(path) as part:
        torch.save({"model": state}, part)
