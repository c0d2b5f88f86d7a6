"""`blip_instruction`: the instructions that InstructBLIP's data sets of pictures put before captions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lavis_ext.common.registry import processors
from lavis_ext.processors import current_rng
from lavis_ext.processors.base_processor import settable
from lavis_ext.processors.settings import InstructionKeys
from lavis_ext.processors.text import BlipCaption


@processors.register("blip_instruction", config=InstructionKeys)
@settable
@dataclass(frozen=True)
class BlipInstruction(InstructionKeys, BlipCaption):
    """A question in a drawn instruction (`qa`), or an instruction alone where the text is empty (`caption`).

    Any other text becomes a clean caption. Drawn from the generator of the sample. LAVIS has instructions for sound,
    videos and point clouds too, and for classes, none of whose data sets are served.
    """

    def __call__(self, text: str) -> str:
        """The instruction or the clean text, in lower case; with `eval` the prompt stands for an empty text."""
        if self.task == "eval":
            return self.pre_caption(text) if text else self.prompt
        if self.task == "qa":
            asked = drawn(QUESTIONS).replace("{}", text).replace("??", "?")
            return (self.prompt + asked).lower().strip()
        return (self.prompt + drawn(CAPTIONS)).lower().strip() if not text else self.pre_caption(text)

    def pre_caption(self, text: str | list[str]) -> str:
        """The cleaned caption; of several one, drawn (LAVIS)."""
        return super().pre_caption(text if isinstance(text, str) else drawn(text))


def drawn(texts: Sequence[str]) -> str:
    """One of some texts, from the generator of the sample."""
    return texts[int(torch.randint(len(texts), (), generator=current_rng()))]


QUESTIONS = (
    "{}",
    "Q: {} A:",
    "Answer the following question: {}",
    "Question: {} Answer:",
    "How would you answer {}?",
    "What is the answer to the question {}?",
    "Answer the question based on the image. Question: {} Answer: ",
    "Instruction: Answer the following question by reference to the input image. Question: {} Answer:",
    "Given the photo, what is the answer to the question {}?",
    "What's your response to the query {}?",
    "Please provide an answer to {}",
    "Respond to the query {}",
    "Based on the given image, respond to {}",
    "Question: {} What's your response?",
    "Consider the following query: {}",
    "Could you help answer the question {}?",
    "Referencing the provided image, can you answer the question {}?",
    "With respect to the image shown, please answer {}",
    "What's your answer to {} in the context of the provided image?",
    "Question (refer to the image for context): {} Answer:",
    "In response to the question {}, what would your answer be?",
    "Considering the details of the image, {}",
    "Contemplating the image, {}",
    "Upon examining the image, how would you address {}?",
    "Using the image as a guideline, {}",
    "From the perspective of the image, {}",
    "Please provide a detailed answer to {} based on your insights from the image.",
    "If you were to use the image as a sole reference, how would you address {}?",
    "Factoring in the image's details, what's your take on {}?",
    "In light of the provided image, {}",
    "Relying solely on the image, how would you tackle {}?",
    "Referencing the intricate details of the image, {}",
    "Giving heed to the image, how would you reply to {}?",
    "In the context of the image's attributes, {}",
    "Having the image in mind, provide an answer to {}.",
    "Reflecting upon the image, {}",
    "Question: {}. Keeping the image in mind, please provide an answer.",
    "By referencing the key aspects of the image, {}",
    "While considering the intricacies of the image, how would you approach answering {}?",
    "Having thoroughly reviewed the image, please respond to {}.",
    "Let's focus on the image. In its context, how would you interpret {}?",
    "With the nuances of the image at the forefront, {}",
    "Taking a cue from the image, {}",
    "Bearing in mind the characteristics of the image, how would you elucidate {}?",
    "Gauging by the image, {}",
    "In accordance with the image's specifications, {}",
    "Drawing insights from the image, {}",
)
"""Around a question in the place of `{}` (X-InstructBLIP, Panagopoulou et al., arXiv:2311.18799, appendix)."""

CAPTIONS = (
    "A short caption:",
    "A short description:",
    "A short image caption:",
    "A short image description:",
    "A photo of",
    "A photo that shows",
    "A picture of",
    "A picture that shows",
    "An image of",
    "An image that shows",
    "Write a short description.",
    "Write a description for the image.",
    "Provide a description of what is presented in the image.",
    "Briefly describe the content of the image.",
    "Can you briefly explain what you see in the image?",
    "Could you use a few words to describe what you perceive in the image?",
    "Please provide a short description of the image.",
    "Using language, provide a short account of the image.",
    "Use a few words to illustrate what is happening in the photo.Write a description for the photo.",
    "Provide a description of what is presented in the photo.",
    "Briefly describe the content of the photo.",
    "Can you briefly explain what you see in the photo?",
    "Could you use a few words to describe what you perceive in the photo?",
    "Please provide a short description of the picture.",
    "Using language, provide a short account of the picture.",
    "Use a few words to illustrate what is happening in the picture.",
    "Write a description for the picture.",
    "Provide a description of what is presented in the picture.",
    "Briefly describe the content of the picture.",
    "Can you briefly explain what you see in the picture?",
    "Could you use a few words to describe what you perceive in the picture?",
    "Please provide a short description of the picture.",
    "Using language, provide a short account of the picture.",
    "Use a few words to illustrate what is happening in the picture.",
    "What can you tell me about this image?",
    "Please detail what's in this image.",
    "Narrate the scene captured in this image.",
    "Describe the main elements in this photo.",
    "Tell me what stands out in this picture.",
    "What is the focal point of this image?",
    "Please identify the primary subjects in this photo.",
    "Detail the atmosphere or mood of this image.",
    "Paint a verbal picture based on this image.",
    "Elaborate on the contents of this photo.",
    "How would you introduce this image to someone?",
    "Share a summary of this image.",
    "What are the notable features of this image?",
    "Highlight the main themes present in this photo.",
    "Sketch the scene using words.",
    "Enumerate the elements you see in this image.",
    "Characterize the essence of this picture.",
    "Relate the story depicted in this image.",
    "Describe this image as if speaking to someone who can't see it.",
)
"""Before a caption. LAVIS lacks a comma between two of them, which stand as one, and has some twice: as likely."""
