"""LAVIS' folder name: BLIP-2's models under LAVIS' class names; they live in `models/{language,instruct,stage1}.py`."""

from lavis_ext.models.instruct import Blip2T5Instruct, Blip2VicunaInstruct
from lavis_ext.models.language import Blip2Llama as Blip2LLaMA
from lavis_ext.models.language import Blip2Opt as Blip2OPT
from lavis_ext.models.language import Blip2T5, Blip2Vicuna
from lavis_ext.models.stage1 import Blip2 as Blip2Qformer
from lavis_ext.models.stage1 import Blip2Matching as Blip2ITM

__all__ = [
    "Blip2ITM",
    "Blip2LLaMA",
    "Blip2OPT",
    "Blip2Qformer",
    "Blip2T5",
    "Blip2T5Instruct",
    "Blip2Vicuna",
    "Blip2VicunaInstruct",
]
