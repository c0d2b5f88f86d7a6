"""The command line: `lavis-ext VERB`."""

from __future__ import annotations

from lavis_ext.cli.table import VERBS
from lavis_ext.cli.verb import build_parser, main

__all__ = ["VERBS", "build_parser", "main"]
