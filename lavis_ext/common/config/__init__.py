"""YAML → plain values with places → dataclasses: run files, cards of data sets, and every mistake of them at once."""
