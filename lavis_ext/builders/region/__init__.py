"""Data sets on region features, Oscar's, VinVL's and volta's: texts as token ids, regions from stores."""

from __future__ import annotations

from lavis_ext.builders.region.caption import region_caption
from lavis_ext.builders.region.pair import region_pair
from lavis_ext.builders.region.pretrain import region_pretrain
from lavis_ext.builders.region.retrieval import region_retrieval
from lavis_ext.builders.region.volta import volta_caption, volta_retrieval
from lavis_ext.builders.region.vqa import region_vqa

__all__ = [
    "region_caption",
    "region_pair",
    "region_pretrain",
    "region_retrieval",
    "region_vqa",
    "volta_caption",
    "volta_retrieval",
]
