"""Oscar (Li et al., arXiv:2004.06165): a BERT that reads words, object tags and image regions in one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError
from lavis_ext.models.stage1 import WordHead
from lavis_ext.oscar.settings import OscarSettings


class TwoLayers(nn.Module):
    """Linear – ReLU – [LayerNorm] – Linear."""

    def __init__(self, width: int, inner: int, classes: int, norm_eps: float | None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner, eps=norm_eps) if norm_eps is not None else None
        self.fc2 = nn.Linear(inner, classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, W] → [B, C]."""
        inner = F.relu(self.fc1(pooled))
        found: Tensor = self.fc2(inner if self.norm is None else self.norm(inner))
        return found


def build_classifier(settings: OscarSettings) -> nn.Module:
    """`linear` or `mlp` over one pooled vector, or over `num_choice` of them side by side.

    VinVL's pair head has a LayerNorm, as its regions have.
    """
    hidden = settings.hidden_size
    width = hidden * (settings.num_choice if settings.head == "pair" else 1)
    if settings.classifier == "linear":
        return nn.Linear(width, settings.num_labels)
    norm = settings.head == "pair" and settings.use_img_layernorm
    eps = float(settings.sizes["layer_norm_eps"]) if norm else None
    return TwoLayers(width, hidden * settings.cls_hidden_scale, settings.num_labels, eps)


def start_anew(part: nn.Module, std: float) -> None:
    """Initialise as BERT: weights normal with the given deviation, biases 0, norms 1."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def class_loss(kind: str, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of `loss_type` `kind` of logits [B, C] against classes [B] (int) or scores by class [B, C].

    bce: sigmoid cross entropy, summed over the classes and averaged over the batch; kl: divergence from the softmax,
    averaged over the batch; anything else: softmax cross entropy.
    """
    soft = targets if targets.is_floating_point() else F.one_hot(targets, logits.shape[1])
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, soft.to(logits.dtype)) * logits.shape[1]
    if kind == "kl":
        return F.kl_div(F.log_softmax(logits, dim=-1), soft.to(logits.dtype), reduction="batchmean")
    return F.cross_entropy(logits, targets)


def caption_loss(logits: Tensor, words: Tensor, smoothing: float = 0.0, drop: float = 0.0) -> Tensor:
    """KL divergence of logits [M, V] from the smoothed true words [M]; a mean without the share `drop` of the highest.

    The smoothed target has 1 − `smoothing` at the word and the rest spread evenly over the others.
    """
    if not len(words):
        return logits.sum() * 0.0
    logs = F.log_softmax(logits.float(), dim=1)
    share = smoothing / (logits.shape[1] - 1)
    target = torch.full_like(logs, share).scatter_(1, words[:, None], 1 - smoothing)
    losses = F.kl_div(logs, target, reduction="none").sum(1)
    kept = max(1, int(len(losses) * (1 - drop)))
    return losses.topk(kept, largest=False).values.mean() if drop > 0 else losses.mean()


UNSEEN = -1e4
"""Added to the scores of masked tokens: far below all others, and finite in half precision, so that a row in which
everything is masked yields no NaN."""


@dataclass(frozen=True)
class OscarOutput:
    """The result of a forward pass; B counts sequences (a pair is two), S = T + R tokens."""

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

    def __init__(self, settings: OscarSettings) -> None:
        super().__init__()
        self.settings = settings
        config = settings.bert()
        self.bert = transformers.BertModel(config)
        self.img_embedding = nn.Linear(settings.img_feature_dim, settings.hidden_size)
        eps = settings.img_layer_norm_eps
        self.img_layer_norm = nn.LayerNorm(settings.hidden_size, eps=eps) if settings.use_img_layernorm else None
        self.dropout = nn.Dropout(float(settings.sizes["hidden_dropout_prob"]))
        self.bert.embeddings.dropout = nn.Identity()  # `join` drops, once for each view of what was embedded once
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
        return self.join(*self.embed_parts(ids, segments, regions, positions))

    def embed_parts(
        self, ids: Tensor, segments: Tensor | None, regions: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Words [B, T, H] and regions [B, R, H] before their dropout; raises ConfigError for a text too long."""
        limit = self.bert.config.max_position_embeddings
        if positions is None and ids.shape[1] > limit:
            what = f"a text of {ids.shape[1]} tokens, the model has {limit} positions"
            raise ConfigError("max_seq_length", what, f"set it to {limit} or less")
        words: Tensor = self.bert.embeddings(input_ids=ids, token_type_ids=segments, position_ids=positions)
        return words, None if regions is None else self.embed_regions(regions)

    def join(self, words: Tensor, regions: Tensor | None) -> Tensor:
        """The parts under dropout as one sequence, the words first."""
        words = self.dropout(words)
        return words if regions is None else torch.cat([words, self.dropout(regions).to(words.dtype)], dim=1)

    def embed_regions(self, regions: Tensor) -> Tensor:
        """[B, R, D] → [B, R, H]; raises ConfigError for another width D."""
        width = self.settings.img_feature_dim
        if regions.shape[-1] != width:
            what = f"the regions are {regions.shape[-1]} wide, the model takes {width}"
            raise ConfigError("img_feats", what, "use features that the model was trained on (2048 + 6 for Oscar)")
        projected = self.img_embedding(regions)
        found: Tensor = projected if self.img_layer_norm is None else self.img_layer_norm(projected)
        return found

    def encode(
        self, states: Tensor, mask: Tensor | None, hidden: bool = False, attentions: bool = False, first: bool = False
    ) -> Encoded:
        """[B, S, H] through all layers under a mask [B, S] or [B, S, S]; None: everything sees everything.

        With `first` and in eval mode the last layer gives [CLS] alone, [B, 1, H].
        """
        bias = None if mask is None else self._bias(mask, states)
        kept, scores = [states], []
        short = first and not (self.training or hidden or attentions)
        for layer in self.layers[:-1] if short else self.layers:
            if attentions:
                scores.append(attention_scores(layer, states))
            found = layer(states, bias)
            states = found[0] if isinstance(found, tuple) else found
            if hidden:
                kept.append(states)
        if short:
            states = first_token(self.layers[-1], states, bias)
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


def first_token(layer: Any, states: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer without dropout gives for the first token, [B, 1, H], for a sixth of the work: a classifier reads no
    other, and only keys and values need all of them."""
    own, first = layer.attention.self, states[:, :1]
    shape = (len(states), -1, own.num_attention_heads, own.attention_head_size)
    inputs = zip((own.query, own.key, own.value), (first, states, states), strict=True)
    queries, keys, values = (part(given).view(shape).transpose(1, 2) for part, given in inputs)
    seen = None if bias is None else bias[..., :1, :]
    mixed = F.scaled_dot_product_attention(queries, keys, values, seen, scale=own.scaling)
    found: Tensor = layer.feed_forward_chunk(layer.attention.output(mixed.transpose(1, 2).flatten(2), first))
    return found


def attention_scores(layer: Any, states: Tensor) -> Tensor:
    """Attention scores q·k / √d [B, heads, S, S] of a layer for its input [B, S, H]; fused attention hides them."""
    own = layer.attention.self
    shape = (*states.shape[:2], own.num_attention_heads, own.attention_head_size)
    queries, keys = (part(states).view(shape).transpose(1, 2) for part in (own.query, own.key))
    scores: Tensor = queries @ keys.transpose(-1, -2) * own.attention_head_size**-0.5
    return scores


VIEWS = ("full", "text", "image")
"""What a forward pass sees of a batch: all of it, the text alone, or the regions alone (with [CLS])."""


def narrowed(words: Tensor, regions: Tensor | None, mask: Tensor, view: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """The embedded tokens that [CLS] depends on under a view, and their mask: the text, or [CLS] and the regions.

    A token that no other token sees cannot change [CLS], so the classes are the same for about half of the work. Under
    a mask [B, S, S] it is all of them.
    """
    if view not in ("text", "image") or regions is None or mask.dim() > 2:
        return words, regions, mask
    text = words.shape[1]
    if view == "text":
        return words, None, mask[:, :text]
    return words[:, :1], regions, torch.cat([mask[:, :1], mask[:, text:]], 1)


def hide(mask: Tensor, text: int, view: str) -> Tensor:
    """A mask […, S] over `text` words and then regions, under a view; raises ConfigError for an unknown view."""
    if view not in VIEWS:
        raise ConfigError("view", f"no '{view}'", f"choose from {', '.join(VIEWS)}")
    if view == "full":
        return mask
    mask = mask.clone()
    hidden = slice(text, None) if view == "text" else slice(None, text)
    mask[..., hidden] = 0
    return mask


def visible(mask: Tensor) -> Tensor:
    """bool [B, S]: whether a token sees any other, under a mask [B, S] of keys or [B, S, S]."""
    if mask.dim() == 3:
        return mask.bool().any(-1)
    return mask.bool().any(-1, keepdim=True).expand(mask.shape)
