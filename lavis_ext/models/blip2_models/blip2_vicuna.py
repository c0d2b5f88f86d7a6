"""LAVIS' module name: `blip2_vicuna`, under LAVIS' class name."""

from lavis_ext.models.language import Blip2Vicuna

__all__ = ["Blip2Vicuna"]
