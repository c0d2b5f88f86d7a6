"""LAVIS' module name: the builders of its data sets of questions, under LAVIS' class names."""

from lavis_ext.datasets.builders import AOKVQABuilder, COCOVQABuilder, GQABuilder, OKVQABuilder, VGVQABuilder

__all__ = ["AOKVQABuilder", "COCOVQABuilder", "GQABuilder", "OKVQABuilder", "VGVQABuilder"]
