"""LAVIS' module name: `blip2_t5`, under LAVIS' class name."""

from lavis_ext.models.language import Blip2T5

__all__ = ["Blip2T5"]
