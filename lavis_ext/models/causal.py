"""BLIP-2's second stage over any language model of transformers': decoder-only, or with an encoder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import CausalLMOutput

from lavis_ext.common.config.decode import LARGEST
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import models
from lavis_ext.common.types import Batch
from lavis_ext.models.blip2 import Blip2Base
from lavis_ext.models.chat import IMAGE, PLACE, Row, TooLong, Turn, TurnPrompter
from lavis_ext.models.generation import Reading, Search
from lavis_ext.models.language import Blip2Language, require_usable
from lavis_ext.models.network import assemble_any
from lavis_ext.models.settings import Blip2AnyConfig
from lavis_ext.models.text import IGNORED, Ids, Side, TextTokens, learns_output_only, target_texts, texts_of

CONVERSATIONS = "conversations"


class Blip2AnyLanguage(Blip2Language):
    """What both kinds share: the parts, the tokens of texts, and embeddings with pictures in their places."""

    causal = True
    converses = True
    upstream_prefix = "llm"
    ends_itself = True
    config: Blip2AnyConfig
    text: TurnPrompter

    def __init__(self, config: Blip2AnyConfig, network: Any, tokenizer: Any) -> None:
        Blip2Base.__init__(self)
        require_usable(config)
        self.config, self.net = config, network
        speaker = network.language_model
        self.stops = end_ids(tokenizer, speaker)
        self.end_id = self.answer_end_id = self.stops[0]
        self.position_count = int(getattr(speaker.config, "max_position_embeddings", None) or LARGEST)
        longest = min(config.max_chat_len, self.position_count)
        self.text = TurnPrompter(tokenizer, config.num_query_token, config.max_txt_len, longest, self.end_id)
        self.prompt = config.prompt
        self.positions_given = "position_ids" in inspect.signature(type(speaker).forward).parameters
        self._prepare_parts(speaker.config.model_type)

    @classmethod
    def from_config(cls, config: Any) -> Blip2AnyLanguage:
        """From `llm` and `vision`, with the Q-Former of `pretrained` or a random one; then checkpoints over it.

        Raises ConfigError, NetworkError or IntegrityError.
        """
        require_usable(config)
        model = cls(config, *assemble_any(config, cls.causal))
        model.load_parts(config)
        return model

    def see(self, images: Tensor) -> Tensor:
        """[N,3,S,S] → what the language model reads of each picture, [N, Q, E]."""
        net = self.net
        seen = net.vision_model(self._images({"image": images})).last_hidden_state
        queries = net.query_tokens.expand(len(images), -1, -1)
        asked = net.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        projected: Tensor = net.language_projection(asked)
        return projected

    def embed(self, images: Tensor | None, tokens: TextTokens, read: Sequence[int] | None = None) -> Tensor:
        """[B, L, E]: the tokens' embeddings, with the pictures in their places: all in order, or those of `read`."""
        places = tokens.input_ids == PLACE
        words: Tensor = self.net.language_model.get_input_embeddings()(tokens.input_ids.masked_fill(places, 0))
        if images is None or not len(images):
            return words + self._untouched().to(words.dtype)
        pictures = self.see(images)
        if read is not None:
            pictures = pictures[torch.tensor(read, dtype=torch.int64, device=pictures.device)]
        if int(places.sum()) != pictures.shape[0] * pictures.shape[1]:
            what = f"{int(places.sum())} image places for {len(pictures)} pictures of {pictures.shape[1]}"
            raise ConfigError("image", what, "give one picture for each <image>")
        return words.masked_scatter(places.unsqueeze(-1), pictures.to(words.dtype))

    def _untouched(self) -> Tensor:
        """0, of all visual parts that learn: a batch without pictures must not leave a rank without their gradients."""
        found: Tensor = self.net.query_tokens.new_zeros(())
        parts = (self.net.vision_model, self.net.qformer, self.net.language_projection)
        held = [self.net.query_tokens, *(one for part in parts for one in part.parameters())]
        for one in held if self.training and torch.is_grad_enabled() else ():
            if one.requires_grad:
                found = found + 0.0 * one.float().sum()
        return found

    def pairs_of(self, batch: Batch) -> tuple[list[str], list[str]]:
        """What is read and what is learnt of each sample: a question and its answer, else the prompt and the text.

        A text that already begins with the prompt, as a processor may have it, is learnt without it.
        """
        if learns_output_only(batch):
            return texts_of(batch, "text_input"), texts_of(batch, "text_output")
        texts, prompt = target_texts(batch), self.prompt.strip()
        tails = [text[len(prompt) :].strip() if prompt and text.startswith(prompt) else text for text in texts]
        return [self.prompt] * len(texts), tails

    def fits(self, samples: Batch) -> list[bool]:
        """Whether `generate` has room to answer each conversation; raises ConfigError as it does."""
        return [self._has_room(*one) for one in dialogues(samples)]

    def _has_room(self, turns: Sequence[Turn], pictures: int, where: str) -> bool:
        try:
            return bool(self.text.opened(turns, pictures, where))
        except TooLong:
            return False

    @torch.no_grad()
    def _continue(self, samples: Batch, tokens: TextTokens, search: Search, end_id: int) -> list[str]:
        search.check()
        # where positions are learnt there are none behind the last; others are trained no further
        room = self.position_count - (int(tokens.attention_mask.sum(1).max()) if self.causal else 1)
        if room < 1:
            what = f"picture and prompt take all {self.position_count} positions of the language model"
            raise ConfigError("model.max_txt_len", what, "lower it")
        longest, least = min(search.max_length, room), min(search.min_length, room)
        settings = replace(search, max_length=longest, min_length=least, opening=0, counted=0).arguments()
        end_id = self.text.turn_end if self.config.chat or CONVERSATIONS in samples else end_id
        ends = {"eos_token_id": sorted({end_id, *self.stops}), "pad_token_id": self.text.pad_id}
        ids = self._write(samples, tokens.to(self.device), {**settings, **ends})
        return self.said(self.text.tokenizer.batch_decode(ids, skip_special_tokens=True))

    def said(self, texts: Sequence[str]) -> list[str]:
        """Generated texts without spaces around them."""
        return [text.strip() for text in texts]

    def _write(self, samples: Batch, tokens: TextTokens, settings: dict[str, Any]) -> Tensor:
        embeds = self.embed(samples.get("image"), tokens)
        speaker = self.net.language_model
        ids: Tensor = speaker.generate(inputs_embeds=embeds, attention_mask=tokens.attention_mask, **settings)
        return ids


@models.register("blip2_causal", config=Blip2AnyConfig)
class Blip2Causal(Blip2AnyLanguage):
    """BLIP-2 with any AutoModelForCausalLM: captions and questions as bare texts, and conversations.

    A batch of conversations has `conversations`: one list a sample of `{"role": "user" | "assistant" | "system",
    "content": str}`, where `<image>` marks the next picture's place; `image` [N,3,S,S]: all pictures of the batch in
    order, absent where there are none; `image_counts`: how many are each sample's. By the tokenizer's chat template;
    without one `USER: … ASSISTANT: …</s>`.
    """

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`conversations`, or `image` [B,3,S,S] and `text_input`[, `text_output`] → `loss`: mean cross entropy.

        Of a conversation the assistant's turns are learnt with their end-of-turn tokens; of other batches the text with
        its end token, with `learn: text_output` that of `text_output` after the question.
        """
        return super().forward(batch)

    def rows(self, batch: Batch) -> list[Row]:
        """The tokens of a batch with image places, and labels, one row a sample."""
        if CONVERSATIONS in batch:
            return [self.text.conversation(*one) for one in dialogues(batch)]
        heads, tails = self.pairs_of(batch)
        if not self.config.chat:
            return [self.text.pair(head, tail) for head, tail in zip(heads, tails, strict=True)]
        pairs = zip(heads, tails, strict=True)
        return [self.text.conversation([*told(head), assistant(tail)], 1, "text_input") for head, tail in pairs]

    def predict_rows(self, batch: Batch, side: Side = "right") -> tuple[Tensor, Tensor]:
        """Logits [B, L, V] and labels [B, L] of a batch padded on one side; which one changes no number."""
        tokens, labels = self.text.padded(self.rows(batch), side)
        tokens = tokens.to(self.device)
        embeds = self.embed(batch.get("image"), tokens)
        logits: Tensor = self.net.language_model(
            inputs_embeds=embeds,
            attention_mask=tokens.attention_mask,
            use_cache=False,
            **self.positions(tokens.attention_mask),
        ).logits
        return logits, labels.to(self.device)

    def positions(self, mask: Tensor) -> dict[str, Tensor]:
        """The arguments that say where each token stands, pads before it not counted."""
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if self.positions_given else {}

    def _learn(self, batch: Batch) -> tuple[Any, Tensor]:
        logits, labels = self.predict_rows(batch)
        return CausalLMOutput(loss=mean_loss(logits[:, :-1], labels[:, 1:]), logits=logits), labels

    def asking_tokens(self, prompts: Sequence[str]) -> TextTokens:
        """A picture and a prompt each, as it is learnt from, padded on the left for generation."""
        if self.config.chat:
            rows = [self.text.opened(told(prompt), 1, "prompt") for prompt in prompts]
        else:
            rows = [self.text.asked(prompt) for prompt in prompts]
        return self.text.pad([[]] * len(rows), rows, "left")

    def opened_tokens(self, samples: Batch) -> TextTokens:
        """Conversations up to where the assistant answers the user's last turn; else prompts as they are asked."""
        if CONVERSATIONS not in samples:
            return super().opened_tokens(samples)
        rows = [self.text.opened(*one) for one in dialogues(samples)]
        return self.text.pad([[]] * len(rows), rows, "left")

    def answer_ids(self, answers: Sequence[str]) -> list[Ids]:
        """The tokens of each answer as they follow a question in training, with the end token."""
        if self.config.chat:
            return [self.text.answer(answer) for answer in answers]
        return [[*row, self.end_id] for row in self.text.following("a", answers)]

    def _read(self, samples: Batch, tokens: TextTokens) -> Reading:
        return CausalReading(self, self.embed(samples["image"], tokens), tokens.attention_mask)


@models.register("blip2_seq2seq", config=Blip2AnyConfig)
class Blip2Seq2Seq(Blip2AnyLanguage):
    """BLIP-2 with any AutoModelForSeq2SeqLM: the encoder reads picture and prompt, the decoder learns the text.

    Both texts have the tokens that the tokenizer puts around them: `</s>` behind with T5, `<s>` and `</s>` with BART.
    Conversations are as `Blip2Causal` has them: the encoder reads all that stands before a turn of the assistant's, the
    decoder learns that turn; one of three such turns is three rows.
    """

    causal = False
    shifts_labels = False
    answer_penalty = -1.0

    def pairs_of(self, batch: Batch) -> tuple[list[str], list[str]]:
        """`text_input` is read and `text_output` learnt; without it the prompt is read and `text_input` learnt."""
        return super().pairs_of({**batch, "learn": "text_output"} if "text_output" in batch else batch)

    def rows(self, batch: Batch) -> tuple[list[Ids], list[Ids], list[int] | None]:
        """What the encoder reads and the decoder learns, row by row; which pictures are read, None for each once."""
        if CONVERSATIONS not in batch:
            heads, tails = self.pairs_of(batch)
            longest = self.text.max_chat_len if self.config.chat else self.text.max_txt_len
            learnt = [self._decoded(row, self.config.chat)[:longest] for row in self.text.plain(tails)]
            return self._encoded(heads), learnt, None
        read, learnt, pictures, first = [], [], [], 0
        for turns, count, where in dialogues(batch):
            for head, text in self.text.exchanges(turns, count, where):
                read.append([*head, *self.text.closing])
                learnt.append(self._decoded(self.text.plain([text])[0], turn=True)[: self.text.max_chat_len])
                pictures += range(first, first + head.count(PLACE) // len(self.text.places))
            first += count
        if not read:  # nothing is learnt, but all ranks take part in a step
            return [[self.end_id]], [[IGNORED]], []
        return read, learnt, pictures

    def _learn(self, batch: Batch) -> tuple[Any, Tensor]:
        read, learnt, pictures = self.rows(batch)
        tokens = self.text.pad([[]] * len(read), read, "right").to(self.device)
        rows = [torch.tensor(row) for row in learnt]
        labels = pad_sequence(rows, batch_first=True, padding_value=IGNORED).to(self.device)
        embeds = self.embed(batch.get("image"), tokens, pictures)
        logits = self.net.language_model(
            inputs_embeds=embeds, attention_mask=tokens.attention_mask, labels=labels, use_cache=False
        ).logits
        return CausalLMOutput(loss=mean_loss(logits, labels), logits=logits), labels

    def asking_tokens(self, prompts: Sequence[str]) -> TextTokens:
        """A picture and a prompt each, padded on the right as the encoder learns them."""
        return self.text.pad([[]] * len(prompts), self._encoded(prompts), "right")

    def opened_tokens(self, samples: Batch) -> TextTokens:
        """Conversations up to where the assistant answers the user's last turn; else prompts as they are asked."""
        if CONVERSATIONS not in samples:
            return super().opened_tokens(samples)
        rows = [[*self.text.opened(*one), *self.text.closing] for one in dialogues(samples)]
        return self.text.pad([[]] * len(rows), rows, "right")

    def _encoded(self, texts: Sequence[str]) -> list[Ids]:
        """A picture and the first `max_txt_len` tokens of each text; with `chat` a turn of the template."""
        if self.config.chat:
            return [[*self.text.opened(told(text), 1, "prompt"), *self.text.closing] for text in texts]
        head, tail = [*self.text.opening, *self.text.places], self.text.closing
        longest = max(min(self.text.max_txt_len, self.text.max_chat_len - len(head) - len(tail)), 0)
        return [[*head, *row[:longest], *tail] for row in self.text.plain([text.strip() for text in texts])]

    def _decoded(self, ids: Ids, turn: bool = False) -> Ids:
        end = [self.text.turn_end] if turn else self.text.closing or [self.end_id]
        return [*self.text.opening, *ids, *end]

    def answer_ids(self, answers: Sequence[str]) -> list[Ids]:
        """The tokens of each answer as the decoder learns them, without what it always begins with."""
        rows = [self._decoded(row, self.config.chat) for row in self.text.plain(answers)]
        return [row[len(self.text.opening) :] for row in rows]

    def _read(self, samples: Batch, tokens: TextTokens) -> Reading:
        return Seq2SeqReading(self, self.embed(samples["image"], tokens), tokens.attention_mask)


class CausalReading:
    """Questions behind their pictures, padded on the left, for ranking answers; see `generation.Reading`."""

    def __init__(self, model: Blip2Causal, embeds: Tensor, mask: Tensor) -> None:
        self.model, self.embeds, self.mask = model, embeds, mask

    def _logits(self, embeds: Tensor, mask: Tensor) -> Tensor:
        positions = self.model.positions(mask)
        speaker = self.model.net.language_model
        logits: Tensor = speaker(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **positions).logits
        return logits

    def first(self) -> Tensor:
        """Logits [B, V] of the first token of the answer."""
        return self._logits(self.embeds, self.mask)[:, -1]

    def logits(self, row: int, answers: Tensor) -> Tensor:
        """Logits [K, T, V] of each token of `answers` [K, T]; attention is causal: pads after them do not matter."""
        question = self.embeds[row][self.mask[row].bool()].expand(len(answers), -1, -1)
        words = self.model.net.language_model.get_input_embeddings()(answers).to(question.dtype)
        both = torch.cat([question, words], dim=1)
        return self._logits(both, self.mask.new_ones(both.shape[:2]))[:, question.shape[1] - 1 : -1]


class Seq2SeqReading:
    """Questions in the encoder, for ranking answers that the decoder reads behind what it always begins with."""

    def __init__(self, model: Blip2Seq2Seq, embeds: Tensor, mask: Tensor) -> None:
        self.speaker, self.mask = model.net.language_model, mask
        self.states = self.speaker.get_encoder()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        start = self.speaker.config.decoder_start_token_id
        self.start = torch.tensor([[start, *model.text.opening]], device=mask.device)

    def _logits(self, states: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        logits: Tensor = self.speaker(
            encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=ids, use_cache=False
        ).logits
        return logits

    def first(self) -> Tensor:
        """Logits [B, V] of the first token of the answer."""
        return self._logits(self.states, self.mask, self.start.expand(len(self.mask), -1))[:, -1]

    def logits(self, row: int, answers: Tensor) -> Tensor:
        """Logits [K, T, V] of each token of `answers` [K, T]."""
        count = len(answers)
        states, mask = self.states[row].expand(count, -1, -1), self.mask[row].expand(count, -1)
        ids = torch.cat([self.start.expand(count, -1), answers[:, :-1]], dim=1)
        return self._logits(states, mask, ids)[:, self.start.shape[1] - 1 :]


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the labels that count, in at least fp32; 0 where a batch has none."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    total = F.cross_entropy(wide, labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / labels.ne(IGNORED).sum().clamp(min=1)


def end_ids(tokenizer: Any, speaker: Any) -> list[int]:
    """The end token, and others at which the language model itself stops; raises ConfigError where there is none."""
    given = getattr(getattr(speaker, "generation_config", None), "eos_token_id", None)
    own = given if isinstance(given, list) else [] if given is None else [given]
    found = list(dict.fromkeys([*([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]), *own]))
    if not found:
        raise ConfigError("model.tokenizer", "has no end token", "set eos_token in its tokenizer_config.json")
    return [int(one) for one in found]


def told(prompt: str) -> list[Turn]:
    """A picture and a prompt as a conversation of one turn."""
    return [{"role": "user", "content": f"{IMAGE}\n{prompt}".strip()}]


def assistant(text: str) -> Turn:
    """A turn of the assistant's."""
    return {"role": "assistant", "content": text}


def dialogues(batch: Batch) -> list[tuple[Sequence[Turn], int, str]]:
    """Each conversation of a batch, its number of pictures, and its place for messages; raises ConfigError."""
    talks = batch[CONVERSATIONS]
    images = batch.get("image")
    total = 0 if images is None else len(images)
    marked = [sum(str(turn.get("content")).count(IMAGE) for turn in talk) for talk in talks]
    counts = [int(count) for count in batch.get("image_counts", marked)]
    if len(counts) != len(talks) or sum(counts) != total:
        what = f"{len(counts)} counts with {sum(counts)} pictures for {len(talks)} conversations with {total}"
        raise ConfigError("image_counts", what, "give the number of pictures of each conversation")
    names = batch.get("instance_id", range(len(talks)))
    return [(talk, count, f"conversation {name}") for talk, count, name in zip(talks, counts, names, strict=True)]
