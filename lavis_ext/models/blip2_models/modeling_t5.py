"""LAVIS' module name: transformers' classes, which LAVIS keeps a copy of."""

from transformers import T5Config, T5ForConditionalGeneration

__all__ = ["T5Config", "T5ForConditionalGeneration"]
