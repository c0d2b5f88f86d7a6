"""BLIP-2's parts one by one, for a model that is built in LAVIS' manner: `init_Qformer`, `init_vision_encoder`.

The Q-Former has LAVIS' names of modules and tensors, so that scripts reach into it as there
(`Qformer.bert.encoder.layer`, `Qformer.cls = None`) and its checkpoints load as they are. Models of ours have
transformers' Q-Former instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from transformers.models.bert.modeling_bert import BertAttention, BertIntermediate, BertOnlyMLMHead, BertOutput

from lavis_ext.common.config.resolve import cache_root
from lavis_ext.common.errors import ConfigError
from lavis_ext.models import clip_tower
from lavis_ext.models.network import DTYPES, load_config, load_masked_language_model, recompute, size_errors
from lavis_ext.models.weights import FETCHED, fetched, fitted, tower_of, translate

Past = tuple[tuple[Tensor, Tensor], ...]
SMOOTHING = 0.1
"""Of the labels of the Q-Former's texts, as in LAVIS."""


class QformerLayer(nn.Module):
    """BERT's layer; the queries attend to the picture in every `cross_attention_freq`-th, and have own dense layers."""

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.has_cross_attention = bool(config.add_cross_attention) and number % config.cross_attention_freq == 0
        if self.has_cross_attention:
            self.crossattention = BertAttention(config)
            for name in ("key", "value"):
                setattr(self.crossattention.self, name, nn.Linear(config.encoder_width, config.hidden_size))
        self.intermediate, self.output = BertIntermediate(config), BertOutput(config)
        self.intermediate_query, self.output_query = BertIntermediate(config), BertOutput(config)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        queries: int,
        picture: tuple[Tensor, Tensor] | None,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[B, S, C], the first `queries` of them queries → the same, and the keys and values that were attended to."""
        hidden, seen = attend(self.attention, hidden, hidden, mask, past)
        asked, read = hidden[:, :queries], hidden[:, queries:]
        done = []
        if queries:
            if self.has_cross_attention and picture is not None:
                asked, _ = attend(self.crossattention, asked, *picture)
            done.append(self.output_query(self.intermediate_query(asked), asked))
        if read.shape[1]:
            done.append(self.output(self.intermediate(read), read))
        return torch.cat(done, dim=1), seen


def attend(
    part: Any, hidden: Tensor, source: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """BERT's attention from `hidden` [B, S, C] to `source`, behind `past`; `mask` is added to the scores."""
    own = part.self
    query, key, value = (
        made.unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
        for made in (own.query(hidden), own.key(source), own.value(source))
    )
    if past is not None:
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
    rate = own.dropout.p if part.training else 0.0
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype), dropout_p=rate)
    return part.output(found.transpose(1, 2).flatten(2), hidden), (key, value)


class QformerEmbeddings(nn.Module):
    """Words and their positions, behind the queries; no token types."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.register_buffer("position_ids", torch.arange(config.max_position_embeddings).expand(1, -1), False)

    def forward(self, ids: Tensor | None, positions: Tensor | None, queries: Tensor | None, begun: int) -> Tensor:
        """Tokens [B, L] from position `begun` on, queries [B, Q, C] or both → [B, Q+L, C]."""
        parts = [] if queries is None else [queries]
        if ids is not None:
            own: Any = self.position_ids[:, begun : begun + ids.shape[1]]  # type: ignore[index]
            parts.append(self.word_embeddings(ids) + self.position_embeddings(own if positions is None else positions))
        return self.dropout(self.LayerNorm(torch.cat(parts, dim=1)))  # type: ignore[no-any-return]


class QformerBert(nn.Module):
    """LAVIS' `Qformer.bert`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.embeddings, self.encoder = config, QformerEmbeddings(config), nn.Module()
        self.encoder.layer = nn.ModuleList(QformerLayer(config, number) for number in range(config.num_hidden_layers))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        query_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = True,
        is_decoder: bool = False,
        **_: Any,
    ) -> Any:
        """Tokens [B, L], queries [B, Q, C] or both, with a picture [B, P, W] → `last_hidden_state` [B, Q+L, C].

        `attention_mask` [B, Q+L] or [B, Q+L, Q+L], with the length of `past_key_values` before it. With `is_decoder` a
        token sees the tokens up to itself and what is before the text, and queries no text.
        """
        behind = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        begun = behind - self.config.query_length if behind else 0
        hidden = self.embeddings(input_ids, position_ids, query_embeds, begun)
        queries, total = 0 if query_embeds is None else query_embeds.shape[1], behind + hidden.shape[1]
        mask = hidden.new_ones(len(hidden), total) if attention_mask is None else attention_mask
        allowed = mask.bool()[:, None] if mask.ndim == 3 else mask.bool()[:, None, None]
        if is_decoder and mask.ndim == 2:
            prefix = total - (0 if input_ids is None else input_ids.shape[1])
            causal = torch.ones(total, total, dtype=torch.bool, device=hidden.device).tril()
            causal[:prefix, :prefix] = True
            allowed = (causal[None, None] & allowed)[:, :, behind:]
        picture = None
        if encoder_hidden_states is not None:
            seen = encoder_attention_mask
            seen = encoder_hidden_states.new_ones(encoder_hidden_states.shape[:2]) if seen is None else seen
            picture = encoder_hidden_states, added(seen.bool()[:, None, None], hidden)
        states, kept = [hidden], []
        for layer, past in zip(self.encoder.layer, past_key_values or [None] * len(self.encoder.layer), strict=True):  # type: ignore[arg-type]
            hidden, pair = layer(hidden, added(allowed, hidden), queries, picture, past)
            states.append(hidden)
            kept.append(pair)
        found = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden,
            past_key_values=tuple(kept) if use_cache else None,
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        return found if return_dict is not False else found.to_tuple()


def added(allowed: Tensor, like: Tensor) -> Tensor:
    """A bool mask as what is added to scores."""
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(
        ~allowed, torch.finfo(like.dtype).min
    )


class Qformer(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """LAVIS' `BertLMHeadModel`: the Q-Former (`bert`) with BERT's word head (`cls`), which is tied to the words."""

    config_class = transformers.BertConfig
    main_input_name = "input_ids"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert, self.cls = QformerBert(config), BertOnlyMLMHead(config)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.tie()
        self.generation_config = transformers.GenerationConfig(use_cache=False)

    @classmethod
    def from_pretrained(cls, name: str, config: Any = None, **_: Any) -> Qformer:
        """The weights of a BERT (folder or hub name); what a BERT has not is random (LAVIS' call).

        Raises ConfigError where sizes differ, NetworkError where it cannot be had.
        """
        bert = load_masked_language_model(str(name), "init_Qformer")
        model = cls(config or qformer_config(bert.config, 0, bert.config.hidden_size, 1))
        mine = model.state_dict()
        state = {key: tensor for key, tensor in bert.state_dict().items() if key in mine and "position_ids" not in key}
        wrong = [key for key, tensor in state.items() if tensor.shape != mine[key].shape]
        if wrong:
            raise ConfigError(f"init_Qformer {name}", f"{wrong[0]} has another shape", "name a BERT of these sizes")
        model.load_state_dict(state, strict=False)
        return model

    def tie(self) -> None:
        """One tensor for the words that are read and those that are written."""
        head: Any = self.cls.predictions
        head.decoder.weight, head.decoder.bias = self.bert.embeddings.word_embeddings.weight, head.bias

    def get_input_embeddings(self) -> Any:
        """The embedding of words."""
        return self.bert.embeddings.word_embeddings

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_: Any, **__: Any) -> Any:
        """Words from 0 to `new_num_tokens`; new ones are random."""
        old, head = self.bert.embeddings.word_embeddings, self.cls.predictions
        kept = min(old.num_embeddings, new_num_tokens or old.num_embeddings)
        new = nn.Embedding(new_num_tokens or kept, old.embedding_dim, padding_idx=old.padding_idx).to(old.weight)
        nn.init.normal_(new.weight, std=self.config.initializer_range)
        bias = head.bias.new_zeros(new.num_embeddings)
        with torch.no_grad():
            new.weight[:kept], bias[:kept] = old.weight[:kept], head.bias[:kept]
        self.bert.embeddings.word_embeddings, head.bias = new, nn.Parameter(bias)
        head.decoder.out_features = self.config.vocab_size = new.num_embeddings
        self.tie()
        return new

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Past | None = None,
        return_logits: bool = False,
        is_decoder: bool = True,
        reduction: str = "mean",
        **parts: Any,
    ) -> Any:
        """Tokens [B, L] behind queries or `past_key_values` → `logits` [B, L, V], and `loss` of the next tokens.

        `labels` [B, L] of -100 are not learnt; with `return_logits` the logits of all but the last token alone.
        """
        queries = None if past_key_values is not None else query_embeds
        # a caller that asks for tuples gets them of the whole
        named = {**parts, "return_dict": True, "use_cache": labels is None and parts.get("use_cache", True)}
        out = self.bert(
            input_ids, attention_mask, None, queries, past_key_values=past_key_values, is_decoder=is_decoder, **named
        )
        logits = self.cls(out.last_hidden_state[:, 0 if queries is None else queries.shape[1] :])
        if return_logits:
            return logits[:, :-1]
        loss = None
        if labels is not None:
            rows, words = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            loss = F.cross_entropy(rows, words, reduction=reduction, label_smoothing=SMOOTHING)
            loss = loss.view(len(logits), -1).sum(1) if reduction == "none" else loss
        found = CausalLMOutputWithCrossAttentions(loss=loss, logits=logits, past_key_values=out.past_key_values)
        return found if parts.get("return_dict") is not False else found.to_tuple()

    def can_generate(self) -> bool:
        """True; transformers asks it before a search."""
        return True

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        query_embeds: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """The tokens so far with the queries and the picture of each row.

        LAVIS' scripts repeat pictures for the beams, and so does transformers: of the copies one a row is taken.
        """
        rows = len(input_ids)
        given = {"query_embeds": query_embeds, "encoder_hidden_states": encoder_hidden_states}
        if encoder_attention_mask is not None:
            given["encoder_attention_mask"] = encoder_attention_mask
        named = {name: tensor[:: max(len(tensor) // rows, 1)][:rows] for name, tensor in given.items()}
        mask = input_ids.new_ones(rows, query_embeds.shape[1] + input_ids.shape[1])
        return {**named, "input_ids": input_ids, "attention_mask": mask, "use_cache": False}


def qformer_config(bert: Any, queries: int, width: int, every: int) -> Any:
    """A BERT's configuration with LAVIS' keys of a Q-Former."""
    bert.encoder_width, bert.add_cross_attention, bert.is_decoder = width, True, False
    bert.cross_attention_freq, bert.query_length = every, queries
    return bert


def build_qformer(name: str, queries: int, width: int, every: int) -> tuple[Qformer, nn.Parameter]:
    """A Q-Former that starts from the BERT `name`, and its queries [1, Q, C], random."""
    config = qformer_config(load_config(name, "init_Qformer"), queries, width, every)
    tokens = nn.Parameter(torch.empty(1, queries, config.hidden_size).normal_(std=config.initializer_range))
    return Qformer.from_pretrained(name, config), tokens


class VisionTower(nn.Module):
    """transformers' tower of BLIP-2 without its last norm: pictures [B,3,S,S] → [B, P, W]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        network.post_layernorm = nn.Identity()
        self.vision_model = network
        self.num_features: int = network.config.hidden_size

    def forward(self, images: Tensor) -> Tensor:
        """In the precision of the tower."""
        seen: Tensor = self.vision_model(images.to(next(self.parameters()).dtype)).last_hidden_state
        return seen

    def get_num_layer(self, var_name: str = "") -> int:
        """How many blocks there are, or for a tensor's name the number that LAVIS' layer decay gives it."""
        return number_of_block(var_name, len(self.vision_model.encoder.layers))


class TowerView(VisionTower):
    """LAVIS' `visual_encoder` of a model of ours: its tower without the norm, with the same tensors."""

    def __init__(self, tower: Any) -> None:
        nn.Module.__init__(self)
        self.embeddings, self.encoder, self.num_features = tower.embeddings, tower.encoder, tower.config.hidden_size

    def forward(self, images: Tensor) -> Tensor:
        """In the precision of the tower."""
        embeds = self.embeddings(images.to(next(self.parameters()).dtype))
        seen: Tensor = self.encoder(inputs_embeds=embeds).last_hidden_state
        return seen

    def get_num_layer(self, var_name: str = "") -> int:
        """As of a tower that is built by itself."""
        return number_of_block(var_name, len(self.encoder.layers))


class QformerView(nn.Module):
    """LAVIS' `Qformer` of a model of ours, with the same tensors; `bert` takes texts too where ours reads them."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.bert, self.config = QformerViewBert(network), network.config.qformer_config


class QformerViewBert(nn.Module):
    """transformers' Q-Former under LAVIS' arguments."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder = network.qformer.encoder
        if hasattr(network, "embeddings"):
            self.embeddings = network.embeddings
        self.qformer = network.qformer

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Queries [B, Q, C], tokens [B, L] or both, with a picture [B, P, W] → `last_hidden_state`."""
        named = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
        if hasattr(self.qformer, "embeddings"):  # InstructBLIP's embeds by itself
            return self.qformer(input_ids=input_ids, query_embeds=query_embeds, attention_mask=attention_mask, **named)
        if input_ids is None:
            return self.qformer(query_embeds=query_embeds, attention_mask=attention_mask, **named)
        if not hasattr(self, "embeddings"):
            raise ConfigError("Qformer", "this one reads no texts", "a first stage does, or an InstructBLIP")
        queries = 0 if query_embeds is None else query_embeds.shape[1]
        embeds = self.embeddings(input_ids=input_ids, query_embeds=query_embeds)
        return self.qformer(query_embeds=embeds, query_length=queries, attention_mask=attention_mask, **named)


def number_of_block(name: str, count: int) -> int:
    """The number that LAVIS' layer decay gives a tensor of a tower of `count` blocks; without a name `count`."""
    if "embeddings." in name:
        return 0
    block = re.search(r"\.layers\.(\d+)\.", f".{name}")
    return int(block[1]) + 1 if block else count


TOWER = "visual_encoder."
HELD = f"{TOWER}vision_model."


def require_no_drop_path(where: str, rate: float) -> None:
    """Raise ConfigError for a drop path."""
    if rate:
        what = f"{rate} is not served: the tower has no drop path"
        raise ConfigError(f"{where} drop_path_rate", what, "give 0, as all of LAVIS' BLIP-2 have it")


def build_tower(model_name: str, size: int, sizes: Mapping[str, Any], checkpoint: bool, precision: str) -> VisionTower:
    """A tower of LAVIS' `vit_model` with random weights; `sizes` over the published ones.

    Raises ConfigError for another tower or precision.
    """
    for key, value, known in (("vit_model", model_name, FETCHED), ("vit_precision", precision, DTYPES)):
        if value not in known:
            raise ConfigError(f"init_vision_encoder {key}", f"'{value}' is not served", f"one of {', '.join(known)}")
    clip = model_name == "clip_L"
    own = {"image_size": size, "initializer_range": 0.02, **(clip_tower.SIZES if clip else {}), **sizes}
    with size_errors():
        config = transformers.Blip2Config(vision_config=own)
        network: Any = transformers.Blip2VisionModel(config.vision_config)
    if clip:
        holder = nn.Module()
        holder.vision_model, holder.config = network, config
        clip_tower.add_pre_norm(holder)
    if checkpoint:
        recompute(network)
    return VisionTower(network.to(DTYPES[precision]))


def load_tower(tower: VisionTower, model_name: str, path: str) -> None:
    """Put the published weights of a tower, or those of a file, over it; raises NetworkError or IntegrityError."""
    file = path or str(fetched(FETCHED[model_name], "init_vision_encoder", cache_root()))
    mine = {f"net.{name}": tensor for name, tensor in tower.state_dict().items()}
    found = {name: fitted(name, t, mine) for name, t in tower_of(file, model_name).items() if name in mine}
    tower.load_state_dict({name.removeprefix("net."): tensor for name, tensor in found.items()})


def with_own_tower(state: Mapping[str, Tensor], mine: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A checkpoint of LAVIS with the tensors of its tower under the names of a `VisionTower`; others unchanged."""
    theirs = {n: t for n, t in state.items() if n.startswith(TOWER) and not n.startswith(HELD)}
    held = {f"net.{name.removeprefix(TOWER)}": tensor for name, tensor in mine.items() if name.startswith(HELD)}
    if not theirs or not held:
        return dict(state)
    moved = {
        f"{TOWER}{name.removeprefix('net.')}": fitted(name, tensor, held) if name in held else tensor
        for name, tensor in translate(theirs, where).items()
    }
    return {**{name: tensor for name, tensor in state.items() if name not in theirs}, **moved}
