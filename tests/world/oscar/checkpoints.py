"""Folders of a tiny Oscar model in the published form: config, vocabulary and weights, drawn from a seed, untrained."""

from __future__ import annotations

import math
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random
from string import ascii_lowercase, digits, punctuation
from typing import Any

from lavis_ext.demo.language import NUMBERS, plural
from lavis_ext.demo.things import BACKGROUNDS, COLOURS, SHAPES, SIZES
from lavis_ext.demo.world import Scene, World
from tests.world.families import describe, sentences, ten_captions
from tests.world.nlvr import Pair, claims
from tests.world.oscar.forms import Members, as_json, as_pickle, as_tensor, as_torch
from tests.world.questions import POOLS, knowledge, questions
from tests.world.regions import COLUMNS, uniform

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPOKEN = World(seed=1, train=240, val=0, test=0, hidden=0)
"""Scenes enough that the demo's grammar says all of its words; what they do not say is spelled in letters."""
WORD = re.compile("[a-z]{2,}")


@cache
def vocab_txt() -> bytes:
    """`vocab.txt`, one piece a line: the special ones, signs, digits and letters (both again with `##`), words."""
    letters = [*digits, *ascii_lowercase]
    pieces = [*SPECIAL, *punctuation, *letters, *(f"##{letter}" for letter in letters), *sorted(words())]
    return "".join(f"{piece}\n" for piece in pieces).encode()


def words() -> set[str]:
    """The lower-case words of two letters or more that the demo says, asks, answers or puts on a box."""
    return {word for text in (*NOUNS, *said()) for word in WORD.findall(text.lower())}


def said() -> Iterator[str]:
    """What is said about the scenes of a fixed world, by every grammar of the demo."""
    scenes = list(SPOKEN.scenes("train"))
    for scene, other in pairwise(scenes):
        yield from about(scene)
        yield from (text for text, _ in claims(Pair("train", 0, scene, other), Random(scene.id)))


def about(scene: Scene) -> Iterator[str]:
    """Captions, descriptions, questions and answers about one scene."""
    yield from ten_captions(scene)
    yield describe(scene)
    yield from (text for text, _ in sentences(scene))
    for question in (*questions(scene), *knowledge(scene)):
        yield from (question.text, question.answer)


def flat(pools: Iterable[Iterable[str]]) -> list[str]:
    """All entries of all pools."""
    return [entry for pool in pools for entry in pool]


NOUNS = (*COLOURS, *SHAPES, *map(plural, SHAPES), *SIZES, *BACKGROUNDS, *NUMBERS.values(), *flat(POOLS))
"""What may be named, whether or not the fixed world names it."""


HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 64, 6, 4, 128, 512
"""The sizes of configs/models/oscar/tiny.yaml."""
SPREAD = 0.18
WORDS, TIED = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
"""One matrix under two names."""
SHARED: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.0,
    "finetuning_task": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": HIDDEN,
    "img_feature_dim": COLUMNS,
    "img_feature_type": "faster_r-cnn",
    "initializer_range": SPREAD,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": POSITIONS,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
    "torchscript": False,
    "type_vocab_size": 2,
}
TOKENS = {name: f"[{name[:-6].upper()}]" for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Head:
    """The head of a model: nothing but the pre-training heads, or a classifier of some classes.

    `hidden` is the factor of the inner layer of an `mlp` classifier (0: linear); `pair`: it sees two images; `images`:
    VinVL's layer norm of the regions; `classes` of the contrastive head where there are no labels.
    """

    task: str = ""
    labels: int = 2
    loss: str = "sfmx"
    hidden: int = 0
    pair: bool = False
    image_norm: bool = False
    contrast: int = 2

    def config(self) -> dict[str, Any]:
        """What the config says beyond the sizes."""
        settings: dict[str, Any] = {"num_labels": self.labels, "loss_type": self.loss}
        if self.image_norm:
            settings |= {"use_img_layernorm": 1, "img_layer_norm_eps": 1e-12}
        if not self.task:
            return {**settings, "num_contrast_classes": self.contrast}
        kind = {"classifier": "mlp" if self.hidden else "linear", "cls_hidden_scale": self.hidden or 3}
        return {**settings, **kind, "finetuning_task": self.task, **({"num_choice": 2} if self.pair else {})}

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """The weights of the heads."""
        if not self.task:
            yield from pretraining(self.contrast)
            return
        width = HIDDEN * (2 if self.pair else 1)
        if not self.hidden:
            yield from linear("classifier", self.labels, width)
            return
        inner = HIDDEN * self.hidden
        yield from linear("classifier.0", inner, width)
        last = 2
        if self.image_norm and self.pair:
            yield from norm("classifier.2", inner)
            last = 3
        yield from linear(f"classifier.{last}", self.labels, inner)


def checkpoint(key: str, head: Head | None = None) -> Members:
    """The files of one checkpoint; a fine-tuned one holds the training's arguments too, which nobody should load."""
    head = head or Head()
    yield "config.json", as_json({**SHARED, "vocab_size": len(vocab_txt().splitlines()), **head.config()})
    yield "pytorch_model.bin", weights(key, head)
    yield "vocab.txt", vocab_txt()
    yield "special_tokens_map.json", as_json(TOKENS)
    yield "added_tokens.json", as_json({})
    if head.task:
        yield "training_args.bin", as_pickle(Namespace(task_name=head.task, num_labels=head.labels))


@cache
def weights(key: str, head: Head) -> bytes:
    """`pytorch_model.bin`: upstream's names → float32 tensors; norms begin at one and zero, biases at zero."""
    shapes = {**dict(encoder(head.image_norm)), **dict(head.shapes())}
    content = {name: initial(f"{key}/{name}", shape) for name, shape in shapes.items()}
    if TIED in content:
        content[TIED] = content[WORDS]
    return as_torch(content)


def initial(name: str, shape: Shape) -> Any:
    """A weight as a new model has it, but spread evenly, with the same deviation."""
    if len(shape) == 1:
        value = 0.0 if name.endswith("bias") else 1.0
        return as_tensor(uniform(name, math.prod(shape), value, value))
    edge = SPREAD * math.sqrt(3)
    return as_tensor(uniform(name, math.prod(shape), -edge, edge).reshape(shape))


def encoder(image_norm: bool) -> Iterator[tuple[str, Shape]]:
    """The weights below the heads."""
    rows = {"word": len(vocab_txt().splitlines()), "position": POSITIONS, "token_type": 2}
    yield from ((f"bert.embeddings.{name}_embeddings.weight", (count, HIDDEN)) for name, count in rows.items())
    yield from norm("bert.embeddings.LayerNorm", HIDDEN)
    for number in range(LAYERS):
        yield from layer(f"bert.encoder.layer.{number}")
    yield from linear("bert.pooler.dense", HIDDEN, HIDDEN)
    yield from linear("bert.img_embedding", HIDDEN, COLUMNS)
    if image_norm:
        yield from norm("bert.LayerNorm", HIDDEN)


def layer(name: str) -> Iterator[tuple[str, Shape]]:
    """The weights of one layer."""
    for part in ("query", "key", "value"):
        yield from linear(f"{name}.attention.self.{part}", HIDDEN, HIDDEN)
    yield from linear(f"{name}.attention.output.dense", HIDDEN, HIDDEN)
    yield from norm(f"{name}.attention.output.LayerNorm", HIDDEN)
    yield from linear(f"{name}.intermediate.dense", INNER, HIDDEN)
    yield from linear(f"{name}.output.dense", HIDDEN, INNER)
    yield from norm(f"{name}.output.LayerNorm", HIDDEN)


def pretraining(contrast: int) -> Iterator[tuple[str, Shape]]:
    """The heads of pre-training: masked words and the contrastive one."""
    words = len(vocab_txt().splitlines())
    yield "cls.predictions.bias", (words,)
    yield from linear("cls.predictions.transform.dense", HIDDEN, HIDDEN)
    yield from norm("cls.predictions.transform.LayerNorm", HIDDEN)
    yield TIED, (words, HIDDEN)
    yield from linear("cls.seq_relationship", contrast, HIDDEN)


def linear(name: str, out: int, inner: int) -> Iterator[tuple[str, Shape]]:
    """A linear layer."""
    yield f"{name}.weight", (out, inner)
    yield f"{name}.bias", (out,)


def norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    """A layer norm."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
