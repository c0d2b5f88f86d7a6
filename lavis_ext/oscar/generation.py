"""Caption generation: decoding with cached keys and values, beam search, greedy choice and sampling.

Each step runs the last word and a [MASK] behind it. A caption's words see tags, regions and the words before them; tags
and regions see no caption. So cached keys and values never change, and give the same numbers as a full pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.oscar.network import UNSEEN, OscarNetwork

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Context:
    """The input of captioning: `ids` of tags [B, O] with `tags_seen` bool [B, O], regions [B, R, D] with
    `regions_seen` bool [B, R]; tags have positions from `tag_start` on and segment 1."""

    ids: Tensor
    tags_seen: Tensor
    regions: Tensor
    regions_seen: Tensor
    tag_start: int

    @property
    def seen(self) -> Tensor:
        """bool [B, C] of tags, then regions."""
        return torch.cat([self.tags_seen, self.regions_seen], dim=1).bool()

    def repeated(self, times: int) -> Context:
        """Each image `times` times in a row."""
        parts = (self.ids, self.tags_seen, self.regions, self.regions_seen)
        ids, tags_seen, regions, regions_seen = (part.repeat_interleave(times, 0) for part in parts)
        return Context(ids, tags_seen, regions, regions_seen, self.tag_start)


def embed_context(network: OscarNetwork, context: Context) -> Tensor:
    """[B, C, H]: the encoder's input for tags and regions."""
    ids = context.ids
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape) + context.tag_start
    return network.embed(ids, torch.ones_like(ids), context.regions, positions)


class CaptionState:
    """The state of unfinished captions, `rows` an image: keys and values of context and words, for every layer."""

    def __init__(self, network: OscarNetwork, context: Context, mask_id: int, rows: int) -> None:
        self.network, self.mask_id, self.rows, self.length = network, mask_id, rows, 0
        self.bias = (1.0 - context.seen.float())[:, None, None, None] * UNSEEN
        self.context: list[KeyValue] = []
        states = embed_context(network, context)
        around = (1.0 - context.seen.to(states.dtype))[:, None, None] * UNSEEN
        for layer in network.layers:
            self.context.append(keys_and_values(layer, states))
            found = layer(states, around)
            states = found[0] if isinstance(found, tuple) else found
        self.past: list[KeyValue] = []

    def step(self, last: Tensor) -> Tensor:
        """The words that were chosen last [B, rows] ([CLS] at first) → logits of the next ones [B, rows, V]."""
        batch, rows = last.shape
        ids = torch.stack([last, torch.full_like(last, self.mask_id)], dim=-1).flatten(0, 1)
        positions = torch.arange(2, device=last.device).expand(len(ids), 2) + self.length
        states = self.network.embed(ids, None, None, positions)
        # the last word does not see the [MASK] behind it
        hidden = torch.zeros(2, self.length + 2, device=last.device)
        hidden[0, -1] = UNSEEN
        kept: list[KeyValue] = []
        for number, layer in enumerate(self.network.layers):
            states, new = self._layer(number, layer, states, hidden, (batch, rows))
            kept.append(new)
        self.past, self.length = kept, self.length + 1
        return self.network.predict(states[:, 1]).view(batch, rows, -1)

    def follow(self, beams: Tensor) -> None:
        """Continue with the rows [B, rows] of each image that were chosen, in this order."""
        self.past = [(pick(keys, beams), pick(values, beams)) for keys, values in self.past]

    def _layer(
        self, number: int, layer: Any, states: Tensor, hidden: Tensor, shape: tuple[int, int]
    ) -> tuple[Tensor, KeyValue]:
        """One layer over [N, 2, H], and keys and values of the words [B, rows, heads, P, d] without the [MASK]."""
        own = layer.attention.self
        keys, values = (part.view(*shape, *part.shape[1:]) for part in keys_and_values(layer, states))
        if self.past:
            keys, values = (torch.cat(pair, dim=3) for pair in zip(self.past[number], (keys, values), strict=True))
        queries = heads_of(own, own.query(states))
        queries = queries.view(*shape, *queries.shape[1:])
        context_keys, context_values = self.context[number]
        scores = [
            torch.einsum("brhqd,bhcd->brhqc", queries, context_keys) * own.scaling + self.bias,
            torch.einsum("brhqd,brhpd->brhqp", queries, keys) * own.scaling + hidden,
        ]
        shares = torch.cat(scores, dim=-1).softmax(-1)
        middle = context_keys.shape[2]
        read = torch.einsum("brhqc,bhcd->brqhd", shares[..., :middle], context_values)
        read = read + torch.einsum("brhqp,brhpd->brqhd", shares[..., middle:], values)
        attended = layer.attention.output(read.flatten(0, 1).flatten(-2), states)
        return layer.feed_forward_chunk(attended), (keys[..., :-1, :], values[..., :-1, :])


def pick(tensor: Tensor, rows: Tensor) -> Tensor:
    """[B, K, …] and row numbers [B, K'] → [B, K', …]."""
    index = rows.view(*rows.shape, *([1] * (tensor.dim() - 2))).expand(*rows.shape, *tensor.shape[2:])
    return tensor.gather(1, index)


def heads_of(own: Any, projected: Tensor) -> Tensor:
    """[N, S, H] → [N, heads, S, d]."""
    return projected.view(*projected.shape[:2], own.num_attention_heads, own.attention_head_size).transpose(1, 2)


def keys_and_values(layer: Any, states: Tensor) -> KeyValue:
    """What a layer's attention keeps of its input [N, S, H]: [N, heads, S, d] each."""
    own = layer.attention.self
    return heads_of(own, own.key(states)), heads_of(own, own.value(states))


def score_captions(network: OscarNetwork, context: Context, captions: Tensor, mask_id: int) -> Tensor:
    """Logits [B, L, V] of each word of captions [B, 1 + L] ([CLS] first) after the ones before it, in one pass.

    The input has the words once as they are and once as [MASK]; a [MASK] sees itself, the words before it and the
    context. The numbers are those of `CaptionState.step` word by word.
    """
    batch, length = captions.shape[0], captions.shape[1] - 1
    places = torch.arange(length, device=captions.device)
    ids = torch.cat([captions[:, :-1], torch.full_like(captions[:, 1:], mask_id)], dim=1)
    positions = torch.cat([places, places + 1]).expand(batch, -1)
    states = torch.cat([network.embed(ids, None, None, positions), embed_context(network, context)], dim=1)
    size = states.shape[1]
    sees = torch.zeros(batch, size, size, dtype=torch.bool, device=captions.device)
    sees[:, :length, :length] = sees[:, length : 2 * length, :length] = places[:, None] >= places
    sees[:, length : 2 * length, length : 2 * length] = torch.eye(length, dtype=torch.bool, device=captions.device)
    sees[:, :, 2 * length :] = context.seen[:, None]
    encoded = network.encode(states, sees)
    return network.predict(encoded.sequence[:, length : 2 * length])


def log_probabilities(logits: Tensor, words: Tensor) -> Tensor:
    """Logits [B, L, V] and words [B, L] → [B, L]."""
    return F.log_softmax(logits.float(), dim=-1).gather(-1, words[..., None]).squeeze(-1)


@dataclass(frozen=True)
class Ends:
    """Ids of the tokens that begin, end and pad a caption."""

    cls: int
    sep: int
    pad: int


@dataclass(frozen=True)
class Choice:
    """Settings of decoding. `max_length` counts [CLS] and [SEP]; a caption that reaches it is cut.

    Scores are sums of log probabilities over the length (with [CLS]) to the power of `length_penalty`;
    `repetition_penalty` divides positive and multiplies negative logits of words that are in the caption
    (Keskar et al., arXiv:1909.05858).
    """

    max_length: int = 20
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    """Of sampled captions."""


@dataclass(frozen=True)
class GeneratedCaptions:
    """Ids [B, n, max_length] from [CLS] on, padded behind [SEP], and scores [B, n], the best first."""

    ids: Tensor
    scores: Tensor


def search_beams(writer: CaptionState, batch: int, ends: Ends, choice: Choice, keep: int = 1) -> GeneratedCaptions:
    """The `keep` best captions of each image by a beam of `writer.rows`, as upstream's beam search finds them.

    transformers' GenerationMixin (5.23) finds others (docs/oscar.md): it counts a caption that ends only among the
    first `beams` candidates of its step, and takes `repetition_penalty` off log probabilities, not logits.
    """
    beams, device = writer.rows, writer.bias.device
    ids = torch.full((batch, beams, 1), ends.cls, device=device)
    scores = torch.full((batch, beams), -1e9, device=device)
    scores[:, 0] = 0.0
    best = GeneratedCaptions(
        torch.full((batch, keep, choice.max_length), ends.pad, device=device),
        torch.full((batch, keep), float("-inf"), device=device),
    )
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    for length in range(1, choice.max_length):
        logits = without_repetition(writer.step(ids[..., -1]), ids, choice.repetition_penalty)
        sums = scores[..., None] + F.log_softmax(logits.float(), dim=-1)
        tops, places = sums.flatten(1).topk(2 * beams, dim=1)
        rows, words = places // logits.shape[-1], places % logits.shape[-1]
        done = done | (best.scores[:, -1] >= tops[:, 0] / (choice.max_length - 1) ** choice.length_penalty)
        ended = (words == ends.sep) | (length + 1 == choice.max_length)
        # a caption that ends counts only if it is among the candidates that fill the beam
        counts = ended & ((~ended).cumsum(1) < beams) & ~done[:, None]
        ending = torch.where(counts, tops / length**choice.length_penalty, float("-inf"))
        best = _best(best, pick(ids, rows), ending, ends, keep)
        if bool(done.all()) or length + 1 == choice.max_length:
            break
        going = ended.to(torch.int8).argsort(dim=1, stable=True)[:, :beams]
        scores, rows, words = (tensor.gather(1, going) for tensor in (tops, rows, words))
        writer.follow(rows)
        ids = torch.cat([pick(ids, rows), words[..., None]], dim=2)
    return best


def _best(best: GeneratedCaptions, ids: Tensor, scores: Tensor, ends: Ends, keep: int) -> GeneratedCaptions:
    """The `keep` best of the ended captions and of new ones [B, n, length], which end here."""
    fill = best.ids.shape[2] - ids.shape[2] - 1
    ended = F.pad(F.pad(ids, (0, 1), value=ends.sep), (0, fill), value=ends.pad)
    top, places = torch.cat([best.scores, scores], dim=1).topk(keep, dim=1)
    return GeneratedCaptions(pick(torch.cat([best.ids, ended], dim=1), places), top)


def draw_captions(
    writer: CaptionState,
    batch: int,
    ends: Ends,
    choice: Choice,
    rng: torch.Generator | None = None,
    sample: bool = False,
) -> GeneratedCaptions:
    """`writer.rows` captions an image: each word the most probable one, or with `sample` one drawn by probability.

    Scores are means of log probabilities. A caption that has not ended at `max_length` gets its [SEP] there.
    """
    ids = torch.full((batch, writer.rows, 1), ends.cls, device=writer.bias.device)
    going = torch.ones_like(ids[..., 0], dtype=torch.bool)
    total, count = torch.zeros(going.shape, device=ids.device), torch.zeros(going.shape, device=ids.device)
    for length in range(1, choice.max_length):
        logits = without_repetition(writer.step(ids[..., -1]), ids, choice.repetition_penalty).float()
        if sample:
            logits = logits / choice.temperature
            shares = logits.softmax(-1).flatten(0, 1)
            words = torch.multinomial(shares, 1, generator=rng).view(going.shape)
        else:
            words = logits.argmax(-1)
        found = F.log_softmax(logits, dim=-1).gather(-1, words[..., None])[..., 0]
        total, count = total + torch.where(going, found, 0.0), count + going
        words = torch.where(going, words, ends.pad)
        if length + 1 == choice.max_length:
            words = torch.where(going, ends.sep, words)
        ids = torch.cat([ids, words[..., None]], dim=2)
        going = going & (words != ends.sep)
        if not bool(going.any()):
            break
    return GeneratedCaptions(F.pad(ids, (0, choice.max_length - ids.shape[2]), value=ends.pad), total / count)


def without_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Logits [B, K, V] with those of the words in `ids` [B, K, L] lowered by `penalty`."""
    if penalty == 1.0:
        return logits
    there = logits.gather(-1, ids)
    return logits.scatter(-1, ids, torch.where(there < 0, there * penalty, there / penalty))
