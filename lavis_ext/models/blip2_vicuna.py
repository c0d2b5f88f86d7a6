"""BLIP-2 with Vicuna: answers to instructions about an image, in MiniGPT-4's frame (VPGTrans' third step)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lavis_ext.models.language import Blip2Language
from lavis_ext.models.settings import Blip2LlamaConfig
from lavis_ext.models.text import ChatPrompter, Prompter, Tokens, learns_output_only, target_texts
from lavis_ext.registry import models
from lavis_ext.types import Batch

INSTRUCTIONS = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
"""MiniGPT-4's, one of which is drawn for each sample."""


@models.register("blip2_vicuna", config=Blip2LlamaConfig)
class Blip2Vicuna(Blip2Language):
    """BLIP-2 with Vicuna: `###Human: <Img>`image`</Img>` instruction `###Assistant: ` and then the text to learn.

    In training the instruction is drawn from `INSTRUCTIONS`, by torch's generator; in generation it is the prompt.
    """

    language = "llama"
    prompter: type[Prompter] = ChatPrompter  # type: ignore[misc]  # the class variable of a subclass
    text: ChatPrompter

    def learning_tokens(self, batch: Batch) -> tuple[Tokens, int | list[int]]:
        """The framed tokens of a batch; with `learn: text_output` `text_input` is the instruction."""
        if learns_output_only(batch):
            instructions, texts = list(batch["text_input"]), list(batch["text_output"])
        else:
            texts = target_texts(batch)
            drawn = torch.randint(len(INSTRUCTIONS), (len(texts),)).tolist()
            instructions = [INSTRUCTIONS[index] for index in drawn]
        return self.text.frame([text + self.config.end_sym for text in texts], instructions, "right"), 0

    def asking_tokens(self, prompts: Sequence[str]) -> Tokens:
        """The frame with each prompt, the first instruction where it is empty."""
        instructions = [prompt or INSTRUCTIONS[0] for prompt in prompts]
        return self.text.frame([""] * len(prompts), instructions, "left")

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The tokens of each answer as they stand behind the frame, with the closing one."""
        return [[*row, self.end_id] for row in self.text.ids(answers, special=False)]
