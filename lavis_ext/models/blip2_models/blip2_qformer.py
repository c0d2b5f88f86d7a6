"""LAVIS' module name: `blip2_qformer`, under LAVIS' class name."""

from lavis_ext.models.stage1 import Blip2 as Blip2Qformer

__all__ = ["Blip2Qformer"]
