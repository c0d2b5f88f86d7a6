"""A command line of Oscar's scripts → a run file. Nothing of it is ever executed; the flags are data (flags.yaml)."""

from __future__ import annotations

from lavis_ext.import_args.convert import Imported, import_command, reasons

__all__ = ["Imported", "import_command", "reasons"]
