"""LAVIS' module name: its Q-Former, under LAVIS' class names."""  # noqa: N999

from transformers import BertConfig

from lavis_ext.models.parts import Qformer as BertLMHeadModel
from lavis_ext.models.parts import QformerBert as BertModel

__all__ = ["BertConfig", "BertLMHeadModel", "BertModel"]
