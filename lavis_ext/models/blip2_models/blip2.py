"""LAVIS' module name: what BLIP-2's models share. LAVIS' `Blip2Base` builds parts too; ours come from a config."""

from lavis_ext.models.base_model import BaseModel
from lavis_ext.models.blip2 import Blip2Base
from lavis_ext.models.language import Blip2Language
from lavis_ext.models.matching import compute_sim_matrix

__all__ = ["BaseModel", "Blip2Base", "Blip2Language", "compute_sim_matrix"]
