"""Answers chosen from a list by their likelihood under the language model, in LAVIS' two steps (BLIP's `rank_answer`).

First all answers are ordered by the probability of their first token, which costs one pass; then the first
`num_ans_candidates` of them are scored whole: the sum of log p over their tokens and the closing one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lavis_ext.models.text import Tokens

AT_ONCE = 32
"""Candidates that are scored in one pass."""
Ids = list[int]


class Reading(Protocol):
    """A batch of images and questions that the language model has read; `mask` [B, L] says where the questions are."""

    mask: Tensor

    def first(self) -> Tensor:
        """Logits [B, V] of the first token of the answer."""

    def logits(self, row: int, answers: Tensor) -> Tensor:
        """Logits [K, T, V] of each token of `answers` [K, T] behind the question `row`."""


def read(network: Any, images: Tensor, tokens: Tokens) -> Reading:
    """What a network (transformers' Blip2ForConditionalGeneration) makes of `images` [B,3,S,S] and questions."""
    embeds = embed(network, images, tokens)
    kind = DecoderReading if network.config.use_decoder_only_language_model else EncoderReading
    return kind(network.language_model, embeds, tokens.attention_mask)


def embed(network: Any, images: Tensor, tokens: Tokens) -> Tensor:
    """[B, L, E]: the embeddings of the tokens, with those of the image in its places."""
    seen = network.vision_model(images).last_hidden_state
    queries = network.query_tokens.expand(len(images), -1, -1)
    out = network.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
    words = network.get_input_embeddings()(tokens.input_ids)
    places = (tokens.input_ids == network.config.image_token_index).unsqueeze(-1)
    placed: Tensor = words.masked_scatter(places, network.language_projection(out).to(words.dtype))
    return placed


class DecoderReading:
    """For OPT and LLaMA: the answer stands behind the question; `embeds` are padded on the left."""

    def __init__(self, model: Any, embeds: Tensor, mask: Tensor) -> None:
        self.model, self.embeds, self.mask = model, embeds, mask

    def first(self) -> Tensor:
        """Logits [B, V] behind the last token of each question."""
        logits: Tensor = self.model(inputs_embeds=self.embeds, attention_mask=self.mask, use_cache=False).logits
        return logits[:, -1]

    def logits(self, row: int, answers: Tensor) -> Tensor:
        """Logits [K, T, V]; pads behind an answer are not seen by what comes before them."""
        question = self.embeds[row][self.mask[row].bool()].expand(len(answers), -1, -1)
        both = torch.cat([question, self.model.get_input_embeddings()(answers).to(question.dtype)], dim=1)
        logits: Tensor = self.model(inputs_embeds=both, use_cache=False).logits
        return logits[:, question.shape[1] - 1 : -1]


class EncoderReading:
    """For T5: the question is in the encoder, the answer in the decoder."""

    def __init__(self, model: Any, embeds: Tensor, mask: Tensor) -> None:
        self.model, self.mask = model, mask
        self.states = model.get_encoder()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state

    def first(self) -> Tensor:
        """Logits [B, V] behind the token that starts the decoder."""
        start = self.mask.new_full((len(self.mask), 1), self.model.config.decoder_start_token_id)
        logits: Tensor = self.model(
            encoder_outputs=(self.states,), attention_mask=self.mask, decoder_input_ids=start, use_cache=False
        ).logits
        return logits[:, 0]

    def logits(self, row: int, answers: Tensor) -> Tensor:
        """Logits [K, T, V]."""
        count = len(answers)
        states, mask = self.states[row].expand(count, -1, -1), self.mask[row].expand(count, -1)
        logits: Tensor = self.model(
            encoder_outputs=(states,), attention_mask=mask, labels=answers, use_cache=False
        ).logits
        return logits


def rank(reading: Reading, answers: Sequence[Ids], count: int) -> list[int]:
    """The index of the likeliest of `answers` (token ids, the closing one included) for each question."""
    first = reading.first().float().log_softmax(-1)
    openings = torch.tensor([ids[0] for ids in answers], device=first.device)
    order = first[:, openings].argsort(dim=1, descending=True, stable=True)[:, :count].tolist()
    scored = [(row, score(reading, index, [answers[i] for i in row])) for index, row in enumerate(order)]
    return [row[int(scores.argmax())] for row, scores in scored]


def score(reading: Reading, row: int, answers: Sequence[Ids]) -> Tensor:
    """[K] log-likelihoods of answers to the question `row`."""
    parts = [answers[start : start + AT_ONCE] for start in range(0, len(answers), AT_ONCE)]
    return torch.cat([_score(reading, row, part) for part in parts])


def _score(reading: Reading, row: int, answers: Sequence[Ids]) -> Tensor:
    device = reading.mask.device
    ids = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True).to(device)
    counted = pad_sequence([torch.ones(len(answer)) for answer in answers], batch_first=True).to(device)
    found = reading.logits(row, ids).float().log_softmax(-1).gather(2, ids.unsqueeze(2)).squeeze(2)
    return (found * counted).sum(1)
