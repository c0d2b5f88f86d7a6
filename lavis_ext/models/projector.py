"""vpgtrans_projector: a linear map between the word embeddings of two language models, to transfer a projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import models
from lavis_ext.common.types import Batch
from lavis_ext.models.base_model import BaseModel
from lavis_ext.models.network import load_config, load_embedding, load_network, load_tokenizer, stub_config
from lavis_ext.models.settings import ProjectorConfig
from lavis_ext.models.text import target_texts
from lavis_ext.models.weights import PROJECTION, read_checkpoint, translate


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
        pairs = self.word_pairs(target_texts(batch))
        count = len(batch["text_input"])
        if not pairs:
            return {"loss": 0.0 * self.map.weight.sum(), "matched": self.map.weight.new_zeros(())}
        source, target = (torch.tensor([pair[side] for row in pairs for pair in row]) for side in (0, 1))
        mapped = self.map(self.source(source.to(self.device)).float())
        wanted = self.target(target.to(self.device)).float()
        loss = 1 - F.cosine_similarity(mapped, wanted, dim=-1).mean()
        return {"loss": loss, "matched": loss.new_tensor(len(pairs) / count)}

    def word_pairs(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """(source id, target id) of each token, for the texts that both tokenizers split into equally many tokens."""
        cut = [one(texts, add_special_tokens=False)["input_ids"] for one in self.tokenizers]
        rows = zip(cut[0], cut[1], strict=True)
        return [list(zip(a, b, strict=True)) for a, b in rows if len(a) == len(b) > 0]

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
