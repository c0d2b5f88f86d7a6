"""LAVIS' module name: InstructBLIP's processor of texts, under LAVIS' class name."""

from lavis_ext.processors.instructions import BlipInstruction as BlipInstructionProcessor

__all__ = ["BlipInstructionProcessor"]
