"""YAML → plain values with places → dataclasses: run files, cards of data sets, and every mistake of them at once."""

from lavis_ext.common.config.schema import Config

__all__ = ["Config"]
