"""LAVIS' module name: transformers' classes, which LAVIS keeps a copy of."""

from transformers import OPTConfig, OPTForCausalLM

__all__ = ["OPTConfig", "OPTForCausalLM"]
