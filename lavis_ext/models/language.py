"""BLIP-2's second stage: vision tower → Q-Former → projection → OPT, LLaMA, Flan-T5 or Vicuna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import models
from lavis_ext.common.types import Batch
from lavis_ext.metrics.vqa import lemmatize, load_lemmatizer
from lavis_ext.models.base_model import Outputs, sum_over_ranks, world
from lavis_ext.models.blip2 import Blip2Base, fitting_images
from lavis_ext.models.generation import DecoderReading, EncoderReading, Reading, Search, StopText, WrittenPenalty, rank
from lavis_ext.models.lora import adapter_parts, add_adapters, release
from lavis_ext.models.network import DTYPES, add_image_token, assemble, recompute, set_execution
from lavis_ext.models.settings import (
    Blip2LanguageConfig,
    Blip2LlamaConfig,
    Blip2OptConfig,
    Blip2T5Config,
    is_checkpoint,
)
from lavis_ext.models.text import (
    IGNORED,
    ChatPrompter,
    Ids,
    Prompter,
    TextTokens,
    cut_at_random,
    learns_output_only,
    prompts_of,
    questions_of,
    target_texts,
    texts_of,
)
from lavis_ext.models.weights import for_reader, load_over, load_pretrained, parts_of


class Blip2Language(Blip2Base):
    """BLIP-2 (Li et al., arXiv:2301.12597) with a decoder: the text is continued from query embeddings of the image.

    `net` is transformers' Blip2ForConditionalGeneration, `text` its tokenizer with the image places. A subclass sets
    `language`, transformers' name of the language model.
    """

    language: ClassVar[str]
    prompter: ClassVar[type[Prompter]] = Prompter
    shifts_labels: ClassVar[bool] = True
    """Whether labels are shifted by one against the logits (decoder-only) or aligned (encoder–decoder)."""
    ends_itself: ClassVar[bool] = False
    """Whether the language model's own token ends a text, not the last one of `end_sym`."""
    opening: ClassVar[int] = 0
    """Start tokens that upstream's `max_length` of `generate` counts."""
    answer_penalty: ClassVar[float] = -1.0
    """LAVIS' length penalty of answers, where none is given."""
    answer_repetition: ClassVar[float] = 1.0
    answer_opening: ClassVar[int] = 0
    """The same as `opening`, of `max_len` of answers."""
    cuts_prompts: ClassVar[bool] = True
    """Whether prompts and questions are cut to `max_txt_len` tokens, as texts to learn always are."""
    decoder_opening: Sequence[int] = ()
    """What the decoder of an encoder–decoder always begins with, behind its start token."""

    def __init__(self, config: Blip2LanguageConfig, network: Any, tokenizer: Any) -> None:
        super().__init__()
        require_usable(config)
        add_image_token(network, tokenizer)
        self.config, self.net = config, network
        places = network.config.num_query_tokens
        self.text = self.prompter(tokenizer, network.config.image_token_index, places, config.max_txt_len)
        self.prompt = config.prompt
        self.prompt_length = self.text.length(config.prompt) if config.prompt else 0
        self.end_id = int(tokenizer.eos_token_id) if self.ends_itself else self.text.end_id(config.end_sym)
        self.answer_end_id = self.end_id
        self._prepare_parts(self.language)

    def _prepare_parts(self, kind: str) -> None:
        """Adapters, what is frozen, and how the parts run; `kind` is transformers' name of the language model."""
        network, config = self.net, self.config
        if config.lora:
            add_adapters(network.language_model, config.lora, kind)
        self._freeze_parts()
        if config.lora:
            release(network.language_model)
        if config.use_grad_checkpoint:
            recompute(network)
        set_execution(network, config)

    @classmethod
    def from_config(cls, config: Blip2LanguageConfig) -> Blip2Language:
        """From `pretrained` (folder or hub name), or from scratch by `sizes`; then `finetuned` and parts over it.

        Where `pretrained` has a language model of another kind, its visual parts are combined with that of the
        `*_model` key (VPGTrans' transfer). Random weights follow torch's global seed. Raises ConfigError, NetworkError
        or IntegrityError.
        """
        require_usable(config)
        network, tokenizer = assemble(config, cls.language, config.language_key)
        model = cls(config, network, tokenizer)
        model.load_parts(config)
        return model

    def load_parts(self, config: Blip2LanguageConfig) -> None:
        """Load `pretrained` if it is a checkpoint, `finetuned`, then `qformer_weight_path` and `proj_weight_path`."""
        if config.load_pretrained and config.pretrained and is_checkpoint(config.pretrained):
            load_pretrained(self, self.upstream_prefix)
        if config.load_finetuned and config.finetuned:
            load_over(self, config.finetuned, "model.finetuned")
        for key in ("qformer_weight_path", "proj_weight_path"):
            if path := getattr(config, key):
                state, prefixes = parts_of(path, f"model.{key}")
                self.load_part(for_reader(state, self.state_dict()), prefixes, f"model.{key} {path}")

    def train(self, mode: bool = True) -> Blip2Language:
        """As in the base class, but adapters of the frozen language model follow `mode`: they have dropout."""
        super().train(mode)
        for part in adapter_parts(self.net.language_model):
            part.train(mode)
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`image` [B,3,S,S], `text_input` (list of B)[, `text_output`] → `loss`: mean next-token cross entropy.

        The tokens of `text_input` with `learn: text_output`, else those of `prompt`, are input without a loss. With
        `loss_mean: all` the mean over the ranks is that of all their tokens.
        """
        found, labels = self._learn(batch)
        if self.config.loss_mean == "rank":
            return {"loss": found.loss}
        count = (labels[:, 1:] if self.shifts_labels else labels).ne(IGNORED).sum()
        return {"loss": found.loss * (count * world()[1] / sum_over_ranks(count))}

    def outputs(self, batch: Batch, view: str = "full", hidden: bool = False, attentions: bool = False) -> Outputs:
        """One forward pass: logits [N, V] of the N tokens to learn, row by row, which are `extra["labels"]` [N].

        Raises ConfigError for another view, and for hidden states or attentions.
        """
        if view != "full" or hidden or attentions:
            what = f"a {type(self).__name__} gives only the logits of the full view"
            raise ConfigError("run.distill.terms", what, "use vanilla_kd, soft_ce or akd")
        found, labels = self._learn(batch)
        logits, wanted = (found.logits[:, :-1], labels[:, 1:]) if self.shifts_labels else (found.logits, labels)
        learnt = wanted != IGNORED
        return Outputs(logits[learnt], extra={"labels": wanted[learnt]})

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """`loss`: the mean cross entropy, as `forward` gives it."""
        return {"loss": F.cross_entropy(outputs.logits.float(), outputs.extra["labels"])}

    def encoder_layers(self) -> nn.ModuleList:
        """The layers of the Q-Former, the lowest first."""
        layers: nn.ModuleList = self.net.qformer.encoder.layer
        return layers

    def _learn(self, batch: Batch) -> tuple[Any, Tensor]:
        """transformers' output for a batch, and its labels [B, L]."""
        tokens, labels = self.learnt(batch)
        labels = labels.to(self.device)
        return self._predict_tokens(batch, tokens.to(self.device), labels), labels

    def _predict_tokens(self, batch: Batch, tokens: TextTokens, labels: Tensor) -> Any:
        """transformers' output for pictures and tokens padded on the right."""
        embeds, mask = self.embed(batch, tokens), tokens.attention_mask
        return self.net.language_model(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False)

    def query_image(self, samples: Batch) -> Tensor:
        """The queries [N, Q, C] that attended to each picture of the samples."""
        seen = self.net.vision_model(self._images(samples)).last_hidden_state
        queries = self.net.query_tokens.expand(len(seen), -1, -1)
        found: Tensor = self.net.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        return found

    def embed(self, samples: Batch, tokens: TextTokens) -> Tensor:
        """[B, L, E]: the tokens' embeddings, with the projected queries of the pictures in the image places.

        Raises ConfigError for another number of pictures than of places.
        """
        places = tokens.input_ids == self.text.places[0]
        words: Tensor = self.net.get_input_embeddings()(tokens.input_ids.masked_fill(places, 0))
        given = samples.get("image")
        seen = given is not None and len(given)
        pictures = self.net.language_projection(self.query_image(samples)) if seen else words[:0]
        if tokens.pictures is not None:
            pictures = pictures[torch.tensor(tokens.pictures, dtype=torch.int64, device=pictures.device)]
        if int(places.sum()) != pictures.shape[0] * pictures.shape[1]:
            what = f"{int(places.sum())} image places for {len(pictures)} pictures of {len(self.text.places)}"
            raise ConfigError("image", what, "give one picture for each <image>")
        if not seen:
            return words + self._untouched().to(words.dtype)
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

    def positions(self, mask: Tensor) -> dict[str, Tensor]:
        """The arguments that say where each token stands, where the language model does not find it out itself."""
        return {}

    def learnt(self, batch: Batch) -> tuple[TextTokens, Tensor]:
        """The tokens of a batch padded on the right, and labels [B, L]."""
        tokens, unlearnt = self.learning_tokens(batch)
        return tokens, self.text.labels(tokens, unlearnt)

    def learning_tokens(self, batch: Batch) -> tuple[TextTokens, int | list[int]]:
        """The tokens of a batch, and how many at the start of each text have no loss."""
        tokens = self.text.encode([text + self.config.end_sym for text in target_texts(batch)], "right")
        if learns_output_only(batch):
            return tokens, [self.text.length(text) for text in texts_of(batch, "text_input")]
        return tokens, self.prompt_length

    def asking_tokens(self, prompts: Sequence[str]) -> TextTokens:
        """The tokens of questions, padded on the left for generation."""
        return self.text.encode(prompts, "left", self.cuts_prompts)

    def caption_tokens(self, prompts: Sequence[str]) -> TextTokens:
        """The tokens after which `generate` writes, padded on the left."""
        return self.asking_tokens(prompts)

    def opened_tokens(self, samples: Batch) -> TextTokens:
        """What stands before the texts that `generate` writes about samples."""
        return self.caption_tokens(prompts_of(samples, self.prompt))

    def written(self, tokens: TextTokens) -> Tensor:
        """[B, n]: ids beside new ones that upstream's `min_length` and repetition penalty count; here the prompts'."""
        return tokens.input_ids[:, tokens.starts[0] :]

    def generate(
        self,
        samples: Batch,
        use_nucleus_sampling: bool = False,
        num_beams: int = 5,
        max_length: int = 30,
        min_length: int = 1,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        num_captions: int = 1,
        temperature: float = 1.0,
    ) -> list[str]:
        """Captions of `image` [B,3,S,S] after `prompt`, `num_captions` each and in order, without the prompt.

        Lengths are upstream's, which count tokens that are not new (`opening`, `written`).
        """
        lengths = (num_beams, max_length, min_length)
        penalties = (repetition_penalty, length_penalty)
        search = Search(
            *lengths, *penalties, num_captions, use_nucleus_sampling, top_p, temperature, opening=self.opening
        )
        return self._continue(samples, self.opened_tokens(samples), search, self.end_id)

    def predict_answers(
        self,
        samples: Batch,
        num_beams: int = 5,
        inference_method: str = "generate",
        max_len: int = 10,
        min_len: int = 1,
        num_ans_candidates: int = 128,
        answer_list: Sequence[str] | None = None,
        prompt: str = "",
        length_penalty: float | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Answers to `text_input` (questions, each put into `{}` of `prompt`) about `image` [B,3,S,S].

        With `inference_method: rank` the most likely of `answer_list`; the `num_ans_candidates` with the most likely
        first tokens are scored whole. Lemmatised if `apply_lemmatizer` of the samples, else of the model, is set.
        """
        told = {**samples, "prompt": self.questions(samples, prompt)}
        tokens = self.question_tokens(told)
        if inference_method == "rank":
            answers = self._choose(told, tokens, answer_list or (), num_ans_candidates)
        elif inference_method == "generate":
            penalties = (self.answer_repetition, self.answer_penalty if length_penalty is None else length_penalty)
            search = Search(num_beams, max_len, min_len, *penalties, opening=self.answer_opening)
            answers = self._continue(told, tokens, search, self.answer_end_id)
        else:
            raise ConfigError("run.inference_method", f"'{inference_method}' is not offered", "write generate or rank")
        lemmas = samples.get("apply_lemmatizer", self.config.apply_lemmatizer)
        return lemmatize(answers) if lemmas else answers

    def questions(self, samples: Batch, prompt: str) -> list[str]:
        """What `predict_answers` asks about each picture."""
        return prompts_of({**samples, "prompt": questions_of(samples, prompt)}, "")

    def question_tokens(self, samples: Batch) -> TextTokens:
        """The tokens of questions, which are `prompt` of the samples, as `predict_answers` needs them."""
        return self.asking_tokens(samples["prompt"])

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The tokens of each answer as they follow a question in training, with the end token."""
        return [[*row, self.end_id] for row in self._after_word(answers)]

    def _after_word(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts as they follow a word, since some tokenizers mark the space in the token."""
        word = self.text.ids(["a"], special=False)[0]
        return [row[len(word) :] for row in self.text.ids([f"a {text}" for text in texts], special=False, cut=False)]

    @torch.no_grad()
    def _choose(self, samples: Batch, tokens: TextTokens, answers: Sequence[str], count: int) -> list[str]:
        if not answers or count < 1:
            what = f"{count} candidates out of {len(answers)} answers"
            raise ConfigError("run.inference_method", f"rank with {what}", "give an answer_list, or write generate")
        reading = self._read(samples, tokens.to(self.device))
        return [answers[index] for index in rank(reading, self.answer_ids(answers), count)]

    @torch.no_grad()
    def _continue(self, samples: Batch, tokens: TextTokens, search: Search, end_id: int) -> list[str]:
        search.check()
        tokens = tokens.to(self.device)
        written = self.written(tokens)
        settings: dict[str, Any] = replace(search, counted=max(written.shape[1], 1)).arguments()
        if written.shape[1] and (penalty := settings.pop("repetition_penalty")) != 1:
            settings["logits_processor"] = [WrittenPenalty(penalty, written)]
        ends = {"eos_token_id": end_id, "pad_token_id": self.text.pad_id, **self.endings()}
        ids = self._write(samples, tokens, {**settings, **ends})
        return self.said(self.text.tokenizer.batch_decode(ids, skip_special_tokens=True))

    def _read(self, samples: Batch, tokens: TextTokens) -> Reading:
        """Pictures and prompts as the language model is given them."""
        speaker, embeds, mask = self.net.language_model, self.embed(samples, tokens), tokens.attention_mask
        if self.shifts_labels:
            return DecoderReading(speaker, embeds, mask, self.positions)
        return EncoderReading(speaker, embeds, mask, self.decoder_opening)

    def _write(self, samples: Batch, tokens: TextTokens, settings: dict[str, Any]) -> Tensor:
        """The new tokens [B · captions, L] of transformers' `generate`."""
        # with embeddings in place of ids, transformers returns the new tokens only
        embeds, mask = self.embed(samples, tokens), tokens.attention_mask
        ids: Tensor = self.net.language_model.generate(inputs_embeds=embeds, attention_mask=mask, **settings)
        return ids

    def endings(self) -> dict[str, Any]:
        """Arguments of transformers' `generate` that end a text otherwise than by the end token."""
        return {}

    def said(self, texts: Sequence[str]) -> list[str]:
        """Generated texts up to `end_sym`, without spaces around them."""
        end = self.config.end_sym.strip()
        return [(text.split(end)[0] if end else text).strip() for text in texts]

    def _images(self, batch: Batch) -> Tensor:
        return fitting_images(batch, self.device, self.net.config.vision_config.image_size)

    def _freeze_parts(self) -> None:
        """Apply `freeze_vit`, `freeze_llm` and `only_proj`, and half precision to frozen towers only.

        Trained parts, and the input of the Q-Former, stay in fp32.
        """
        net, config = self.net, self.config
        if config.freeze_vit:
            self.freeze_tower(net.vision_model, config.vit_precision)
        if config.freeze_llm:
            self.freeze(net.language_model.to(DTYPES[config.llm_precision]))
        if config.only_proj:
            for part in (net.vision_model.post_layernorm, net.qformer, net.query_tokens):
                self.freeze(part)


@models.register("blip2_opt", config=Blip2OptConfig)
class Blip2Opt(Blip2Language):
    """BLIP-2 with OPT: the caption and a line break are learnt after the image places."""

    language = upstream_prefix = "opt"
    opening = 1
    answer_penalty = 0.0

    def written(self, tokens: TextTokens) -> Tensor:
        """The start token alone, from which transformers starts where it is given embeddings."""
        tokenizer = self.text.tokenizer
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return tokens.input_ids.new_full((len(tokens.input_ids), 1), int(start))


@models.register("blip2_llama", config=Blip2LlamaConfig)
class Blip2Llama(Blip2Language):
    """BLIP-2 with LLaMA (VPGTrans, Zhang et al., arXiv:2305.01278): as with OPT; the pad token is the end token."""

    language = upstream_prefix = "llama"
    cuts_prompts = False


@models.register("blip2_t5", config=Blip2T5Config)
class Blip2T5(Blip2Language):
    """BLIP-2 with Flan-T5: `text_input` goes to the encoder with the image, `text_output` is learnt by the decoder.

    Without `text_output`, plain captions train too: `prompt` is the input and `text_input` is learnt; with an empty
    `prompt` each caption is cut at a random word of its first half, as VPGTrans cuts them.
    """

    language = upstream_prefix = "t5"
    shifts_labels = False
    ends_itself = True

    def learnt(self, batch: Batch) -> tuple[TextTokens, Tensor]:
        """The tokens for the encoder, and the labels of the decoder."""
        texts = texts_of(batch, "text_input")
        if "text_output" in batch:
            heads, tails = texts, texts_of(batch, "text_output")
        elif self.training and not self.prompt:
            heads, tails = cut_at_random(texts)
        else:
            heads, tails = [self.prompt] * len(texts), texts
        return self._inputs(heads, cut=True), self.targets(tails)

    def asking_tokens(self, prompts: Sequence[str]) -> TextTokens:
        """Image places, the whole prompt, end token; padded on the right, which T5's relative positions allow."""
        return self._inputs(prompts, cut=False)

    def _inputs(self, texts: Sequence[str], cut: bool) -> TextTokens:
        closed = self._closed(texts, cut)
        return self.text.pad([self.text.places] * len(closed), closed, "right")

    def _closed(self, texts: Sequence[str], cut: bool) -> list[Ids]:
        """The tokens of texts with the end token, at most `max_txt_len` with it if `cut`."""
        longest = self.text.max_txt_len - 1 if cut else None
        return [[*row[:longest], self.end_id] for row in self.text.ids(texts, special=False, cut=False)]

    def written(self, tokens: TextTokens) -> Tensor:
        """None: the decoder's start token is among the ids that transformers counts itself."""
        return tokens.input_ids[:, :0]

    def said(self, texts: Sequence[str]) -> list[str]:
        """Generated texts as they are."""
        return list(texts)

    def targets(self, texts: Sequence[str]) -> Tensor:
        """Labels [B, L]: output tokens with the end token; pads are IGNORED."""
        rows = [torch.tensor(row) for row in self._closed(texts, cut=True)]
        return pad_sequence(rows, batch_first=True, padding_value=IGNORED)

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The tokens of each answer as the decoder learns them, with the end token."""
        return self._closed(answers, cut=True)


INSTRUCTIONS = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
"""MiniGPT-4's instructions; one is drawn for each batch."""


@models.register("blip2_vicuna", config=Blip2LlamaConfig)
class Blip2Vicuna(Blip2Language):
    """BLIP-2 with Vicuna in MiniGPT-4's frame: `###Human: <Img>`image`</Img>` instruction `###Assistant: ` text.

    Only the text is learnt. In training one instruction a batch is drawn from `INSTRUCTIONS`, by torch's generator. In
    generation the prompt stands behind `</Img>` as it is, without one the first instruction in its frame; questions
    follow the image without a frame, in training as well (VPGTrans). A text ends with `end_sym`.
    """

    language = upstream_prefix = "llama"
    prompter: type[Prompter] = ChatPrompter  # type: ignore[misc]  # a subclass narrows the class variable
    ends_itself = True  # and at the text of `end_sym`: see `endings`
    cuts_prompts = False
    text: ChatPrompter

    def __init__(self, config: Blip2LanguageConfig, network: Any, tokenizer: Any) -> None:
        super().__init__(config, network, tokenizer)
        self.answer_end_id = self.text.end_id("\n")

    def learning_tokens(self, batch: Batch) -> tuple[TextTokens, int | list[int]]:
        """The framed tokens of a batch; with `learn: text_output` those of the base class."""
        if learns_output_only(batch):
            return super().learning_tokens(batch)
        texts = [text + self.config.end_sym for text in target_texts(batch)]
        instruction = INSTRUCTIONS[int(torch.randint(len(INSTRUCTIONS), ()))]
        return self.text.frame(texts, [instruction] * len(texts), "right"), 0

    def caption_tokens(self, prompts: Sequence[str]) -> TextTokens:
        """The frame up to `</Img>`, and each prompt with the tokenizer's start token before it."""
        return self.text.open([prompt or INSTRUCTIONS[0] + self.text.turn for prompt in prompts])

    def endings(self) -> dict[str, Any]:
        """The text `end_sym`, which tokenizers of LLaMA write in several ways."""
        end = self.config.end_sym.strip()
        return {"stopping_criteria": [StopText(self.text.tokenizer, end)]} if end else {}

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The tokens of each answer as they follow a question in training, with those of `end_sym`."""
        return self._after_word([answer + self.config.end_sym for answer in answers])


def require_usable(config: Blip2LanguageConfig) -> None:
    """Raise ConfigError for keys that contradict each other, and for `apply_lemmatizer` without its package."""
    config.require_sound()
    if config.apply_lemmatizer:
        load_lemmatizer()
