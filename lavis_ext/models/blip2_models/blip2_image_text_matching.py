"""LAVIS' module name: `blip2_image_text_matching`, under LAVIS' class name."""

from lavis_ext.models.stage1 import Blip2Matching as Blip2ITM

__all__ = ["Blip2ITM"]
