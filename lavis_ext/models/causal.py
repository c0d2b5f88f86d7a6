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
from lavis_ext.models.generation import Search
from lavis_ext.models.language import Blip2Language, require_usable
from lavis_ext.models.network import first_line
from lavis_ext.models.settings import Blip2AnyConfig
from lavis_ext.models.speakers import assemble_any
from lavis_ext.models.text import IGNORED, Ids, TextTokens, learns_output_only, target_texts, texts_of

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
        self.decoder_opening = self.text.opening
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
        try:
            ids = self._write(samples, tokens.to(self.device), {**settings, **ends})
        except ValueError as error:  # of the language model's own code: a state that no beam can take over, most often
            way_out = "write run.num_beams: 1, or name another" if search.num_beams > 1 else "name another"
            raise ConfigError("model.llm", first_line(error), way_out) from error
        return self.said(self.text.tokenizer.batch_decode(ids, skip_special_tokens=True))

    def said(self, texts: Sequence[str]) -> list[str]:
        """Generated texts without spaces around them."""
        return [text.strip() for text in texts]

    def _predict_tokens(self, batch: Batch, tokens: TextTokens, labels: Tensor) -> CausalLMOutput:
        embeds, mask = self.embed(batch, tokens), tokens.attention_mask
        given = self.positions(mask) if self.causal else {"decoder_input_ids": self._shifted(labels)}
        logits = self.net.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **given).logits
        loss = mean_loss(logits[:, :-1], labels[:, 1:]) if self.causal else mean_loss(logits, labels)
        return CausalLMOutput(loss=loss, logits=logits)

    def _shifted(self, labels: Tensor) -> Tensor:
        """What the decoder reads to predict `labels`: its start token, as in `generate`, and the tokens before each.

        Of labels alone mBART and PLBart would begin with the last of them.
        """
        start = labels.new_full((len(labels), 1), self.net.language_model.config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, self.text.pad_id)], dim=1)

    def positions(self, mask: Tensor) -> dict[str, Tensor]:
        """The arguments that say where each token stands, pads before it not counted."""
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if self.positions_given else {}


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

    def learnt(self, batch: Batch) -> tuple[TextTokens, Tensor]:
        """The tokens of a batch padded on the right, and labels [B, L]."""
        return self.text.padded(self.rows(batch), "right")

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
            rows = [self._decoded(row, self.config.chat)[:longest] for row in self.text.plain(tails)]
            return self._encoded(heads), rows, None
        read: list[Ids] = []
        learnt: list[Ids] = []
        pictures: list[int] = []
        first = 0
        for turns, count, where in dialogues(batch):
            for head, text in self.text.exchanges(turns, count, where):
                read.append([*head, *self.text.closing])
                learnt.append(self._decoded(self.text.plain([text])[0], turn=True)[: self.text.max_chat_len])
                pictures += range(first, first + head.count(PLACE) // len(self.text.places))
            first += count
        if not read:  # nothing is learnt, but all ranks take part in a step
            return [[self.end_id]], [[IGNORED]], []
        return read, learnt, pictures

    def learnt(self, batch: Batch) -> tuple[TextTokens, Tensor]:
        """The tokens for the encoder, and the labels of the decoder."""
        read, learnt, pictures = self.rows(batch)
        tokens = replace(self.text.pad([[]] * len(read), read, "right"), pictures=pictures)
        rows = [torch.tensor(row) for row in learnt]
        return tokens, pad_sequence(rows, batch_first=True, padding_value=IGNORED)

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
