"""Oscar (Li et al., arXiv:2004.06165): a BERT that reads words, object tags and image regions in one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lavis_ext.errors import ConfigError
from lavis_ext.models.oscar.heads import build_classifier, start_anew
from lavis_ext.models.oscar.settings import Settings
from lavis_ext.models.stage1 import WordHead

UNSEEN = -1e4
"""Added to the score of a token that is masked: far below all others, finite in half precision too, so that a row
that may see nothing yields no NaN."""


@dataclass(frozen=True)
class OscarOutput:
    """What one forward pass yields; B counts sequences (a pair is two), S = T + R tokens."""

    logits: Tensor
    """[B, C] of a classifier ([B / num_choice, C] of a pair's), [B, T, V] of a word head."""
    pooled: Tensor
    """[B, H]"""
    sequence: Tensor
    """[B, S, H]: the last layer."""
    hidden_states: tuple[Tensor, ...] | None = None
    """[B, S, H]: embeddings, then every layer."""
    attentions: tuple[Tensor, ...] | None = None
    """[B, heads, S, S]: scores of every layer before mask and softmax."""
    matching: Tensor | None = None
    """[B, num_contrast_classes] of the pre-training head."""


@dataclass(frozen=True)
class Encoded:
    """The encoder's output: [B, S, H] of the last layer, and of all where asked for."""

    sequence: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class OscarNetwork(nn.Module):
    """Oscar's and VinVL's network on transformers' BERT; `settings` says which head it has.

    Text has positions and segments; a region is a projected feature row, with VinVL normalised, and has neither.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        config = settings.bert()
        self.bert = transformers.BertModel(config)
        self.img_embedding = nn.Linear(settings.img_feature_dim, settings.hidden_size)
        eps = settings.img_layer_norm_eps
        self.img_layer_norm = nn.LayerNorm(settings.hidden_size, eps=eps) if settings.use_img_layernorm else None
        self.dropout = nn.Dropout(float(settings.sizes["hidden_dropout_prob"]))
        self._add_head(config)
        for part in (self.img_embedding, getattr(self, "head", None), getattr(self, "match", None)):
            if part is not None:
                start_anew(part, config.initializer_range)
        if config.residual_range is not None:
            for name, projection in self.layers.named_modules():
                if name.endswith("output.dense"):
                    start_anew(projection, config.residual_range)

    def _add_head(self, config: Any) -> None:
        settings = self.settings
        if not settings.has_words:
            self.head = build_classifier(settings)
            return
        self.words = WordHead(config, config.vocab_size)
        embedding = self.bert.embeddings.word_embeddings.weight
        self.decoder = None if settings.tie_weights else nn.Parameter(embedding.detach().clone())
        if settings.head == "pretrain":
            self.match = nn.Linear(settings.hidden_size, settings.num_contrast_classes)

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, the lowest first."""
        found: nn.ModuleList = self.bert.encoder.layer
        return found

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        img_feats: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> OscarOutput:
        """Ids, segments and positions [B, T], mask [B, S] or [B, S, S] (1 sees), regions [B, R, D] → logits.

        A pair has a second axis of `num_choice` in all of them. Raises ConfigError where shapes cannot go together.
        """
        inputs = (input_ids, token_type_ids, attention_mask, img_feats, position_ids)
        if self.settings.head == "pair":
            inputs = tuple(None if tensor is None else self._flat(tensor) for tensor in inputs)  # type: ignore[assignment]
        ids, segments, mask, regions, positions = inputs
        states = self.embed(ids, segments, regions, positions)
        encoded = self.encode(states, mask, output_hidden_states, output_attentions)
        pooled = self.pool(encoded.sequence)
        return OscarOutput(
            logits=self.predict(encoded.sequence[:, : ids.shape[1]])
            if self.settings.has_words
            else self.classify(pooled),
            pooled=pooled,
            sequence=encoded.sequence,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            matching=self.match(pooled) if self.settings.head == "pretrain" else None,
        )

    def embed(
        self,
        ids: Tensor,
        segments: Tensor | None = None,
        regions: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Words [B, T] and regions [B, R, D] → the encoder's input [B, T+R, H]."""
        limit = self.bert.config.max_position_embeddings
        if positions is None and ids.shape[1] > limit:
            what = f"a text of {ids.shape[1]} tokens, the model has {limit} positions"
            raise ConfigError("max_seq_length", what, f"set it to {limit} or less")
        words: Tensor = self.bert.embeddings(input_ids=ids, token_type_ids=segments, position_ids=positions)
        return words if regions is None else torch.cat([words, self.embed_regions(regions).to(words.dtype)], dim=1)

    def embed_regions(self, regions: Tensor) -> Tensor:
        """[B, R, D] → [B, R, H]."""
        width = self.settings.img_feature_dim
        if regions.shape[-1] != width:
            what = f"the regions are {regions.shape[-1]} wide, the model takes {width}"
            raise ConfigError("img_feats", what, "use features that the model was trained on (2048 + 6 for Oscar)")
        projected = self.img_embedding(regions)
        found: Tensor = self.dropout(projected if self.img_layer_norm is None else self.img_layer_norm(projected))
        return found

    def encode(self, states: Tensor, mask: Tensor | None, hidden: bool = False, attentions: bool = False) -> Encoded:
        """[B, S, H] through all layers under a mask [B, S] or [B, S, S]; None: everything sees everything."""
        bias = None if mask is None else self._bias(mask, states)
        kept, scores = [states], []
        for layer in self.layers:
            if attentions:
                scores.append(attention_scores(layer, states))
            found = layer(states, bias)
            states = found[0] if isinstance(found, tuple) else found
            if hidden:
                kept.append(states)
        return Encoded(states, tuple(kept) if hidden else None, tuple(scores) if attentions else None)

    def pool(self, sequence: Tensor) -> Tensor:
        """[B, S, H] → [B, H]: a layer over [CLS]."""
        pooled: Tensor = self.bert.pooler(sequence)
        return pooled

    def classify(self, pooled: Tensor) -> Tensor:
        """[B, H] → [B, C]; the vectors of a pair side by side, [2B, H] → [B, C]."""
        pooled = self.dropout(pooled)
        if self.settings.head == "pair":
            pooled = pooled.reshape(-1, self.settings.num_choice * pooled.shape[-1])
        logits: Tensor = self.head(pooled)
        return logits

    def predict(self, hidden: Tensor) -> Tensor:
        """[…, H] → logits over the vocabulary […, V]."""
        embedding = self.bert.embeddings.word_embeddings.weight if self.decoder is None else self.decoder
        logits: Tensor = self.words(hidden, embedding)
        return logits

    def _flat(self, tensor: Tensor) -> Tensor:
        """[B, num_choice, …] → [B · num_choice, …]."""
        choices = self.settings.num_choice
        if tensor.shape[1] != choices:
            what = f"a batch of {tensor.shape[1]} members each, the head takes {choices}"
            raise ConfigError("model.num_choice", what, "use a data set of pairs, or another model.head")
        return tensor.flatten(0, 1)

    @staticmethod
    def _bias(mask: Tensor, states: Tensor) -> Tensor:
        """What is added to the scores: [B, 1, 1, S] or [B, 1, S, S]."""
        if mask.shape[-1] != states.shape[1]:
            what = f"covers {mask.shape[-1]} tokens of {states.shape[1]} (text and regions)"
            raise ConfigError("attention_mask", what, "give one value for each word and region")
        wide = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
        return (1.0 - wide.to(states.dtype)) * UNSEEN


def attention_scores(layer: Any, states: Tensor) -> Tensor:
    """What a layer's heads score [B, heads, S, S] for its input [B, S, H]: q·k / √d, as the fused kernel hides."""
    own = layer.attention.self
    shape = (*states.shape[:2], own.num_attention_heads, own.attention_head_size)
    queries, keys = (part(states).view(shape).transpose(1, 2) for part in (own.query, own.key))
    scores: Tensor = queries @ keys.transpose(-1, -2) * own.attention_head_size**-0.5
    return scores
