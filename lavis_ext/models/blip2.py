"""BLIP-2's second stage on transformers' network: vision tower → Q-Former → projection → decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lavis_ext.errors import ConfigError
from lavis_ext.models.base import Model
from lavis_ext.models.hub import load_network, load_tokenizer
from lavis_ext.models.network import (
    DTYPES,
    add_image_token,
    build_network,
    check_config,
    fit_image_size,
    recompute,
)
from lavis_ext.models.search import Search
from lavis_ext.models.text import Prompter, prompts_of, target_texts
from lavis_ext.models.weights import read_checkpoint, translate
from lavis_ext.registry import models
from lavis_ext.schema import ModelConfig
from lavis_ext.types import Batch

QFORMER_PARTS = ("net.query_tokens", "net.vision_model.post_layernorm.", "net.qformer.")
PROJECTION = ("net.language_projection.",)


@models.register("blip2_opt")
class Blip2Opt(Model):
    """BLIP-2 with OPT (Li et al., arXiv:2301.12597): the caption is continued from query embeddings of the image.

    `net` is transformers' Blip2ForConditionalGeneration, `text` its tokenizer with the image places.
    """

    def __init__(self, config: ModelConfig, network: Any, tokenizer: Any) -> None:
        super().__init__()
        check_config(config)
        add_image_token(network, tokenizer)
        self.config, self.net = config, network
        places = network.config.num_query_tokens
        self.text = Prompter(tokenizer, network.config.image_token_index, places, config.max_txt_len)
        self.prompt = config.prompt
        self.prompt_length = self.text.length(config.prompt) if config.prompt else 0
        self.end_id = self.text.end_id(config.end_sym)
        self._freeze_parts()
        self._set_precision()
        if config.use_grad_checkpoint:
            recompute(network)

    @classmethod
    def from_config(cls, config: ModelConfig) -> Blip2Opt:
        """From `pretrained` (folder or hub name), or from scratch by `sizes`; then parts and `finetuned` over it.

        Random weights follow torch's global seed. Raises ConfigError, NetworkError or IntegrityError.
        """
        check_config(config)
        if config.load_pretrained and config.pretrained:
            tokenizer = load_tokenizer(config.tokenizer or config.pretrained, "model.pretrained")
            network = fit_image_size(load_network(config.pretrained, "model.pretrained", config), config.image_size)
        elif config.sizes and config.tokenizer:
            tokenizer = load_tokenizer(config.tokenizer, "model.tokenizer")
            network = build_network(config, tokenizer)
        else:
            way_out = "name a folder or hub model, or give model.sizes and model.tokenizer"
            raise ConfigError("model.pretrained", "no weights to start from", way_out)
        model = cls(config, network, tokenizer)
        model.load_parts(config)
        return model

    def load_parts(self, config: ModelConfig) -> None:
        """Put `qformer_weight_path`, `proj_weight_path` (VPGTrans' keys) and `finetuned` over the weights."""
        parts = [("qformer_weight_path", QFORMER_PARTS), ("proj_weight_path", PROJECTION)]
        for key, prefixes in parts:
            path = getattr(config, key)
            if path:
                self.load_part(translate(read_checkpoint(path, f"model.{key}")), prefixes, f"model.{key} {path}")
        if config.load_finetuned and config.finetuned:
            self.load_trainable_state(read_checkpoint(config.finetuned, "model.finetuned"))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`image` [B,3,S,S], `text_input` (list of B) → `loss`: mean next-token cross entropy over caption tokens."""
        images = self._images(batch)
        texts = [text + self.config.end_sym for text in target_texts(batch)]
        tokens = self.text.encode(texts, "right").to(images.device)
        labels = self.text.labels(tokens, self.prompt_length)
        out = self.net(images, tokens.input_ids, tokens.attention_mask, labels=labels, use_cache=False)
        return {"loss": out.loss}

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
        """Captions of `image` [B,3,S,S] after `prompt`, `num_captions` each and in order, without the prompt."""
        lengths = (num_beams, max_length, min_length)
        penalties = (repetition_penalty, length_penalty)
        search = Search(*lengths, *penalties, num_captions, use_nucleus_sampling, top_p, temperature)
        return self._continue(samples, prompts_of(samples, self.prompt), search)

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
        length_penalty: float = -1.0,
    ) -> list[str]:
        """Answers to `text_input` (questions; each put into `prompt` where it says `{}`) about `image` [B,3,S,S].

        `num_ans_candidates` and `answer_list` are LAVIS' arguments for ranking, which this decoder does not do.
        """
        if inference_method != "generate":
            raise ConfigError("run.inference_method", f"'{inference_method}' is not offered", "write generate")
        questions = samples["text_input"]
        questions = [questions] if isinstance(questions, str) else list(questions)
        asked = [prompt.format(question) if prompt else question for question in questions]
        search = Search(num_beams, max_len, min_len, length_penalty=length_penalty)
        return self._continue(samples, prompts_of({**samples, "prompt": asked}, ""), search)

    @torch.no_grad()
    def _continue(self, samples: Batch, prompts: list[str], search: Search) -> list[str]:
        settings = search.arguments()
        images = self._images(samples)
        tokens = self.text.encode(prompts, "left").to(images.device)
        # Given embeddings only, transformers answers with the new tokens alone and penalises no prompt token.
        embeds = self.net.get_input_embeddings()(tokens.input_ids)
        ends = {"eos_token_id": self.end_id, "pad_token_id": self.text.tokenizer.pad_token_id}
        ids = self.net.generate(images, attention_mask=tokens.attention_mask, inputs_embeds=embeds, **settings, **ends)
        return [text.strip() for text in self.text.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _images(self, batch: Batch) -> Tensor:
        images: Tensor = batch["image"].to(self.device)
        size = self.net.config.vision_config.image_size
        if tuple(images.shape[1:]) != (3, size, size):
            found = "×".join(map(str, images.shape[1:]))
            raise ConfigError(
                "vis_processor.image_size", f"images of {found} for a model of 3×{size}×{size}", f"set it to {size}"
            )
        return images

    def _freeze_parts(self) -> None:
        """What `freeze_vit`, `freeze_llm` and `only_proj` name; the tower's last norm trains with the Q-Former."""
        net, norm = self.net, self.net.vision_model.post_layernorm
        if self.config.freeze_vit:
            self.freeze(net.vision_model)
            norm.requires_grad_(True)
        if self.config.freeze_llm:
            self.freeze(net.language_model)
        if self.config.only_proj:
            for part in (norm, net.qformer, net.query_tokens):
                self.freeze(part)

    def _set_precision(self) -> None:
        """Half precision for frozen towers only: what learns stays in fp32, and so does what feeds the Q-Former."""
        if self.config.freeze_llm:
            self.net.language_model.to(DTYPES[self.config.llm_precision])
        if self.config.freeze_vit:
            self.net.vision_model.to(DTYPES[self.config.vit_precision])
            self.net.vision_model.post_layernorm.float().register_forward_pre_hook(_as_float)


def _as_float(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(item.float() for item in inputs)
