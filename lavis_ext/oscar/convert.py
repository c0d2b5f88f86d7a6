"""Checkpoints of Oscar and VinVL ↔ `OscarNetwork`. Every weight is renamed, dropped by a rule, or an error.

    theirs                                             ours
    bert.{embeddings,encoder,pooler}.*                 the same (transformers' BERT)
    bert.img_embedding.*                               img_embedding.*
    bert.LayerNorm.*                                   img_layer_norm.*      (VinVL)
    classifier.{weight,bias}                           head.*                (linear)
    classifier.0.*, classifier.2.*                     head.fc1.*, head.fc2.*    (mlp)
    classifier.0.*, classifier.2.*, classifier.3.*     head.fc1.*, head.norm.*, head.fc2.*    (VinVL's pair)
    cls.predictions.transform.{dense,LayerNorm}.*      words.{dense,norm}.*
    cls.predictions.bias                               words.bias
    cls.predictions.decoder.weight                     decoder, unless it equals the word embeddings (tied)
    cls.seq_relationship.*                             match.*

A prefix `module.`, and `gamma` and `beta` for `weight` and `bias`, are read too. `bert.code_embeddings.*` and
`bert.input_embeddings.*` (for discrete codes) and the buffer `position_ids` are dropped.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_ext.common.config.resolve import cache_root
from lavis_ext.common.config.schema import ModelConfig
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import decode_json, disk_errors, expanded, replacing, write_atomic, write_json
from lavis_ext.models.base_model import fit, listed
from lavis_ext.models.export import Exported, new_folder, shapes_of
from lavis_ext.models.weights import own_checkpoint, read_checkpoint, read_tensors
from lavis_ext.models.zoo import build_model, section_of_run
from lavis_ext.oscar.network import OscarNetwork
from lavis_ext.oscar.settings import OscarSettings, read_settings, write_settings

log = logging.getLogger(__name__)
Tensors = dict[str, Tensor]
SAME = re.compile(
    r"^bert\.(embeddings\.((word|position|token_type)_embeddings\.weight|LayerNorm\.(weight|bias))"
    r"|encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.(dense|LayerNorm)"
    r"|intermediate\.dense|output\.(dense|LayerNorm))\.(weight|bias)"
    r"|pooler\.dense\.(weight|bias))$"
)
DROPPED = re.compile(r"^bert\.(code_embeddings|input_embeddings)\.|(^|\.)position_ids$")
TO_OURS = (
    (r"^bert\.img_embedding\.(weight|bias)$", r"img_embedding.\1"),
    (r"^bert\.LayerNorm\.(weight|bias)$", r"img_layer_norm.\1"),
    (r"^classifier\.(weight|bias)$", r"head.\1"),
    (r"^classifier\.0\.(weight|bias)$", r"head.fc1.\1"),
    (r"^classifier\.2\.(weight|bias)$", r"head.fc2.\1"),
    (r"^cls\.predictions\.transform\.dense\.(weight|bias)$", r"words.dense.\1"),
    (r"^cls\.predictions\.transform\.LayerNorm\.(weight|bias)$", r"words.norm.\1"),
    (r"^cls\.predictions\.(?:decoder\.)?bias$", "words.bias"),
    (r"^cls\.predictions\.decoder\.weight$", "decoder"),
    (r"^cls\.seq_relationship\.(weight|bias)$", r"match.\1"),
)
WITH_NORM = ((r"^classifier\.2\.(weight|bias)$", r"head.norm.\1"), (r"^classifier\.3\.(weight|bias)$", r"head.fc2.\1"))
FROM_OURS = (
    (r"^img_embedding\.", "bert.img_embedding."),
    (r"^img_layer_norm\.", "bert.LayerNorm."),
    (r"^head\.fc1\.", "classifier.0."),
    (r"^head\.norm\.", "classifier.2."),
    (r"^head\.(weight|bias)$", r"classifier.\1"),
    (r"^words\.dense\.", "cls.predictions.transform.dense."),
    (r"^words\.norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^words\.bias$", "cls.predictions.bias"),
    (r"^decoder$", "cls.predictions.decoder.weight"),
    (r"^match\.", "cls.seq_relationship."),
)
EMBEDDING = "bert.embeddings.word_embeddings.weight"
LAYER = re.compile(r"^bert\.encoder\.layer\.(\d+)\.")


def to_ours(state: Mapping[str, Tensor], where: str) -> Tensors:
    """An Oscar checkpoint under our names; a decoder that equals the word embeddings is left out.

    Raises IntegrityError for names that no Oscar has, and for two names of one weight that differ.
    """
    plain = [(_plain(name), name) for name in sorted(state)]
    table = (*WITH_NORM, *TO_OURS) if any(name == "classifier.3.weight" for name, _ in plain) else TO_OURS
    found: Tensors = {}
    unknown = []
    for name, theirs in plain:
        if DROPPED.search(name):
            continue
        ours = name if SAME.match(name) else _renamed(name, table)
        if not ours:
            unknown.append(theirs)
        elif ours in found and not torch.equal(found[ours], state[theirs]):
            raise IntegrityError(where, f"{theirs} is there twice, with other values", "save the checkpoint again")
        else:
            found[ours] = state[theirs]
    if unknown:
        what = f"{len(unknown)} weights that no Oscar has: {listed(unknown)}"
        raise IntegrityError(where, what, "name a checkpoint of Oscar or VinVL")
    if "decoder" in found and EMBEDDING in found and torch.equal(found["decoder"], found[EMBEDDING]):
        del found["decoder"]
    return found


def to_theirs(state: Mapping[str, Tensor], tied: bool) -> Tensors:
    """Our weights under Oscar's names, the tied decoder written out as upstream does."""
    last = "3" if "head.norm.weight" in state else "2"
    table = (*FROM_OURS, (r"^head\.fc2\.", f"classifier.{last}."))
    found = {(name if SAME.match(name) else _renamed(name, table)): tensor for name, tensor in state.items()}
    if tied and "cls.predictions.bias" in found:
        found["cls.predictions.decoder.weight"] = found[EMBEDDING].clone()
    return found


def their_names(names: Iterable[str]) -> list[str]:
    """Upstream's names of weights of ours, for messages."""
    table = (*FROM_OURS, (r"^head\.fc2\.", "classifier.2."))
    return sorted(_renamed(name, table) or name for name in names)


def described(state: Mapping[str, Tensor], settings: OscarSettings, where: str) -> OscarSettings:
    """The settings with what follows from the weights: head, classes, width of regions, norms, tying.

    Raises IntegrityError where weights that every Oscar has are missing.
    """
    if EMBEDDING not in state:
        raise IntegrityError(where, f"has no {EMBEDDING}", "name a checkpoint of Oscar, VinVL or BERT")
    regions = state.get("img_embedding.weight")
    facts: dict[str, Any] = {
        "img_feature_dim": settings.img_feature_dim if regions is None else regions.shape[1],
        "use_img_layernorm": "img_layer_norm.weight" in state,
        "tie_weights": "decoder" not in state,
    }
    return replace(settings, **facts, **_head_of(state, settings.hidden_size))


def _head_of(state: Mapping[str, Tensor], hidden: int) -> dict[str, Any]:
    if "match.weight" in state:
        return {"head": "pretrain", "num_contrast_classes": len(state["match.weight"])}
    if "words.bias" in state:
        return {"head": "caption"}
    first = state.get("head.weight", state.get("head.fc1.weight"))
    last = state.get("head.weight", state.get("head.fc2.weight"))
    if first is None or last is None:
        return {}
    members = first.shape[1] // hidden
    pair = {"head": "pair", "num_choice": members} if members > 1 else {"head": "sequence"}
    if "head.weight" in state:
        return {**pair, "classifier": "linear", "num_labels": len(last)}
    return {**pair, "classifier": "mlp", "cls_hidden_scale": len(first) // hidden, "num_labels": len(last)}


def choose_layers(state: Mapping[str, Tensor], layers: list[int]) -> tuple[Tensors, list[str]]:
    """The weights with `layers[i]` as layer i, and the names of those of other layers."""
    place = {str(number): str(index) for index, number in enumerate(layers)}
    kept: Tensors = {}
    left: list[str] = []
    for name, tensor in state.items():
        layer = LAYER.match(name)
        if layer is None:
            kept[name] = tensor
        elif layer[1] in place:
            kept[f"bert.encoder.layer.{place[layer[1]]}.{name[layer.end() :]}"] = tensor
        else:
            left.append(name)
    return kept, left


def _plain(name: str) -> str:
    """A name without DataParallel's prefix, norms named as torch does."""
    name = name.removeprefix("module.")
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return ""


CONFIG, WEIGHTS, VOCAB = "config.json", ("model.safetensors", "pytorch_model.bin"), "vocab.txt"
HEADS = ("head.", "words.", "match.", "decoder")
CLASSIFIERS = ("sequence", "pair")
REGIONS = ("img_embedding.", "img_layer_norm.")


@dataclass(frozen=True)
class UpstreamCheckpoint:
    """A checkpoint of upstream's: its weights under our names, and the settings that weights and `config.json` give."""

    where: str
    state: Tensors
    settings: OscarSettings
    vocab: Path | None = None
    """Its vocabulary; None where none lies beside the weights."""


@dataclass(frozen=True)
class KeyReport:
    """Weights of a checkpoint that the model does not use, and weights of the model that are newly initialised."""

    unused: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [(self.unused, "not used"), (self.new, "new")]
        return "; ".join(f"{len(names)} weights {kind}: {listed(their_names(names))}" for names, kind in parts if names)


def from_oscar(state_dict: Mapping[str, Tensor], config: Mapping[str, Any], where: str = "checkpoint") -> OscarNetwork:
    """The network of a checkpoint of Oscar or VinVL: its `pytorch_model.bin` as tensors, its `config.json` as a dict.

    The head follows from the weights. Of more layers than `config` counts the first are kept. Anything missing,
    unknown, of another shape or not finite raises IntegrityError that names it.
    """
    origin = read_origin(state_dict, config, where)
    layers = list(range(origin.settings.layers))
    network = OscarNetwork(origin.settings)
    report = load_into(network, origin, layers, strict=True)
    if report.unused:
        log.info("%s: %s", where, report)
    return network


def to_oscar(network: OscarNetwork) -> tuple[Tensors, dict[str, Any]]:
    """Weights and `config.json` of a network under Oscar's names; `from_oscar` of both is the same network."""
    state = {name: tensor.detach() for name, tensor in network.named_parameters()}
    return to_theirs(state, network.settings.tie_weights), write_settings(network.settings)


def write_oscar(network: OscarNetwork, folder: Path, vocab: Path | None = None) -> None:
    """Save a network as upstream does: `pytorch_model.bin`, `config.json` and `vocab.txt`; raises DiskError."""
    state, config = to_oscar(network)
    with disk_errors(folder, "name another place", also=(RuntimeError,)):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, config)
        if vocab is not None:
            write_atomic(folder / VOCAB, vocab.read_bytes())
        with replacing(folder / WEIGHTS[1]) as part:
            torch.save({name: tensor.cpu().contiguous() for name, tensor in state.items()}, part)


def read_origin(state_dict: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> UpstreamCheckpoint:
    """A checkpoint under our names with its settings; raises IntegrityError for what no Oscar has."""
    state = to_ours(state_dict, where)
    return UpstreamCheckpoint(where, state, described(state, read_settings(config, where), where))


def find_folder(name: str, key: str) -> Path:
    """A checkpoint folder, below cache_root, else as given; a file in it names its folder. Raises ConfigError."""
    given = expanded(name)
    for place in (cache_root() / given, given):
        if place.is_file():
            return place.parent
        if place.is_dir():
            return place
        if (archive := place.with_name(f"{place.name}.zip")).is_file():
            way_out = f"unzip {archive} -d {archive.parent}"
            raise ConfigError(f"{key} {name}", "is still in an archive", way_out)
    what = f"no folder, neither at {cache_root() / given} nor as given"
    way_out = "name the folder of a run, or of an Oscar checkpoint (config.json, pytorch_model.bin)"
    raise ConfigError(f"{key} {name}", what, way_out)


def read_folder(folder: Path, key: str) -> UpstreamCheckpoint:
    """The checkpoint in a folder of upstream's form, or the best one of a run of ours.

    Raises ConfigError where a file is not there, IntegrityError for one that is broken, UnsafeError for a pickle of
    more than tensors.
    """
    where = f"{key} {folder}"
    if (own := own_checkpoint(folder)) is not None:
        return read_run(own, key)
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    lacking = "config.json" if not (folder / CONFIG).is_file() else "" if weights else " or ".join(WEIGHTS)
    if lacking:
        raise ConfigError(where, f"holds no {lacking}", "name the folder that was unpacked from an Oscar checkpoint")
    try:
        config = decode_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(where, f"config.json cannot be read: {error}", "fetch it again") from error
    if not isinstance(config, dict):
        raise IntegrityError(where, "config.json is no table of names and values", "fetch it again")
    found = read_origin(read_tensors(weights[0], key), config, where)
    return replace(found, vocab=folder / VOCAB if (folder / VOCAB).is_file() else None)


def read_run(checkpoint: Path, key: str) -> UpstreamCheckpoint:
    """A checkpoint of a run as one of upstream's: its network is built, for what was frozen is in `pretrained` alone.

    Raises ConfigError for a run of another architecture, and what building the model raises.
    """
    section = section_of_run(checkpoint.parent, key)
    if section.arch != "oscar":
        raise ConfigError(f"{key} {checkpoint}", f"holds a {section.arch}, no Oscar", "name the run of an Oscar")
    start = find_folder(section.pretrained, key) if section.load_pretrained and section.pretrained else None
    if start and start.resolve() == checkpoint.parent.resolve():
        what = "its config.yaml is that of an evaluation, which says not what the checkpoint was trained from"
        raise ConfigError(f"{key} {start}", what, "put the config.yaml of the training back")
    model: Any = build_model(replace(section, load_finetuned=True, finetuned=str(checkpoint)))
    state = {name: tensor.detach() for name, tensor in model.network.named_parameters()}
    vocab = model.tokenizer.path if model.tokenizer else None
    return UpstreamCheckpoint(f"{key} {checkpoint}", state, model.network.settings, vocab)


def classes_of(name: str, key: str) -> int | None:
    """How many classes the classifier of fine-tuned weights has, ours or upstream's; None: it has no classifier."""
    place = expanded(name)
    if (place if place.is_dir() else place.parent).joinpath(CONFIG).is_file():
        state: Mapping[str, Tensor] = read_folder(find_folder(name, key), key).state
    else:
        state = {name.removeprefix("network."): tensor for name, tensor in read_checkpoint(name, key).items()}
    last = state.get("head.weight", state.get("head.fc2.weight"))
    return None if last is None else len(last)


def meet(wish: OscarSettings, origin: UpstreamCheckpoint, labels: int | None, width: int) -> OscarSettings:
    """The settings `wish`, with those that the checkpoint decides: its classifier, and whether words are tied.

    A plain BERT has no region weights; they will be `width` wide. Raises ConfigError where the checkpoint's classifier
    has other classes than the `labels` that are asked for.
    """
    found = origin.settings
    has_classifier = any(name.startswith("head.") for name in origin.state)
    if has_classifier and wish.head in CLASSIFIERS:
        if labels is not None and labels != found.num_labels:
            what = f"its classifier has {found.num_labels} classes, {labels} are asked for"
            raise ConfigError(
                origin.where, what, "use the data set that it was trained on, or a pre-trained checkpoint"
            )
        names = ("head", "classifier", "cls_hidden_scale", "num_choice", "num_labels")
        wish = replace(wish, **{name: getattr(found, name) for name in names})
    if not any(name.startswith(REGIONS) for name in origin.state):
        log.warning("%s: has no weights for regions, as a plain BERT; they are newly initialised", origin.where)
        wish = replace(wish, img_feature_dim=width)
    if wish.has_words and found.has_words and not found.tie_weights:
        wish = replace(wish, tie_weights=False)
    return wish


def load_into(network: OscarNetwork, origin: UpstreamCheckpoint, layers: list[int], strict: bool = False) -> KeyReport:
    """Load a checkpoint's weights, its layer `layers[i]` as layer i; `strict` allows nothing new.

    Otherwise a head and VinVL's LayerNorm may be newly initialised. Raises IntegrityError for anything else.
    """
    state, left = choose_layers(origin.state, layers)
    unused: list[str] = []
    mine = dict(network.named_parameters())
    if not strict and "match.weight" in mine and _shape(state, "match.weight") != mine["match.weight"].shape:
        unused += [name for name in state if name.startswith("match.")]
    if not strict and "decoder" in mine and "decoder" not in state and "words.bias" in state:
        state["decoder"] = state["bert.embeddings.word_embeddings.weight"]
    unused += [name for name in state if name not in mine and name.startswith(HEADS) and not strict]
    state = {name: tensor for name, tensor in state.items() if name not in unused}
    fresh = (*HEADS, "img_layer_norm.") if any(name.startswith(REGIONS) for name in state) else (*HEADS, *REGIONS)
    free = () if strict else fresh
    new = tuple(name for name in mine if name not in state and name.startswith(free))
    fit(origin.where, {name: tensor for name, tensor in mine.items() if name not in new}, state)
    return KeyReport((*left, *unused), new)


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def export_oscar(config: ModelConfig, out: Path) -> Exported:
    """The network of an Oscar as upstream's scripts read it: `config.json`, `pytorch_model.bin` and `vocab.txt`.

    Raises ConfigError for another architecture, DiskError.
    """
    model: Any = build_model(config)
    if not isinstance(getattr(model, "network", None), OscarNetwork):
        raise ConfigError("--form oscar", f"{config.arch} is no Oscar", "name another --form")
    with new_folder(out) as part:
        write_oscar(model.network, part, model.tokenizer.path if model.tokenizer else None)
    return Exported(out, "oscar", shapes_of(to_oscar(model.network)[0]))
