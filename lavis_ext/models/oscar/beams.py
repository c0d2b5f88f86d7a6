"""Choosing words: beam search, greedy choice and sampling, with upstream's scores and ends, whole batches at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.models.oscar.decoding import Writer, pick


@dataclass(frozen=True)
class Ends:
    """The tokens that open, close and fill up a caption."""

    cls: int
    sep: int
    pad: int


@dataclass(frozen=True)
class Choice:
    """How words are chosen. `max_length` counts [CLS] and [SEP]; a caption that reaches it is cut.

    Scores are sums of log probabilities over the length (with [CLS]) to the power of `length_penalty`;
    `repetition_penalty` divides positive and multiplies negative logits of words that stand there (Keskar et al.,
    arXiv:1909.05858).
    """

    max_length: int = 20
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    """Of drawn captions."""


@dataclass(frozen=True)
class Captions:
    """Ids [B, n, max_length] from [CLS] on, padded behind [SEP], and scores [B, n], the best first."""

    ids: Tensor
    scores: Tensor


def search_beams(writer: Writer, batch: int, ends: Ends, choice: Choice, keep: int = 1) -> Captions:
    """The `keep` best captions of each image by a beam of `writer.rows`, as upstream's beam search finds them.

    transformers' GenerationMixin (5.23) finds others (docs/oscar.md): it counts a caption that ends only among the
    first `beams` candidates of its step, and takes `repetition_penalty` off log probabilities, not logits.
    """
    beams, device = writer.rows, writer.bias.device
    ids = torch.full((batch, beams, 1), ends.cls, device=device)
    scores = torch.full((batch, beams), -1e9, device=device)
    scores[:, 0] = 0.0
    best = Captions(
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
        # a caption that ends counts only if it stands among the candidates that fill the beam
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


def _best(best: Captions, ids: Tensor, scores: Tensor, ends: Ends, keep: int) -> Captions:
    """The `keep` best of the ended captions and of new ones [B, n, length], which end here."""
    fill = best.ids.shape[2] - ids.shape[2] - 1
    ended = F.pad(F.pad(ids, (0, 1), value=ends.sep), (0, fill), value=ends.pad)
    top, places = torch.cat([best.scores, scores], dim=1).topk(keep, dim=1)
    return Captions(pick(torch.cat([best.ids, ended], dim=1), places), top)


def draw_captions(
    writer: Writer, batch: int, ends: Ends, choice: Choice, rng: torch.Generator | None = None, sample: bool = False
) -> Captions:
    """`writer.rows` captions an image, word by word: the likeliest word, or with `sample` one drawn by its share.

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
    return Captions(F.pad(ids, (0, choice.max_length - ids.shape[2]), value=ends.pad), total / count)


def without_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Logits [B, K, V] with those of the words in `ids` [B, K, L] made smaller by `penalty`."""
    if penalty == 1.0:
        return logits
    there = logits.gather(-1, ids)
    return logits.scatter(-1, ids, torch.where(there < 0, there * penalty, there / penalty))
