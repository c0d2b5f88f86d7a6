"""Small Oscars for tests: checkpoints of upstream's form with random weights, batches, and the forward in numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.common.config.resolve import config_roots

TINY_VOCAB = config_roots()[-1] / "models/oscar/tokenizer-tiny/vocab.txt"
SMALL = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "img_feature_dim": 14,
    "num_labels": 7,
}


def oscar_state(
    config: Mapping[str, Any], head: str = "linear", vinvl: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """Random weights under upstream's names; `head` is linear, mlp, pair, words, pretrain or none."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    state: dict[str, Tensor] = {}

    def matrix(name: str, *shape: int) -> None:
        state[name] = torch.randn(*shape, generator=generator) * 0.3

    def linear(name: str, outputs: int, inputs: int) -> None:
        matrix(f"{name}.weight", outputs, inputs)
        matrix(f"{name}.bias", outputs)

    def norm(name: str, width: int = hidden) -> None:
        state[f"{name}.weight"] = 1 + torch.randn(width, generator=generator) * 0.1
        matrix(f"{name}.bias", width)

    matrix("bert.embeddings.word_embeddings.weight", words, hidden)
    matrix("bert.embeddings.position_embeddings.weight", config["max_position_embeddings"], hidden)
    matrix("bert.embeddings.token_type_embeddings.weight", config["type_vocab_size"], hidden)
    norm("bert.embeddings.LayerNorm")
    for number in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{number}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            linear(f"{layer}.{part}", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, hidden)
        linear(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.output.LayerNorm")
    linear("bert.pooler.dense", hidden, hidden)
    linear("bert.img_embedding", hidden, config["img_feature_dim"])
    if vinvl:
        norm("bert.LayerNorm")
    members, scale, classes = 2 if head == "pair" else 1, config.get("cls_hidden_scale", 3), config["num_labels"]
    if head == "linear":
        linear("classifier", classes, hidden)
    if head in ("mlp", "pair"):
        linear("classifier.0", hidden * scale, hidden * members)
        if head == "pair" and vinvl:
            norm("classifier.2", hidden * scale)
        linear("classifier.3" if head == "pair" and vinvl else "classifier.2", classes, hidden * scale)
    if head in ("words", "pretrain"):
        matrix("cls.predictions.bias", words)
        linear("cls.predictions.transform.dense", hidden, hidden)
        norm("cls.predictions.transform.LayerNorm")
        state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
    if head == "pretrain":
        linear("cls.seq_relationship", config.get("num_contrast_classes", 2), hidden)
    return state


def write_checkpoint(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], vocab: bool = False) -> Path:
    """The folder that upstream's `save_pretrained` leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    if vocab:
        (folder / "vocab.txt").write_bytes(TINY_VOCAB.read_bytes())
    return folder


def oscar_batch(
    config: Mapping[str, Any], texts: int = 3, regions: int = 5, size: int = 4, seed: int = 1
) -> dict[str, Any]:
    """Random ids, segments, region rows; the last text and the last regions are padding in the first sample."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(size, texts + regions, dtype=torch.long)
    mask[0, texts - 1] = mask[0, -2:] = 0
    return {
        "input_ids": torch.randint(5, config["vocab_size"], (size, texts), generator=generator),
        "token_type_ids": torch.randint(0, 2, (size, texts), generator=generator),
        "attention_mask": mask,
        "img_feats": torch.randn(size, regions, config["img_feature_dim"], generator=generator),
    }


class Reference:
    """The published forward pass in float64, written from its formulae (BERT, arXiv:1810.04805; Oscar)."""

    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.w = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.config = config

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def sequence(self, batch: Mapping[str, Any]) -> np.ndarray:
        """[B, T + R, H]"""
        table = "bert.embeddings.{}_embeddings.weight".format
        ids, kinds = batch["input_ids"].numpy(), batch["token_type_ids"].numpy()
        places = batch.get("position_ids")
        places = np.arange(ids.shape[1])[None] if places is None else places.numpy()
        text = self.w[table("word")][ids] + self.w[table("position")][places] + self.w[table("token_type")][kinds]
        x = self.norm("bert.embeddings.LayerNorm", text)
        if batch.get("img_feats") is not None:
            regions = self.linear("bert.img_embedding", batch["img_feats"].double().numpy())
            if "bert.LayerNorm.weight" in self.w:
                regions = self.norm("bert.LayerNorm", regions)
            x = np.concatenate([x, regions], 1)
        mask = batch["attention_mask"].double().numpy()
        seen = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
        for number in range(self.config["num_hidden_layers"]):
            x = self.layer(f"bert.encoder.layer.{number}", x, (1 - seen) * -10000.0)
        return x

    def layer(self, name: str, x: np.ndarray, bias: np.ndarray) -> np.ndarray:
        heads = self.config["num_attention_heads"]
        split = (*x.shape[:2], heads, x.shape[2] // heads)
        q, k, v = (
            self.linear(f"{name}.attention.self.{part}", x).reshape(split).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(split[-1]) + bias
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        context = (shares @ v).swapaxes(1, 2).reshape(x.shape)
        x = self.norm(f"{name}.attention.output.LayerNorm", self.linear(f"{name}.attention.output.dense", context) + x)
        inner = gelu(self.linear(f"{name}.intermediate.dense", x))
        return self.norm(f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", inner) + x)

    def pooled(self, batch: Mapping[str, Any]) -> np.ndarray:
        return np.tanh(self.linear("bert.pooler.dense", self.sequence(batch)[:, 0]))

    def classify(self, pooled: np.ndarray) -> np.ndarray:
        if "classifier.weight" in self.w:
            return self.linear("classifier", pooled)
        inner = np.maximum(self.linear("classifier.0", pooled), 0)
        if "classifier.3.weight" in self.w:
            return self.linear("classifier.3", self.norm("classifier.2", inner))
        return self.linear("classifier.2", inner)

    def words(self, hidden: np.ndarray) -> np.ndarray:
        inner = gelu(self.linear("cls.predictions.transform.dense", hidden))
        inner = self.norm("cls.predictions.transform.LayerNorm", inner)
        return inner @ self.w["cls.predictions.decoder.weight"].T + self.w["cls.predictions.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """x Φ(x), by the error function."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
