"""The first stage writes: its Q-Former under transformers' search, one token behind the other, after `[DEC]`."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

from lavis_ext.models.search import Search


class Writer(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """What transformers' search asks of a language model; the weights stay those of the first stage.

    All places are computed at each token: the queries before them depend on the picture alone, but transformers'
    Q-Former keeps nothing of them.
    """

    config_class = transformers.PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, stage: Any) -> None:
        words = stage.net.embeddings.word_embeddings.num_embeddings
        super().__init__(transformers.PretrainedConfig(vocab_size=words, use_cache=False))
        self._stage = [stage]  # in a list: no second owner of its parameters
        self.generation_config = transformers.GenerationConfig(use_cache=False)

    @property
    def device(self) -> torch.device:
        """Where the first stage lies."""
        device: torch.device = self._stage[0].device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """That of its logits."""
        return torch.float32

    def can_generate(self) -> bool:
        """It can."""
        return True

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """Tokens so far, and the picture of each row; no row has pads before its end."""
        return {"input_ids": input_ids, "encoder_hidden_states": encoder_hidden_states}

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, **_: Any) -> CausalLMOutput:
        """Tokens [B, L] and the tower's output [B, P, W] → logits [B, L, V]."""
        stage = self._stage[0]
        texts = stage.texts(input_ids, torch.ones_like(input_ids))
        return CausalLMOutput(logits=stage.describe(encoder_hidden_states, texts)[1])


def write(stage: Any, embeds: Tensor, search: Search) -> list[str]:
    """Texts about pictures [B, P, W] by the first stage `stage`, as `search` says."""
    tokenizer = stage.tokenizer
    starts = torch.full((len(embeds), 1), tokenizer.bos_token_id, device=embeds.device)
    end = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    ends = {"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    mask = torch.ones_like(starts)
    ids = Writer(stage).generate(
        starts, attention_mask=mask, encoder_hidden_states=embeds, **search.arguments(), **ends
    )
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]
