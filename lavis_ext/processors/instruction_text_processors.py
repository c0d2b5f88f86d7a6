"""LAVIS' module name: InstructBLIP's processor of texts, under LAVIS' class name, and its instructions."""

from lavis_ext.processors.instructions import CAPTIONS, QUESTIONS
from lavis_ext.processors.instructions import BlipInstruction as BlipInstructionProcessor

TEMPLATES = {"image": {"qa": list(QUESTIONS), "caption": list(CAPTIONS)}}

__all__ = ["TEMPLATES", "BlipInstructionProcessor"]
