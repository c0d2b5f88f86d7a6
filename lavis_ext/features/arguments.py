"""The arguments of `lavis-ext features`, without anything that would have to be imported to print help."""

from __future__ import annotations

from typing import Any

Argument = tuple[tuple[str, ...], dict[str, Any]]
ACTIONS = ("import", "export", "index", "merge", "info", "verify", "head")
FORMATS = ("oscar-tsv", "vinvl-tsv", "butd-tsv", "lxmert-tsv", "volta-tsv", "volta-lmdb", "oscar-pt", "h5", "npy")
FEATURES: list[Argument] = [
    (("action",), {"choices": ACTIONS, "metavar": "ACTION", "help": ", ".join(ACTIONS)}),
    (
        ("paths",),
        {"nargs": "+", "metavar": "PATH", "help": "sources, then the store; or the store, then what to write"},
    ),
    (("--from",), {"dest": "form", "choices": FORMATS, "metavar": "FORMAT", "help": f"one of {', '.join(FORMATS)}"}),
    (("--to",), {"choices": FORMATS, "metavar": "FORMAT", "help": "what to export to"}),
    (("--dtype",), {"choices": ("float16", "float32"), "help": "precision of a new store (default: float32)"}),
    (
        ("--labels",),
        {"metavar": "F", "help": "predictions.tsv or x.label.tsv, where it does not lie beside the source"},
    ),
    (("--sizes",), {"metavar": "F", "help": "x.hw.tsv with height and width, where it does not lie beside the source"}),
    (("--width",), {"type": int, "metavar": "N", "help": "columns of a feature row, where it is not 2048 to 2055"}),
    (("--all-columns",), {"action": "store_true", "help": "keep class probabilities too"}),
    (("--rows",), {"type": int, "default": 5, "metavar": "N", "help": "how many `head` shows (default: 5)"}),
]
