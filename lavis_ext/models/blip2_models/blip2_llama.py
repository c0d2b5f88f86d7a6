"""LAVIS' module name: `blip2_llama`, under LAVIS' class name."""

from lavis_ext.models.language import Blip2Llama as Blip2LLaMA

__all__ = ["Blip2LLaMA"]
