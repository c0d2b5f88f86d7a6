"""What the weights of Oscar's and VinVL's checkpoints are called here, there and back; nothing passes unexplained.

    bert.{embeddings,encoder,pooler}.*                 the same (transformers' BERT)
    bert.img_embedding.*                               img_embedding.*
    bert.LayerNorm.*                                   img_layer_norm.*      (VinVL)
    classifier.{weight,bias}                           head.*                (linear)
    classifier.0.*, classifier.2.*                     head.fc1.*, head.fc2.*    (mlp)
    classifier.0.*, classifier.2.*, classifier.3.*     head.fc1.*, head.norm.*, head.fc2.*    (VinVL's pair)
    cls.predictions.transform.{dense,LayerNorm}.*      words.{dense,norm}.*
    cls.predictions.bias                               words.bias
    cls.predictions.decoder.weight                     decoder, where it is not that of the word embeddings
    cls.seq_relationship.*                             match.*

`module.` before a name, and `gamma` and `beta` for `weight` and `bias`, are read too. `bert.code_embeddings.*` and
`bert.input_embeddings.*` (for discrete codes) and the buffer `position_ids` are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lavis_ext.errors import IntegrityError
from lavis_ext.models.base import listed
from lavis_ext.models.oscar.settings import Settings

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


def described(state: Mapping[str, Tensor], settings: Settings, where: str) -> Settings:
    """The settings with what the weights themselves tell: head, classes, width of regions, norms, tying.

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
