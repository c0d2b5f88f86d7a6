"""Weights in and out: our and transformers' safetensors, LAVIS' and VPGTrans' `.pth`, read without running pickles.

`net.` is transformers' network; stage 1 has `temp` and `lm_head.` beside it. LAVIS' names → ours:

    visual_encoder.{cls_token,pos_embed,patch_embed.proj.*}     net.vision_model.embeddings.*
    visual_encoder.blocks.N.{norm1,attn,norm2,mlp}.*            net.vision_model.encoder.layers.N.*
    visual_encoder.blocks.N.attn.{q_bias,v_bias}                …self_attn.qkv.bias, zeros between them for the keys
    ln_vision.*                                                 net.vision_model.post_layernorm.*
    query_tokens                                                net.query_tokens
    Qformer.bert.embeddings.LayerNorm.*                         net.qformer.layernorm.*
    Qformer.bert.embeddings.{word,position}_embeddings.*        net.embeddings.*                     (stage 1)
    Qformer.bert.encoder.layer.N.{attention,crossattention}.self.*    net.qformer.encoder.layer.N.….attention.*
    {opt,t5,llama,llm}_proj.*                                   net.language_projection.*
    {opt,t5,llama,llm}_model.*                                  net.language_model.*
    Qformer.bert.embeddings.*                                   net.qformer.embeddings.*             (InstructBLIP)
    a CLIP tower                                                see clip_tower
    vision_proj.*, text_proj.*, itm_head.*, temp                net.vision_projection.*, …, temp      (stage 1)
    Qformer.cls.predictions.transform.{dense,LayerNorm}.*, .bias      lm_head.{dense,norm}.*, .bias   (stage 1)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import decode_json, disk_errors, expanded, not_there, replacing
from lavis_ext.common.tensors import read_safetensors, read_torch
from lavis_ext.models.base_model import BaseModel, fit, listed
from lavis_ext.models.clip_tower import from_clip, to_clip
from lavis_ext.models.lora import fit_names
from lavis_ext.models.network import resize_positions
from lavis_ext.models.settings import WEIGHT_KEYS, is_checkpoint

log = logging.getLogger(__name__)


Tensors = dict[str, Tensor]
OURS = ("net.", "lm_head.", "temp")
QFORMER_PARTS = ("net.query_tokens", "net.vision_model.post_layernorm.", "net.qformer.")
PROJECTION = ("net.language_projection.",)
PREFIX = "visual_encoder."
TOWER = ("net.vision_model.embeddings.", "net.vision_model.encoder.", "net.vision_model.tower.")
STAGE1_ONLY = re.compile(
    r"^(net\.(embeddings|vision_projection|text_projection|itm_head)\.|temp$|lm_head\."
    r"|net\.qformer\.encoder\.layer\.\d+\.(intermediate|output)\.)"
)
"""Used by the first stage only, but present in checkpoints of both."""


def load_over(model: BaseModel, path: str, key: str) -> None:
    """Load a checkpoint, ours or upstream's, over a model; raises IntegrityError for what does not fit.

    A model of the second stage skips what only the first stage uses.
    """
    where = f"{key} {path}"
    state = translate(read_checkpoint(path, key), where)
    if random_tower(model) and not any(name.startswith(TOWER) for name in state):
        log.warning("%s holds no vision tower and model.pretrained is not loaded: the tower stays random", path)
    mine = model.state_dict()
    state = without_copies(model, fit_names(for_reader(state, mine), mine), where)
    model.load_trainable_state({n: t for n, t in state.items() if n in mine or not STAGE1_ONLY.match(n)})


ROTARY = re.compile(r"\.layers\.\d+\.self_attn(?=\.rotary_emb\.)")
"""Older transformers had LLaMA's frequencies in every layer."""
EMBEDDINGS = re.compile(r"^net\.language_model\..*(embed_tokens|shared|lm_head)\.weight$")


def without_copies(model: BaseModel, state: Mapping[str, Tensor], where: str) -> Tensors:
    """A checkpoint without what upstream saves twice: tied tensors under each name, and buffers of fixed values.

    A second name stands in for a first one that is not there. An embedding saved before `<image>` was added keeps our
    row of it. Raises IntegrityError for copies that differ, and for buffers other than the model's.
    """
    named = model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in model.named_parameters()}
    buffers = {name: tensor for name, tensor in model.named_buffers() if name not in named}
    frozen, kept, wrong = model.frozen_names(), {}, []
    for name, tensor in state.items():
        mine = named.get(name)
        if EMBEDDINGS.match(name) and mine is not None and len(tensor) == len(mine) - 1:
            tensor = torch.cat([tensor, mine.detach()[-1:].to(tensor)])
        main = name if mine is None else first.get(id(mine), name)
        fixed = buffers.get(ROTARY.sub("", name))
        if main != name:
            twin = state.get(main, mine if main in frozen else None)
            if twin is None:
                kept[main] = tensor
            elif not same_values(tensor[: len(twin)], twin[: len(tensor)]):
                wrong.append(f"{name} and {main}")
        elif fixed is None:
            kept[name] = tensor
        elif not same_values(tensor, fixed):
            wrong.append(f"{name} and the model's own")
    if wrong:
        what = f"{len(wrong)} pairs that must be equal differ: {listed(wrong)}"
        raise IntegrityError(where, what, "load it into the language model that it was trained with")
    return kept


READ = (("net.qformer.layernorm.", "net.qformer.embeddings.layernorm."), ("net.embeddings.", "net.qformer.embeddings."))
"""Names of the first stage → those of InstructBLIP, whose Q-Former holds its embeddings itself."""


def for_reader(state: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> Tensors:
    """A checkpoint under the names of a Q-Former that reads instructions, where the model has one."""
    pairs = READ if f"{READ[0][1]}weight" in mine else ()
    swap = {name: new + name.removeprefix(old) for old, new in pairs for name in state if name.startswith(old)}
    return {swap.get(name, name): tensor for name, tensor in state.items()}


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, or equal in the precision of the coarser one."""
    if one.shape != other.shape:
        return False
    a, b = one.detach().cpu(), other.detach().cpu()
    return torch.equal(a, b.to(a.dtype)) or torch.equal(a.to(b.dtype), b)


def random_tower(model: BaseModel) -> bool:
    """Whether the vision tower of a model was made from `sizes`, with random weights."""
    config = getattr(model, "config", None)
    return bool(hasattr(model, "net") and config and not (config.load_pretrained and config.pretrained))


# `pretrained` as a checkpoint: LAVIS puts it over a model of the arch's own parts, whatever it lacks.

TOWERS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"
FETCHED = {"eva_clip_g": f"{TOWERS}eva_vit_g.pth", "clip_L": f"{TOWERS}clip_vit_L.pth"}
"""Where LAVIS fetches the tower of a `vit_model`; its checkpoints of BLIP-2 hold none."""
FOREIGN = re.compile(r"^(opt|t5|llama|llm)_(proj|model)\.")
BLOCK_NUMBER = re.compile(r"\.encoder\.layers\.(\d+)\.")


def load_pretrained(model: Any, language: str = "") -> None:
    """Put `model.pretrained`, a checkpoint, over a model of the arch's own parts, as LAVIS does.

    It may lack what the second stage adds; projections and language models of another `language` than the arch's are
    skipped, as names of both stages are. Raises IntegrityError for one without a Q-Former, for other shapes, and for
    names that BLIP-2 does not have.
    """
    config = model.config
    where = f"model.pretrained {config.pretrained}"
    raw = read_checkpoint(str(config.pretrained), "model.pretrained")
    others = [name for name in raw if (kind := FOREIGN.match(name)) and kind[1] != language]
    state = translate({name: tensor for name, tensor in raw.items() if name not in others}, where)
    if config.vit_weights and not any(name.startswith(TOWER) for name in state):
        state |= tower_of(config.vit_weights, config.vit_model)
    mine = model.state_dict()
    if not any(name.startswith("net.qformer.") for name in state):
        raise IntegrityError(where, "holds no Q-Former", "name a checkpoint of BLIP-2 that learnt one")
    if not any(name.startswith(TOWER) for name in state):
        log.warning("%s holds no vision tower: the tower stays random", where)
    known = without_copies(model, for_reader(state, mine), where)
    state = {name: fitted(name, t, mine) for name, t in known.items() if name in mine}
    missing = sorted(set(dict(model.named_parameters())) - set(state) - model.frozen_names())
    if missing:
        log.warning("%s lacks %d tensors, which start anew: %s", where, len(missing), listed(missing))
    fit(where, {name: mine[name] for name in state}, state)


def translate_for(model: Any, state: Mapping[str, Tensor], where: str) -> Tensors:
    """A checkpoint under the model's names, positions fitted; names of other language models are kept as given.

    Raises IntegrityError for copies that differ.
    """
    own = str(getattr(model, "upstream_prefix", ""))
    others = {name: tensor for name, tensor in state.items() if (kind := FOREIGN.match(name)) and kind[1] != own}
    mine = model.state_dict()
    found = translate({name: tensor for name, tensor in state.items() if name not in others}, where)
    known = without_copies(model, fit_names(for_reader(found, mine), mine), where)
    return {**others, **{name: fitted(name, t, mine) if name in mine else t for name, t in known.items()}}


def tower_of(path: str, vit_model: str) -> Tensors:
    """The tensors of a vision tower under our names, from a file that may have no `visual_encoder.` before its names.

    What follows the tower, and blocks beyond those that LAVIS takes, are left out by `load_pretrained`.
    """
    raw = read_checkpoint(path, "model.vit_weights")
    named = {f"{PREFIX}{name.removeprefix(PREFIX)}": tensor for name, tensor in raw.items()}
    tower, rest = from_clip(named)
    rest = {name: tensor for name, tensor in rest.items() if BIASES.match(name) or _ours(name)}
    found = {**tower, **translate(rest, f"model.vit_weights {path}")}
    if not found:
        raise IntegrityError(f"model.vit_weights {path}", f"holds no {vit_model}", "name weights of that tower")
    return found


def fitted(name: str, tensor: Tensor, mine: Mapping[str, Tensor]) -> Tensor:
    """Positions of another image size, interpolated; any other tensor unchanged."""
    own = mine[name]
    if name.endswith("vision_model.embeddings.position_embedding") and tensor.shape != own.shape:
        return resize_positions(tensor, round((own.shape[1] - 1) ** 0.5))
    return tensor


def with_local_weights(config: Any, root: Path) -> Any:
    """A model section whose weights are files: URLs are fetched to `models/<host>/<path>` below the cache root.

    Raises NetworkError, AccessError, DiskError or OwnedError.
    """
    named = {key: str(value) for key in WEIGHT_KEYS if (value := getattr(config, key, None))}
    used = {key for key in named if not (key == "pretrained" and not config.load_pretrained)}
    used -= set() if config.load_finetuned else {"finetuned"}
    local = {key: str(fetched(named[key], f"model.{key}", root)) for key in used if "://" in named[key]}
    config = replace(config, **local) if local else config
    loads = bool(config.load_pretrained and config.pretrained and is_checkpoint(config.pretrained))
    if not loads or config.sizes or getattr(config, "vit_weights", "none"):
        return config
    held = read_checkpoint(config.pretrained, "model.pretrained")
    if any(name.startswith((PREFIX, *TOWER)) for name in held):
        return config
    return replace(config, vit_weights=str(fetched(FETCHED[config.vit_model], "model.vit_weights", root)))


def fetched(url: str, key: str, root: Path) -> Path:
    """The local copy of a published checkpoint, fetched once; what it was compared with is logged."""
    from lavis_ext.fetch.engine import fetch
    from lavis_ext.fetch.mirrors import MirrorMap, mirror_path
    from lavis_ext.fetch.safety import safe_relative
    from lavis_ext.fetch.transfer import Source, Transfer

    path = root / "models" / safe_relative(mirror_path(url))
    transfer = MirrorMap.from_environment().apply(Transfer(path, (Source(url),), label=f"{key} {path.name}"))
    if not path.is_file():
        log.warning("%s: fetching %s to %s, of a size that nobody declares", key, mirror_path(url), path)
    found = fetch(transfer)
    if not found.reused:
        how = "as its mirror declares it" if found.verified else "not verified: nobody declares its size or hash"
        log.warning("%s: fetched %s to %s (%d bytes, %s)", key, found.source, path, found.bytes_moved, how)
    return path


def parts_of(path: str, key: str) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of a checkpoint, ours, LAVIS' or VPGTrans', and the prefixes of the part that `key` loads.

    With the Q-Former goes the vision tower that it was trained with, if the checkpoint has it.
    """
    state = translate(read_checkpoint(path, key), f"{key} {path}")
    if key.endswith("proj_weight_path"):
        return state, PROJECTION
    tower = ("net.vision_model.",) if any(name.startswith(TOWER) for name in state) else ()
    return state, (*QFORMER_PARTS, *tower)


POINTERS = ("best.json", "latest.json")
"""What names a checkpoint in the folder of a run."""


def own_checkpoint(place: Path) -> Path | None:
    """The checkpoint of ours that a folder is, or the best (else newest) of the run that it is; None: neither."""
    if (place / "manifest.json").is_file():
        return place
    for pointer in POINTERS:
        try:
            named = place / str(decode_json((place / pointer).read_text(encoding="utf-8")).get("checkpoint", ""))
        except (OSError, ValueError, AttributeError):
            continue  # not there, or torn: the other one may say it
        if (named / "manifest.json").is_file():
            return named
    return None


def read_checkpoint(path: str, key: str) -> Tensors:
    """Tensors of a file (`.safetensors`, `.pth`) or a folder (a run, its `checkpoint_*/`, or transformers' form).

    `key` is the config key that names it. Raises ConfigError if it does not exist, IntegrityError if it cannot be read,
    UnsafeError if it is a pickle of more than tensors.
    """
    place = expanded(path)
    place = own_checkpoint(place) or place
    if place.is_dir():
        files = sorted(place.glob("model*.safetensors"))
        if not files:
            raise ConfigError(
                f"{key} {place}", "no model*.safetensors in the folder", "name a checkpoint folder or file"
            )
        state = {name: tensor for file in files for name, tensor in _read_safetensors(file, key).items()}
        return {f"net.{name}": tensor for name, tensor in state.items()} if (place / "config.json").is_file() else state
    if not place.is_file():
        raise ConfigError(f"{key} {place}", *not_there(place, otherwise="check the path"))
    return read_tensors(place, key)


def read_tensors(path: Path, key: str) -> Tensors:
    """The tensors of one file, `.safetensors` or pickled; raises IntegrityError or UnsafeError that names `key`."""
    return _read_safetensors(path, key) if path.suffix == ".safetensors" else _read_pickled(path, key)


def _read_safetensors(path: Path, key: str) -> Tensors:
    return read_safetensors(path, f"{key} {path}")


def _read_pickled(path: Path, key: str) -> Tensors:
    tree = read_torch(path, f"{key} {path}")
    state = tree.get("model", tree) if isinstance(tree, Mapping) else {}
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise IntegrityError(f"{key} {path}", "holds no tensors under `model`", "name a LAVIS checkpoint")
    return tensors


def write_upstream(model: BaseModel, path: Path, language: str = "opt") -> None:
    """Save the trained tensors of a model in LAVIS' form, `{"model": tensors}`; raises DiskError.

    `language` is the prefix of the projection's name: `opt`, `t5` or `llama`.
    """
    save_upstream(to_upstream(model.trainable_state(), language), path)


def save_upstream(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write `{"model": tensors}` atomically; raises DiskError."""
    state = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    with disk_errors(path, "name another place", also=(RuntimeError,)), replacing(path) as part:
        torch.save({"model": state}, part)


TO_OURS = (
    (r"^visual_encoder\.cls_token$", "net.vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "net.vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "net.vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"net.vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"net.vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"net.vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"net.vision_model.encoder.layers.\1.mlp."),
    (r"^ln_vision\.", "net.vision_model.post_layernorm."),
    (r"^query_tokens$", "net.query_tokens"),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "net.qformer.layernorm."),
    (r"^Qformer\.bert\.embeddings\.(word|position)_embeddings\.", r"net.embeddings.\1_embeddings."),
    (
        r"^Qformer\.bert\.encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.",
        r"net.qformer.encoder.layer.\1.\2.attention.",
    ),
    (r"^Qformer\.bert\.encoder\.layer\.", "net.qformer.encoder.layer."),
    (r"^(?:opt|t5|llama|llm)_proj\.", "net.language_projection."),
    (r"^(?:opt|t5|llama|llm)_model\.", "net.language_model."),
    (r"^(vision|text)_proj\.", r"net.\1_projection."),
    (r"^itm_head\.", "net.itm_head."),
    (r"^Qformer\.cls\.predictions\.transform\.dense\.", "lm_head.dense."),
    (r"^Qformer\.cls\.predictions\.transform\.LayerNorm\.", "lm_head.norm."),
    (r"^Qformer\.cls\.predictions\.bias$", "lm_head.bias"),
    (r"^temp$", "temp"),
)
INDEX = "Qformer.bert.embeddings.position_ids"
"""0, 1, 2, …: a buffer."""
TIED = {
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
}
"""Second names of the word head's tensors."""
BIASES = re.compile(r"^visual_encoder\.blocks\.(\d+)\.attn\.([qv])_bias$")


def named_as_upstream(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors have LAVIS' names, not ours."""
    return not any(name.startswith("net.") for name in state) and any(_ours(name) for name in state)


def translate(state: Mapping[str, Tensor], where: str = "checkpoint") -> Tensors:
    """A checkpoint of LAVIS or VPGTrans under our names; one of ours unchanged.

    Raises IntegrityError for an unknown name.
    """
    if any(name.startswith("net.") for name in state):
        return dict(state)
    tower, state = from_clip(_single(state, where))
    found = {_ours(name): tensor for name, tensor in state.items() if not BIASES.match(name)}
    if "" in found:
        unknown = [name for name in state if not BIASES.match(name) and not _ours(name)]
        what = f"{len(unknown)} names that LAVIS' BLIP-2 does not have: {', '.join(sorted(unknown)[:5])}"
        raise IntegrityError(where, what, "name a checkpoint of BLIP-2")
    return {**tower, **found, **_qkv_biases(state, where)}


def _single(state: Mapping[str, Tensor], where: str) -> Tensors:
    """A checkpoint of LAVIS without the Q-Former's position index and second names; raises IntegrityError."""
    kept = {TIED.get(name, name): tensor for name, tensor in state.items() if name != INDEX}
    kept |= {name: tensor for name, tensor in state.items() if name in TIED.values()}
    pairs = [(name, main) for name, main in TIED.items() if name in state]
    wrong = [f"{name} and {main}" for name, main in pairs if not same_values(state[name], kept[main])]
    index = state.get(INDEX)
    if index is not None and index.flatten().tolist() != list(range(index.numel())):
        wrong.append(f"{INDEX} and 0, 1, 2, …")
    if wrong:
        raise IntegrityError(where, f"{len(wrong)} pairs that must be equal differ: {listed(wrong)}", "save it again")
    return kept


def _ours(name: str) -> str:
    """Our name for one of LAVIS', "" if it is unknown."""
    for pattern, replacement in TO_OURS:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return ""


def _qkv_biases(state: Mapping[str, Tensor], where: str) -> Tensors:
    """Biases of EVA's attention as one of q, k, v; EVA has none for the keys, so theirs are zeros."""
    found: Tensors = {}
    for number in sorted({match[1] for name in state if (match := BIASES.match(name))}):
        prefix = f"visual_encoder.blocks.{number}.attn."
        if f"{prefix}q_bias" not in state or f"{prefix}v_bias" not in state:
            raise IntegrityError(where, f"{prefix} has only one of q_bias and v_bias", "fetch or save it again")
        queries, values = state[f"{prefix}q_bias"], state[f"{prefix}v_bias"]
        name = f"net.vision_model.encoder.layers.{number}.self_attn.qkv.bias"
        found[name] = torch.cat([queries, torch.zeros_like(queries), values])
    return found


FROM_OURS = (
    (r"^net\.vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^net\.vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^net\.vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^net\.vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"visual_encoder.blocks.\1.norm\2."),
    (r"^net\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
    (r"^net\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"visual_encoder.blocks.\1.attn.qkv."),
    (r"^net\.vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
    (r"^net\.vision_model\.post_layernorm\.", "ln_vision."),
    (r"^net\.query_tokens$", "query_tokens"),
    (r"^net\.qformer\.(?:embeddings\.)?layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
    (r"^net\.qformer\.embeddings\.", "Qformer.bert.embeddings."),
    (r"^net\.embeddings\.", "Qformer.bert.embeddings."),
    (
        r"^net\.qformer\.encoder\.layer\.(\d+)\.(attention|crossattention)\.attention\.",
        r"Qformer.bert.encoder.layer.\1.\2.self.",
    ),
    (r"^net\.qformer\.encoder\.layer\.", "Qformer.bert.encoder.layer."),
    (r"^net\.language_projection\.", "{}_proj."),
    (r"^net\.language_model\.", "{}_model."),
    (r"^net\.(vision|text)_projection\.", r"\1_proj."),
    (r"^net\.itm_head\.", "itm_head."),
    (r"^lm_head\.dense\.", "Qformer.cls.predictions.transform.dense."),
    (r"^lm_head\.norm\.", "Qformer.cls.predictions.transform.LayerNorm."),
    (r"^lm_head\.bias$", "Qformer.cls.predictions.bias"),
    (r"^temp$", "temp"),
)


def to_upstream(state: Mapping[str, Tensor], language: str = "opt") -> Tensors:
    """Our tensors under LAVIS' names, as in its `checkpoint["model"]`; `language` is `opt`, `t5` or `llama`.

    Raises IntegrityError for a name without a counterpart.
    """
    found, state = to_clip(state)
    for name, tensor in state.items():
        if layer := re.match(r"^net\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.bias$", name):
            queries, _, values = tensor.chunk(3)
            prefix = f"visual_encoder.blocks.{layer[1]}.attn."
            found |= {f"{prefix}q_bias": queries, f"{prefix}v_bias": values}
        else:
            found[_theirs(name, language)] = tensor
    return found


def _theirs(name: str, language: str) -> str:
    for pattern, replacement in FROM_OURS:
        if re.match(pattern, name):
            return re.sub(pattern, replacement.replace("{}", language), name)
    raise IntegrityError(name, "has no name in LAVIS", "export a BLIP-2 of ours")
