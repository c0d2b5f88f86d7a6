"""Oscar and VinVL: a BERT over words, tags and image regions; its heads, its checkpoints, its captions."""

from lavis_ext.models.oscar.convert import from_oscar, to_oscar, write_oscar
from lavis_ext.models.oscar.model import Oscar
from lavis_ext.models.oscar.network import OscarNetwork, OscarOutput

__all__ = ["Oscar", "OscarNetwork", "OscarOutput", "from_oscar", "to_oscar", "write_oscar"]
