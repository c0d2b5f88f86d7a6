"""Export of weights: LAVIS' and VPGTrans' `.pth`, transformers' folders; written atomically."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from lavis_ext.common.config.schema import ModelConfig
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import apply_umask, disk_errors
from lavis_ext.models.lora import merge_adapters
from lavis_ext.models.network import READER_FOLDER
from lavis_ext.models.settings import Blip2AnyConfig
from lavis_ext.models.weights import OURS, read_checkpoint, save_upstream, to_upstream, translate
from lavis_ext.models.zoo import build_model

WAY_OUT = "name another place"
LANGUAGES = {
    "blip2_opt": "opt",
    "blip2_t5": "t5",
    "blip2_llama": "llama",
    "blip2_vicuna": "llama",
    "blip2_t5_instruct": "t5",
    "blip2_vicuna_instruct": "llm",
    "blip2_causal": "llm",
    "blip2_seq2seq": "llm",
}
VPGTRANS = ("blip2_opt", "blip2_llama", "blip2_vicuna")


@dataclass(frozen=True)
class Exported:
    """What was written: where, in which form, and the shape of each tensor by its exported name."""

    out: Path
    form: str
    shapes: dict[str, list[int]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    """Tensors that the form cannot hold."""

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """(tensors, values) of each part, by the first component of the names."""
        found: dict[str, tuple[int, int]] = {}
        for name, shape in self.shapes.items():
            count = 1
            for size in shape:
                count *= size
            tensors, numbers = found.get(name.partition(".")[0], (0, 0))
            found[name.partition(".")[0]] = (tensors + 1, numbers + count)
        return found


def export_upstream(checkpoint: str, out: Path, arch: str, form: str) -> Exported:
    """Write the tensors of a checkpoint as `{"model": tensors}` under upstream's names; the model is not built.

    `form` is `lavis` or `vpgtrans`. Raises ConfigError for an `arch` that upstream lacks, IntegrityError for tensors
    without an upstream name (such as adapters), DiskError.
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

    The word head and temperature of a first stage are left out: transformers' form cannot hold them. Raises ConfigError
    for a model without such a network, DiskError.
    """
    model: Any = build_model(config)
    network, tokenizer = getattr(model, "net", None), getattr(model, "tokenizer", None) or getattr(model, "text", None)
    if network is None or tokenizer is None:
        raise ConfigError("--form transformers", f"{config.arch} has no network of transformers'", "--form lavis")
    if getattr(config, "lora", None):
        merge_adapters(network.language_model)
    if getattr(config, "tower", "") or isinstance(config, Blip2AnyConfig):
        return export_parts(config, model, out)
    with new_folder(out) as part:
        network.save_pretrained(part)
        getattr(tokenizer, "tokenizer", tokenizer).save_pretrained(part)
        if reader := getattr(model, "reader", None):
            reader.save_pretrained(part / READER_FOLDER)
    saved = {name.removeprefix("net."): tensor for name, tensor in model.named_parameters() if name.startswith("net.")}
    left = [name for name, _ in model.named_parameters() if not name.startswith("net.")]
    return Exported(out, "transformers", shapes_of(saved), left)


def export_parts(config: Any, model: Any, out: Path) -> Exported:
    """A model that transformers has no class for, as the parts that it has: `llm/` with its tokenizer, `vision/`.

    `model.safetensors` has what stands between them, and `model.yaml` the section that puts them together again.
    """
    network, tower = model.net, getattr(model.net.vision_model, "tower", None)
    speaker, tokenizer = getattr(network, "language_model", None), getattr(model, "tokenizer", None) or model.text
    section = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    dropped = {"pretrained", "finetuned", "load_finetuned", "lora", "bert_model", "losses", "vit_weights"}
    section = {name: value for name, value in section.items() if name not in dropped} | {"load_pretrained": False}
    out = out.absolute()
    weights = str(out / "model.safetensors")
    if speaker is None:
        section |= {"load_finetuned": True, "finetuned": weights}
    else:
        section |= {"qformer_weight_path": weights, "proj_weight_path": weights}
    whole = speaker is None and not config.freeze_vit  # what learns must be in the checkpoint of a first stage
    inner = ("net.language_model.", *(() if whole else ("net.vision_model.tower.",)))
    kept = {name: one for name, one in model._persistent().items() if not name.startswith(inner)}
    with new_folder(out) as part:
        folder = part / "llm" if speaker is not None else part / "tokenizer"
        getattr(tokenizer, "tokenizer", tokenizer).save_pretrained(folder)
        section["tokenizer"] = str(out / folder.name)
        if speaker is not None:
            speaker.save_pretrained(folder)
            section["llm"] = str(out / "llm")
        if tower is not None:
            tower.save_pretrained(part / "vision")
            section["vision"] = str(out / "vision")
        save_file({name: one.detach().contiguous().clone() for name, one in kept.items()}, part / "model.safetensors")
        text = OmegaConf.to_yaml(OmegaConf.create({"model": plain(section)}))
        (part / "model.yaml").write_text(text, encoding="utf-8")
    return Exported(out, "transformers", shapes_of(model._persistent()))


def plain(value: Any) -> Any:
    """A section's values as YAML has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that is renamed to `out` if the block succeeds; raises DiskError."""
    part = out.with_name(f".{out.name}.part")
    try:
        with disk_errors(out, WAY_OUT):
            shutil.rmtree(part, ignore_errors=True)
            yield part
            apply_umask(part)
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The shape of each tensor, sorted by name."""
    return {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
