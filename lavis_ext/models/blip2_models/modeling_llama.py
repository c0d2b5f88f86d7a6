"""LAVIS' module name: transformers' classes, which LAVIS keeps a copy of."""

from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["LlamaConfig", "LlamaForCausalLM"]
