"""Weights of ours for others: LAVIS' and VPGTrans' `.pth` and transformers' folders, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lavis_ext.common.config.schema import ModelConfig
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import disk_errors
from lavis_ext.models.lora import merge_adapters
from lavis_ext.models.weights import OURS, read_checkpoint, save_upstream, to_upstream, translate
from lavis_ext.models.zoo import build_model

WAY_OUT = "free some space, or name another place"
LANGUAGES = {"blip2_opt": "opt", "blip2_t5": "t5", "blip2_llama": "llama", "blip2_vicuna": "llama"}
VPGTRANS = ("blip2_opt", "blip2_llama", "blip2_vicuna")


@dataclass(frozen=True)
class Exported:
    """What was written: where, in which form, and the shape of each tensor by its name there."""

    out: Path
    form: str
    shapes: dict[str, list[int]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    """Tensors of ours that the form has no place for."""

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """Tensors and numbers of each part, by the first word of the names."""
        found: dict[str, tuple[int, int]] = {}
        for name, shape in self.shapes.items():
            count = 1
            for size in shape:
                count *= size
            tensors, numbers = found.get(name.partition(".")[0], (0, 0))
            found[name.partition(".")[0]] = (tensors + 1, numbers + count)
        return found


def export_upstream(checkpoint: str, out: Path, arch: str, form: str) -> Exported:
    """What a checkpoint of ours holds as `{"model": tensors}` under upstream's names; the model is not built.

    `form` is `lavis` or `vpgtrans`. Raises ConfigError for an `arch` that upstream has not, IntegrityError for tensors
    without a name there (as of adapters), DiskError.
    """
    if form == "vpgtrans" and arch not in VPGTRANS:
        raise ConfigError(
            "--form vpgtrans", f"VPGTrans has no {arch}", f"one of {', '.join(VPGTRANS)}, or --form lavis"
        )
    state = translate(read_checkpoint(checkpoint, "CHECKPOINT"), checkpoint)
    if any(".lora_" in name for name in state):
        raise IntegrityError(
            checkpoint, "holds adapters, which have no name in LAVIS", "--form transformers merges them"
        )
    found = to_upstream({name: t for name, t in state.items() if name.startswith(OURS)}, LANGUAGES.get(arch, "opt"))
    save_upstream(found, out)
    return Exported(out, form, shapes_of(found), sorted(name for name in state if not name.startswith(OURS)))


def export_transformers(config: ModelConfig, out: Path) -> Exported:
    """The whole network of a model section with its tokenizer, as `save_pretrained` writes it; adapters are merged.

    A first stage leaves its word head and temperature behind, for which transformers' form has no place. Raises
    ConfigError for a model that has no such network, DiskError.
    """
    model: Any = build_model(config)
    network, tokenizer = getattr(model, "net", None), getattr(model, "tokenizer", None) or getattr(model, "text", None)
    if network is None or tokenizer is None:
        raise ConfigError("--form transformers", f"{config.arch} has no network of transformers'", "--form lavis")
    if getattr(config, "lora", None):
        merge_adapters(network.language_model)
    with new_folder(out) as part:
        network.save_pretrained(part)
        getattr(tokenizer, "tokenizer", tokenizer).save_pretrained(part)
    saved = {name.removeprefix("net."): tensor for name, tensor in model.named_parameters() if name.startswith("net.")}
    left = [name for name, _ in model.named_parameters() if not name.startswith("net.")]
    return Exported(out, "transformers", shapes_of(saved), left)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its name when the block ends well; raises DiskError."""
    part = out.with_name(f".{out.name}.part")
    try:
        with disk_errors(out, WAY_OUT):
            shutil.rmtree(part, ignore_errors=True)
            yield part
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The shape of each tensor, sorted by name."""
    return {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
