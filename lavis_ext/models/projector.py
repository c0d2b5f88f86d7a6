"""vpgtrans_projector: a linear map between the word embeddings of two language models, to transfer a projection."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import models
from lavis_ext.common.types import Batch
from lavis_ext.models.base_model import BaseModel
from lavis_ext.models.network import load_config, load_embedding, load_network, load_tokenizer, stub_config
from lavis_ext.models.settings import ProjectorConfig
from lavis_ext.models.speakers import load_llm
from lavis_ext.models.text import target_texts
from lavis_ext.models.weights import PROJECTION, read_checkpoint, translate


def load_words(config: ProjectorConfig, side: str) -> tuple[Any, nn.Embedding]:
    """Tokenizer and word embedding of `source_llm` or `target_llm`, with the words of a run where one is named."""
    named, key = getattr(config, f"{side}_llm"), f"model.{side}_llm"
    weights, tokenizer = getattr(config, f"{side}_weights"), getattr(config, f"{side}_tokenizer")
    reader, model = load_llm(named, tokenizer, None, key, config.llm_precision)
    embedding = model.get_input_embeddings()
    if weights:
        name = next(name for name, part in model.named_modules() if part is embedding)
        held = f"net.language_model.{name}.weight"
        state = translate(read_checkpoint(weights, f"model.{side}_weights"), f"model.{side}_weights {weights}")
        if held not in state or state[held].shape != embedding.weight.shape:
            what = f"holds no words of this {type(model).__name__}"
            raise ConfigError(f"model.{side}_weights {weights}", what, "name a run in which the language model learnt")
        with torch.no_grad():
            embedding.weight.copy_(state[held])
    return reader, embedding


def spellings(tokenizer: Any) -> dict[str, int]:
    """Each token's text, a space before a word kept, → its id; special tokens and parts of a letter are left out.

    `Ġred` of a byte-level vocabulary and `▁red` of SentencePiece are the same text.
    """
    special, found = set(tokenizer.all_special_ids), dict[str, int]()
    for token, number in tokenizer.get_vocab().items():
        text = token.replace("▁", " ")
        if all(letter in BYTES for letter in token):
            text = bytes(BYTES[letter] for letter in token).decode("utf-8", errors="replace")
        if number not in special and text and "\ufffd" not in text:
            found.setdefault(text, number)
    return found


BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""The letters by which byte-level vocabularies write bytes."""


@models.register("vpgtrans_projector", config=ProjectorConfig)
class Projector(BaseModel):
    """VPGTrans' optional start (Zhang et al., arXiv:2305.01278 §4.2): words of one model are mapped to another's.

    Learnt on captions that both tokenizers split into equally many tokens, with the loss 1 - cosine. Its checkpoints
    hold the mapped projection too, so that they serve as `proj_weight_path` of the new model.
    """

    def __init__(self, config: ProjectorConfig, words: tuple[nn.Embedding, nn.Embedding], tokenizers: tuple[Any, Any],
                 projection: nn.Linear) -> None:  # fmt: skip
        super().__init__()
        self.config, self.tokenizers = config, tokenizers
        self.source, self.target = words
        self.projection = projection
        self.map = nn.Linear(self.source.embedding_dim, self.target.embedding_dim)
        for part in (self.source, self.target, self.projection):
            self.freeze(part)

    @classmethod
    def from_config(cls, config: ProjectorConfig) -> Projector:
        """From `opt_model` to `llama_model`, with the projection of `pretrained`; or at random by `sizes`.

        `sizes` has `hidden_size` under `source`, `target` and `queries`; `proj_weight_path` then names the projection.
        Raises ConfigError, NetworkError or IntegrityError.
        """
        config.require_sound()
        if config.source_llm:
            return cls._between_any(config)
        if config.load_pretrained and config.pretrained and config.opt_model and config.llama_model:
            names = {"opt_model": config.opt_model, "llama_model": config.llama_model}
            words = [load_embedding(name, f"model.{key}") for key, name in names.items()]
            tokenizers = [load_tokenizer(name, f"model.{key}") for key, name in names.items()]
            found = load_config(config.pretrained, "model.pretrained")
            settings = stub_config(found, words[0].embedding_dim)
            projection = load_network(config.pretrained, "model.pretrained", config, settings).language_projection
        elif config.sizes and config.tokenizer:
            tokenizers = [load_tokenizer(config.tokenizer, "model.tokenizer")] * 2
            width = {name: int(body["hidden_size"]) for name, body in config.sizes.items()}
            words = [nn.Embedding(len(tokenizers[0]), width[name]) for name in ("source", "target")]
            projection = nn.Linear(width["queries"], width["source"])
        else:
            way_out = "name pretrained, opt_model and llama_model, or give sizes and tokenizer"
            raise ConfigError("model", "does not say between which models", way_out)
        model = cls(config, (words[0], words[1]), (tokenizers[0], tokenizers[1]), projection.float())
        if config.proj_weight_path:
            model.load_projection(config.proj_weight_path)
        return model

    @classmethod
    def _between_any(cls, config: ProjectorConfig) -> Projector:
        """From `source_llm` to `target_llm`, with the projection of `proj_weight_path`."""
        path = str(config.proj_weight_path)
        state = translate(read_checkpoint(path, "model.proj_weight_path"), f"model.proj_weight_path {path}")
        words, tokenizers = [], []
        for side in ("source", "target"):
            tokenizer, embedding = load_words(config, side)
            words.append(embedding)
            tokenizers.append(tokenizer)
        weight = state.get(f"{PROJECTION[0]}weight")
        if weight is None or len(weight) != words[0].embedding_dim:
            found = "none" if weight is None else f"one to {len(weight)} numbers"
            what = f"holds {found}, and the words of source_llm have {words[0].embedding_dim}"
            raise ConfigError("model.proj_weight_path", what, "name a checkpoint that was trained with source_llm")
        projection = nn.Linear(weight.shape[1], weight.shape[0])
        model = cls(config, (words[0], words[1]), (tokenizers[0], tokenizers[1]), projection)
        model.load_projection(path)
        return model

    def load_projection(self, path: str) -> None:
        """Load the source's projection from a checkpoint, ours or upstream's; raises IntegrityError."""
        where = f"model.proj_weight_path {path}"
        state = translate(read_checkpoint(path, "model.proj_weight_path"), where)
        found = {n.replace(PROJECTION[0], "projection."): t for n, t in state.items() if n.startswith(PROJECTION)}
        self.load_part(found, ("projection.",), where)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`text_input` (list of B) → `loss`: 1 - cosine, the mean over tokens; `matched` is the share of captions used.

        The loss is 0 if no caption of the batch can be used.
        """
        pairs = [row for row in self.word_pairs(target_texts(batch)) if row]
        count = len(batch["text_input"])
        if not pairs:
            return {"loss": 0.0 * self.map.weight.sum(), "matched": self.map.weight.new_zeros(())}
        source, target = (torch.tensor([pair[side] for row in pairs for pair in row]) for side in (0, 1))
        mapped = self.map(self.source(source.to(self.device)).float())
        wanted = self.target(target.to(self.device)).float()
        loss = 1 - F.cosine_similarity(mapped, wanted, dim=-1).mean()
        return {"loss": loss, "matched": loss.new_tensor(len(pairs) / count)}

    def word_pairs(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """(source id, target id) of each token, by `word_map`.

        Either of the texts that both tokenizers split into equally many tokens, or of the tokens that both have.
        """
        if self.config.word_map == "shared":
            ids = self.tokenizers[0](texts, add_special_tokens=False)["input_ids"]
            return [[(one, self.shared[one]) for one in row if one in self.shared] for row in ids]
        cut = [one(texts, add_special_tokens=False)["input_ids"] for one in self.tokenizers]
        rows = zip(cut[0], cut[1], strict=True)
        return [list(zip(a, b, strict=True)) for a, b in rows if len(a) == len(b) > 0]

    @cached_property
    def shared(self) -> dict[int, int]:
        """Source id → target id of the tokens that both vocabularies spell alike."""
        spelt = [spellings(one) for one in self.tokenizers]
        return {number: spelt[1][text] for text, number in spelt[0].items() if text in spelt[1]}

    def mapped_projection(self) -> dict[str, Tensor]:
        """The projection to the new model, `W (P q + p) + w`, under the names of a second-stage model."""
        weight, bias = self.map.weight, self.map.bias
        return {
            f"{PROJECTION[0]}weight": weight.detach() @ self.projection.weight.detach(),
            f"{PROJECTION[0]}bias": weight.detach() @ self.projection.bias.detach() + bias.detach(),
        }

    def trainable_state(self) -> dict[str, Tensor]:
        """The map and the mapped projection."""
        return {**super().trainable_state(), **self.mapped_projection()}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a checkpoint's map; the mapped projection follows from it."""
        super().load_trainable_state({n: t for n, t in state.items() if not n.startswith(PROJECTION)})
