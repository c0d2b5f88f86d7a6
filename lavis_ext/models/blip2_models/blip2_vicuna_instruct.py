"""LAVIS' module name: `blip2_vicuna_instruct`, under LAVIS' class name."""

from lavis_ext.models.instruct import Blip2VicunaInstruct

__all__ = ["Blip2VicunaInstruct"]
