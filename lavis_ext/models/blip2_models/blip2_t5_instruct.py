"""LAVIS' module name: `blip2_t5_instruct`, under LAVIS' class name."""

from lavis_ext.models.instruct import Blip2T5Instruct

__all__ = ["Blip2T5Instruct"]
