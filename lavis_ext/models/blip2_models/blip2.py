"""LAVIS' module name: what BLIP-2's models share. LAVIS' `Blip2Base` builds parts by hand; ours come from a config."""

from lavis_ext.models.base_model import BaseModel
from lavis_ext.models.language import Blip2Language

__all__ = ["BaseModel", "Blip2Language"]
