"""LAVIS' module name: what BLIP-2's models share."""

from lavis_ext.models.base_model import BaseModel
from lavis_ext.models.blip2 import Blip2Base, LayerNorm, disabled_train
from lavis_ext.models.language import Blip2Language
from lavis_ext.models.matching import compute_sim_matrix

__all__ = ["BaseModel", "Blip2Base", "Blip2Language", "LayerNorm", "compute_sim_matrix", "disabled_train"]
