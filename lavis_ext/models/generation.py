"""Generation settings, ranking of candidate answers by their likelihood, and captions from the first stage.

Ranking takes LAVIS' two steps (BLIP's `rank_answer`): all answers are ordered by the probability of their first token,
in one pass; then the first `num_ans_candidates` are scored by the sum of log p over their tokens and the end token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import CausalLMOutput

from lavis_ext.common.errors import ConfigError


@dataclass(frozen=True)
class Search:
    """Settings of generation in LAVIS' meaning.

    Upstream's lengths count what a search starts from, which each of its models has in another form: `opening` tokens
    of `max_length` and `counted` tokens of `min_length` are there before the first new one.
    """

    num_beams: int
    max_length: int
    min_length: int
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    num_captions: int = 1
    sampling: bool = False
    top_p: float = 0.9
    temperature: float = 1.0
    opening: int = 0
    counted: int = 0

    def arguments(self) -> dict[str, Any]:
        """The arguments of transformers' `generate`; raises ConfigError for contradicting settings."""
        self.check()
        beams = {"length_penalty": self.length_penalty} if self.num_beams > 1 else {}
        sampling = {"do_sample": True, "top_p": self.top_p, "temperature": self.temperature} if self.sampling else {}
        longest = self.max_length - self.opening
        return {
            "num_beams": self.num_beams,
            "max_new_tokens": longest,
            "min_new_tokens": min(max(self.min_length - self.counted, 0), longest),
            "repetition_penalty": self.repetition_penalty,
            "num_return_sequences": self.num_captions,
            "do_sample": False,
            **beams,
            **sampling,
        }

    def check(self) -> None:
        """Raise ConfigError for contradicting settings."""
        if self.max_length <= self.opening:
            what = f"max_len {self.max_length} leaves no token to write"
            counts = ": the start token counts as one" if self.opening else ""
            raise ConfigError("run.max_len", f"{what}{counts}", f"at least {self.opening + 1}")
        if not 0 <= self.min_length <= self.max_length:
            what = f"lengths from {self.min_length} to {self.max_length} tokens"
            raise ConfigError("run.min_len", what, "0 ≤ min_len ≤ max_len and 1 ≤ max_len")
        if self.num_beams < 1:
            raise ConfigError("run.num_beams", f"{self.num_beams} beams", "at least 1")
        if not self.sampling and self.num_captions > self.num_beams:
            what = f"{self.num_captions} captions from {self.num_beams} beams"
            raise ConfigError("num_captions", what, "no more captions than beams, or use_nucleus_sampling=True")


class WrittenPenalty(transformers.LogitsProcessor):  # type: ignore[misc]
    """transformers' repetition penalty, which counts `written` [B, n] too: ids that a search by embeddings has not."""

    def __init__(self, penalty: float, written: Tensor) -> None:
        self.penalise = transformers.RepetitionPenaltyLogitsProcessor(penalty)
        self.written = written

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B · beams, V] of the next token after `input_ids` [B · beams, L]."""
        written = self.written.repeat_interleave(len(scores) // len(self.written), dim=0)
        found: Tensor = self.penalise(torch.cat([written, input_ids], dim=1), scores)
        return found


class StopText(transformers.StoppingCriteria):  # type: ignore[misc]
    """Ends a row when its newest tokens complete a text, which a tokenizer may write in several ways."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer, self.text = tokenizer, text

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Ids [N, L] → bool [N]."""
        ends = self.tokenizer.batch_decode(input_ids[:, -len(self.text) :])
        return torch.tensor([self.text in end for end in ends], device=input_ids.device)


AT_ONCE = 32
"""Candidates scored in one forward pass."""
Ids = list[int]


def rank(reading: Reading, answers: Sequence[Ids], count: int) -> list[int]:
    """The index of the most likely of `answers` (token ids with the end token) for each question."""
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


class Reading(Protocol):
    """A batch of images and questions, encoded for the language model; `mask` [B, L] is 1 on image and question."""

    mask: Tensor

    def first(self) -> Tensor:
        """Logits [B, V] of the first token of the answer."""

    def logits(self, row: int, answers: Tensor) -> Tensor:
        """Logits [K, T, V] of each token of `answers` [K, T] after question `row`."""


class DecoderReading:
    """For decoder-only models: the answer follows the question; `embeds` [B, L, E] are padded on the left.

    `positions` gives the arguments that say where each token of a mask stands.
    """

    def __init__(self, model: Any, embeds: Tensor, mask: Tensor, positions: Callable[[Tensor], dict[str, Tensor]]):
        self.model, self.embeds, self.mask, self.positions = model, embeds, mask, positions

    def _logits(self, embeds: Tensor, mask: Tensor) -> Tensor:
        positions = self.positions(mask)
        logits: Tensor = self.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **positions).logits
        return logits

    def first(self) -> Tensor:
        """Logits [B, V] at the last token of each question."""
        return self._logits(self.embeds, self.mask)[:, -1]

    def logits(self, row: int, answers: Tensor) -> Tensor:
        """Logits [K, T, V]; attention is causal, so pads after an answer do not change them."""
        question = self.embeds[row][self.mask[row].bool()].expand(len(answers), -1, -1)
        both = torch.cat([question, self.model.get_input_embeddings()(answers).to(question.dtype)], dim=1)
        return self._logits(both, self.mask.new_ones(both.shape[:2]))[:, question.shape[1] - 1 : -1]


class EncoderReading:
    """For encoder–decoder models: the question goes to the encoder, the answer to the decoder behind `opening`."""

    def __init__(self, model: Any, embeds: Tensor, mask: Tensor, opening: Sequence[int]):
        self.model, self.mask = model, mask
        self.states = model.get_encoder()(inputs_embeds=embeds, attention_mask=mask, return_dict=True).last_hidden_state
        self.start = torch.tensor([[model.config.decoder_start_token_id, *opening]], device=mask.device)

    def _logits(self, states: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(
            encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=ids, use_cache=False
        ).logits
        return logits

    def first(self) -> Tensor:
        """Logits [B, V] of the first token of the answer."""
        return self._logits(self.states, self.mask, self.start.expand(len(self.mask), -1))[:, -1]

    def logits(self, row: int, answers: Tensor) -> Tensor:
        """Logits [K, T, V]."""
        count = len(answers)
        states, mask = self.states[row].expand(count, -1, -1), self.mask[row].expand(count, -1)
        ids = torch.cat([self.start.expand(count, -1), answers[:, :-1]], dim=1)
        return self._logits(states, mask, ids)[:, self.start.shape[1] - 1 :]


class FirstStageGenerator(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """The first stage as a language model for transformers' `generate`, starting from `[DEC]`; it shares the weights.

    Every step recomputes the whole sequence: the queries depend on the picture alone, but transformers' Q-Former has no
    cache.
    """

    config_class = transformers.PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, stage: Any) -> None:
        words = stage.net.embeddings.word_embeddings.num_embeddings
        super().__init__(transformers.PretrainedConfig(vocab_size=words, use_cache=False))
        self._stage = [stage]  # in a list, so that its parameters are not registered twice
        self.generation_config = transformers.GenerationConfig(use_cache=False)

    @property
    def device(self) -> torch.device:
        """The device of the first stage."""
        device: torch.device = self._stage[0].device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its logits."""
        return torch.float32

    def can_generate(self) -> bool:
        """True; transformers asks it before a search."""
        return True

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """The tokens so far and the picture of each row; rows have no pads before their end, so no mask is needed."""
        return {"input_ids": input_ids, "encoder_hidden_states": encoder_hidden_states}

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, **_: Any) -> CausalLMOutput:
        """Tokens [B, L] and the tower's output [B, P, W] → logits [B, L, V]."""
        stage = self._stage[0]
        texts = stage.texts(input_ids, torch.ones_like(input_ids))
        return CausalLMOutput(logits=stage.caption_logits(encoder_hidden_states, texts)[1])


def write(stage: Any, embeds: Tensor, search: Search) -> list[str]:
    """Captions of pictures, tower outputs [B, P, W], by the first stage with these settings."""
    tokenizer = stage.tokenizer
    starts = torch.full((len(embeds), 1), tokenizer.bos_token_id, device=embeds.device)
    end = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    ends = {"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    mask = torch.ones_like(starts)
    ids = FirstStageGenerator(stage).generate(
        starts, attention_mask=mask, encoder_hidden_states=embeds, **search.arguments(), **ends
    )
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]
