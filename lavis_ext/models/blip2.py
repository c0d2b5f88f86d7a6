"""BLIP-2 with a decoder of its own family: OPT as LAVIS has it, LLaMA as VPGTrans does."""

from __future__ import annotations

from lavis_ext.models.language import Blip2Language
from lavis_ext.models.settings import Blip2LlamaConfig, Blip2OptConfig
from lavis_ext.registry import models


@models.register("blip2_opt", config=Blip2OptConfig)
class Blip2Opt(Blip2Language):
    """BLIP-2 with OPT: the caption and a line break are learnt behind the image places."""

    language = "opt"


@models.register("blip2_llama", config=Blip2LlamaConfig)
class Blip2Llama(Blip2Language):
    """BLIP-2 with LLaMA (VPGTrans, Zhang et al., arXiv:2305.01278): as with OPT; pads are closing tokens."""

    language = "llama"
