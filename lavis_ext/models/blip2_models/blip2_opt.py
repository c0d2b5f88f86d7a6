"""LAVIS' module name: `blip2_opt`, under LAVIS' class name."""

from lavis_ext.models.language import Blip2Opt as Blip2OPT

__all__ = ["Blip2OPT"]
