"""InstructBLIP (Dai et al., arXiv:2305.06500): BLIP-2 whose Q-Former reads the instruction beside its queries."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import models
from lavis_ext.common.types import Batch
from lavis_ext.models.blip2 import ConfigKey, fitting_images
from lavis_ext.models.generation import score
from lavis_ext.models.language import Blip2Language, Blip2T5
from lavis_ext.models.network import load_reader, resize_token_embeddings
from lavis_ext.models.settings import Blip2InstructConfig, Blip2T5InstructConfig, Blip2VicunaInstructConfig
from lavis_ext.models.text import Ids, TextTokens, each, filled, prompts_of, questions_of, texts_of

OCR_TOKENS = 30
"""How many words that were read in a picture LAVIS puts into a prompt."""


class Instruct(Blip2Language):
    """What both language models share: `text_input` is the instruction, `text_output` is learnt.

    Pictures are `image` [B,3,S,S], or videos [B,3,T,S,S], whose frames are read one by one, all with the instruction.
    `net` is transformers' InstructBlipForConditionalGeneration, without `qformer_text_input` the network of BLIP-2.
    """

    ends_itself = True
    answer_repetition = 1.5
    config: Blip2InstructConfig
    max_output_txt_len, qformer_text_input = ConfigKey(), ConfigKey()

    def __init__(self, config: Blip2InstructConfig, network: Any, tokenizer: Any) -> None:
        super().__init__(config, network, tokenizer)
        self.candidates: list[str] = []
        self.reader = load_reader(config) if config.qformer_text_input else None
        if self.reader is not None:
            resize_token_embeddings(network.qformer, len(self.reader), network.config.qformer_config)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`image`, `text_input` (instructions), `text_output` (lists of B) → `loss`: mean cross entropy of the outputs.

        Without `text_output`, plain captions train too: `prompt` is the instruction and `text_input` is learnt.
        """
        return super().forward(batch)

    def instructed(self, batch: Batch) -> tuple[list[str], list[str]]:
        """The instructions of a batch, and the texts to learn."""
        texts = texts_of(batch, "text_input")
        if "text_output" not in batch:
            return [self.prompt] * len(texts), texts
        return texts, texts_of(batch, "text_output")

    def learning(self, heads: Sequence[str], tails: Sequence[str], frames: int) -> tuple[TextTokens, Tensor]:
        """The tokens of instructions and outputs, padded on the right, and the labels."""
        raise NotImplementedError

    def asked(self, prompts: Sequence[str], frames: int) -> TextTokens:
        """The places of `frames` pictures and the whole prompt, for generation; the Q-Former's is cut."""
        raise NotImplementedError

    def candidate_ids(self, candidates: Sequence[str]) -> list[Ids]:
        """The tokens of candidates as `predict_class` compares them."""
        raise NotImplementedError

    def compared(self, length: int, ids: Sequence[Ids]) -> int:
        """What the losses of candidates after a prompt of this length are divided by before they are compared."""
        return 1

    def query_image(self, samples: Batch) -> Tensor:
        """The queries [B, T·Q, C] that attended to each of T frames and to the instruction, `prompt` of the samples."""
        net, frames = self.net, frames_of(samples)
        if self.reader is None:
            out = super().query_image(samples)
        else:
            embeds = net.vision_model(self._images(samples)).last_hidden_state
            queries = net.query_tokens.expand(len(embeds), -1, -1)
            cut = {"padding": "longest", "truncation": True, "max_length": self.config.max_txt_len}
            text = self.reader(prompts_of(samples, self.prompt), return_tensors="pt", **cut).to(self.device)
            ids, mask = (text[key].repeat_interleave(frames, dim=0) for key in ("input_ids", "attention_mask"))
            mask = torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1)
            out = net.qformer(ids, mask, query_embeds=queries, encoder_hidden_states=embeds).last_hidden_state
        return out[:, : net.query_tokens.shape[1]].reshape(len(out) // frames, -1, out.shape[-1])

    def generate(
        self,
        samples: Batch,
        use_nucleus_sampling: bool = False,
        num_beams: int = 5,
        max_length: int = 256,
        min_length: int = 1,
        top_p: float = 0.9,
        repetition_penalty: float = 1.5,
        length_penalty: float = 1.0,
        num_captions: int = 1,
        temperature: float = 1.0,
    ) -> list[str]:
        """Texts after `prompt` about `image`, `num_captions` each and in order, with LAVIS' defaults.

        `ocr_tokens` of the samples, lists of words, go into `{}` of the prompt.
        """
        prompts = prompts_of(samples, self.prompt)
        if "ocr_tokens" in samples and "{}" in prompts[0]:
            prompts = [filled(prompt, seen) for prompt, seen in zip(prompts, words_read(samples), strict=True)]
        lengths, penalties = (num_beams, max_length, min_length), (repetition_penalty, length_penalty)
        told, sampling = {**samples, "prompt": prompts}, use_nucleus_sampling
        return super().generate(told, sampling, *lengths, top_p, *penalties, num_captions, temperature)

    def opened_tokens(self, samples: Batch) -> TextTokens:
        """The places of all frames, and the whole prompt."""
        return self.asked(prompts_of(samples, self.prompt), frames_of(samples))

    question_tokens = opened_tokens

    def questions(self, samples: Batch, prompt: str) -> list[str]:
        """As in the base class; two `{}` take `ocr_tokens` and the question, or the question and lettered `choices`."""
        return asked_of(samples, prompt)

    @torch.no_grad()
    def predict_class(
        self, samples: Batch, candidates: Sequence[str] | Sequence[Sequence[str]], n_segments: int = 1
    ) -> Tensor | list[list[int]]:
        """The numbers of the candidates from the likeliest down, int64 [B, N]; lists where samples have other counts.

        `prompt` of the samples takes their `text_input` in `{}`; `context`, `history` and `caption` go before it.
        """
        prompts = prompts_of(samples, self.prompt)
        own = bool(candidates) and not isinstance(candidates[0], str)
        rows: list[Any] = (
            each({**samples, "candidates": candidates}, "candidates") if own else [candidates] * len(prompts)
        )
        if not all(rows) or not all(text for row in rows for text in row):
            raise ConfigError("candidates", "none, or an empty one", "give at least one text to choose from")
        asked = [instruction(samples, row, prompt) for row, prompt in enumerate(prompts)]
        tokens = self.asked(asked, frames_of(samples)).to(self.device)
        reading = self._read({**samples, "prompt": asked}, tokens)
        found = []
        for row, some in enumerate(rows):
            # as in LAVIS, which asks samples with candidates of their own one by one, without pads
            length = int(reading.mask[row].sum()) if own else reading.mask.shape[1]
            parts = [self.candidate_ids(part) for part in segments(some, n_segments)]
            losses = [-score(reading, row, part) / self.compared(length, part) for part in parts]
            found.append(torch.cat(losses).argsort())
        alike = len({len(ranks) for ranks in found}) == 1
        return torch.stack(found) if alike else [ranks.tolist() for ranks in found]

    def before_evaluation(self, **kwargs: Any) -> None:
        """Take the `classnames` of the data set for the candidates of `predict`."""
        self.candidates = list(getattr(kwargs.get("dataset"), "classnames", None) or self.candidates)

    def predict(
        self, samples: Batch, candidates: Sequence[str] | None = None, n_segments: int = 1
    ) -> dict[str, list[str]]:
        """`predictions`, the likeliest candidate of each sample, and `targets`, their `label`, as texts.

        As X-InstructBLIP has it in LAVIS, whose InstructBLIP lacks it. Raises ConfigError without candidates.
        """
        self.candidates = list(candidates or self.candidates)
        if not self.candidates:
            way_out = "give candidates, or a data set with classnames, as snli_ve_instruct"
            raise ConfigError("predict", "has no candidates to choose from", way_out)
        ranks = self.predict_class(samples, self.candidates, n_segments)
        found = {"predictions": [self.candidates[int(row[0])] for row in ranks]}
        return {**found, "targets": list(samples["label"])} if "label" in samples else found

    def _learn(self, batch: Batch) -> tuple[Any, Tensor]:
        heads, tails = self.instructed(batch)
        tokens, labels = self.learning(heads, tails, frames_of(batch))
        tokens, labels = tokens.to(self.device), labels.to(self.device)
        return self._predict_tokens({**batch, "prompt": heads}, tokens, labels), labels

    def _images(self, batch: Batch) -> Tensor:
        """[B·T, 3, S, S]"""
        images = batch["image"]
        flat = images.transpose(1, 2).flatten(0, 1) if images.dim() == 5 else images
        return fitting_images({"image": flat}, self.device, self.net.config.vision_config.image_size)

    def _plain(self, texts: Sequence[str]) -> list[Ids]:
        return self.text.ids(texts, special=False, cut=False)


@models.register("blip2_vicuna_instruct", config=Blip2VicunaInstructConfig)
class Blip2VicunaInstruct(Instruct):
    """InstructBLIP with Vicuna: image places, `</s>`, the instruction, the output and `</s>`."""

    language = "llama"
    upstream_prefix = "llm"
    opening = answer_opening = 1
    answer_penalty = 0.0

    def learning(self, heads: Sequence[str], tails: Sequence[str], frames: int) -> tuple[TextTokens, Tensor]:
        """Of an instruction the last `max_txt_len` tokens, of an output the first `max_output_txt_len`.

        Each counts a start token, of which the output's is not used.
        """
        asked = [[self.end_id, *last(row, self.config.max_txt_len - 1)] for row in self._plain(heads)]
        learnt = [[*row, self.end_id][: self.config.max_output_txt_len - 1] for row in self._plain(tails)]
        texts = [head + tail for head, tail in zip(asked, learnt, strict=True)]
        tokens = self.text.pad([self.text.places * frames] * len(texts), texts, "right")
        return tokens, self.text.labels(tokens, [len(head) for head in asked])

    def asked(self, prompts: Sequence[str], frames: int) -> TextTokens:
        """Padded on the left."""
        texts = [[self.end_id, *row] for row in self._plain(prompts)]
        return self.text.pad([self.text.places * frames] * len(texts), texts, "left")

    def written(self, tokens: TextTokens) -> Tensor:
        """The start token of the language model, from which transformers starts where it is given embeddings."""
        start = self.net.language_model.config.bos_token_id
        return tokens.input_ids.new_full((len(tokens.input_ids), 1), self.end_id if start is None else int(start))

    def candidate_ids(self, candidates: Sequence[str]) -> list[Ids]:
        """Without an end token."""
        return self._plain(candidates)

    def compared(self, length: int, ids: Sequence[Ids]) -> int:
        """LAVIS compares means over the whole padded text, whose length is another in each of `n_segments`."""
        return length + max(map(len, ids)) - 1


@models.register("blip2_t5_instruct", config=Blip2T5InstructConfig)
class Blip2T5Instruct(Instruct, Blip2T5):
    """InstructBLIP with Flan-T5: the instruction goes to the encoder with the image, the decoder learns the output.

    `few_shot_samples`, one a sample with `image` [n,3,S,S] and `text_input` (list of n), go before it to the encoder:
    with `few_shot_prob` the first of them, a number up to `num_few_shot_examples`, drawn by torch's generator.
    """

    config: Blip2T5InstructConfig
    few_shot_prob, num_few_shot_examples = ConfigKey(), ConfigKey()

    def learning(self, heads: Sequence[str], tails: Sequence[str], frames: int) -> tuple[TextTokens, Tensor]:
        """Of an instruction the last `max_txt_len` tokens, of an output the first `max_output_txt_len`."""
        return self._encoded(heads, frames, cut=True), self.targets(tails)

    def asked(self, prompts: Sequence[str], frames: int) -> TextTokens:
        """Padded on the right, which T5's relative positions allow."""
        return self._encoded(prompts, frames)

    def candidate_ids(self, candidates: Sequence[str]) -> list[Ids]:
        """With the end token."""
        return [[*row, self.end_id] for row in self._plain(candidates)]

    def _encoded(self, texts: Sequence[str], frames: int, cut: bool = False) -> TextTokens:
        rows = self._plain(texts)
        closed = [[*(last(row, self.config.max_txt_len - 1) if cut else row), self.end_id] for row in rows]
        return self.text.pad([self.text.places * frames] * len(rows), closed, "right")

    def _closed(self, texts: Sequence[str], cut: bool) -> list[Ids]:
        """The tokens of outputs with the end token."""
        longest = self.config.max_output_txt_len - 1 if cut else None
        return [[*row[:longest], self.end_id] for row in self._plain(texts)]

    def _predict_tokens(self, batch: Batch, tokens: TextTokens, labels: Tensor) -> Any:
        embeds, mask = self.embed(batch, tokens), tokens.attention_mask
        if count := self._shots() if "few_shot_samples" in batch else 0:
            before, known = self._examples(batch["few_shot_samples"], count)
            embeds, mask = torch.cat([before, embeds], dim=1), torch.cat([known, mask], dim=1)
        return self.net.language_model(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False)

    def _shots(self) -> int:
        """How many examples this batch gets."""
        most, share = self.config.num_few_shot_examples, self.config.few_shot_prob
        shares = torch.tensor([1 - share, *[share / most] * most]) if share else torch.ones(1)
        return int(torch.multinomial(shares, 1))

    def _examples(self, samples: Sequence[Any], count: int) -> tuple[Tensor, Tensor]:
        """Embeddings and mask of the first `count` examples of each sample, in a row with their pads, as in LAVIS."""
        if any(min(len(sample["image"]), len(sample["text_input"])) < count for sample in samples):
            what = f"fewer than {count} examples in a sample"
            raise ConfigError("few_shot_samples", what, f"give model.num_few_shot_examples={count} each, or lower it")
        images = torch.stack([sample["image"][number] for sample in samples for number in range(count)])
        texts = [sample["text_input"][number] for sample in samples for number in range(count)]
        tokens = self._encoded(texts, 1, cut=True).to(self.device)
        embeds = self.embed({"image": images, "prompt": texts}, tokens)
        return embeds.reshape(len(samples), -1, embeds.shape[-1]), tokens.attention_mask.reshape(len(samples), -1)


def last(ids: Ids, count: int) -> Ids:
    """The last `count` tokens."""
    return ids[max(len(ids) - count, 0) :]


def frames_of(samples: Batch) -> int:
    """T of videos [B,3,T,S,S]; 1 of pictures."""
    return int(samples["image"].shape[2]) if samples["image"].dim() == 5 else 1


def segments(candidates: Sequence[str], count: int) -> list[Sequence[str]]:
    """Candidates in `count` parts of a size, the last with the rest."""
    size = max(len(candidates) // max(count, 1), 1)
    starts = list(range(0, len(candidates), size))[: max(count, 1)]
    return [candidates[start:stop] for start, stop in zip(starts, [*starts[1:], len(candidates)], strict=True)]


def asked_of(samples: Batch, prompt: str) -> list[str]:
    """The questions of `text_input` in LAVIS' prompts: one `{}`, or two with `ocr_tokens` or `choices`."""
    questions = texts_of(samples, "text_input")
    if prompt.count("{}") != 2:
        return questions_of(samples, prompt)
    if "ocr_tokens" in samples:
        return [filled(prompt, seen, one) for seen, one in zip(words_read(samples), questions, strict=True)]
    if "choices" in samples:
        rows = [zip(string.ascii_lowercase, row, strict=False) for row in each(samples, "choices")]
        lettered = [" ".join(f"({letter}) {choice}" for letter, choice in row) for row in rows]
        return [filled(prompt, one, row) for one, row in zip(questions, lettered, strict=True)]
    what = f"{prompt!r} has two {{}}, and the samples have no ocr_tokens or choices"
    raise ConfigError("run.prompt", what, "write one {}, for the question")


def words_read(samples: Batch) -> list[str]:
    """The first `ocr_tokens` of each sample, as LAVIS joins them."""
    return [", ".join(row[:OCR_TOKENS]) for row in each(samples, "ocr_tokens")]


def instruction(samples: Batch, row: int, prompt: str) -> str:
    """The prompt of a sample to be classed, with its `text_input` in `{}`, after its context, history and caption."""
    if "text_input" in samples:
        text = each(samples, "text_input")[row]
        prompt = filled(prompt, *([text] if isinstance(text, str) else text))
    if samples.get("context", "") != "":
        prompt = f"context: {each(samples, 'context')[row]}. {prompt}"
    if samples.get("history") and samples["history"][0] != "":
        prompt = f"dialog history: {each(samples, 'history')[row]}\n{prompt}"
    if samples.get("caption") and samples["caption"][0] != "":
        prompt = f'This image has the caption "{each(samples, "caption")[row]}". {prompt}'
    return prompt
