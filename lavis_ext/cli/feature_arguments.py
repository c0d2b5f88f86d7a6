"""The arguments of `lavis-ext features`, without anything that would have to be imported to print help."""

from __future__ import annotations

from typing import Any

Argument = tuple[tuple[str, ...], dict[str, Any]]
ACTIONS = ("import", "export", "extract", "index", "merge", "info", "verify", "head")
FORMATS = (
    *("oscar-tsv", "vinvl-tsv", "oscar-offsets", "butd-tsv", "lxmert-tsv", "volta-tsv"),
    *("volta-lmdb", "tensorpack-lmdb", "oscar-pt", "h5", "npy"),
)
DETECTOR: list[Argument] = [
    (("--detector",), {"metavar": "NAME", "help": "extract: the network that finds the regions"}),
    (("--model-type",), {"metavar": "T", "help": "extract: which of the detector's sizes, `tiny` for trying out"}),
    (("--weights",), {"metavar": "F", "help": "extract: the detector's weights, where not its own"}),
    (("--group_id", "--group-id"), {"type": int, "metavar": "G", "help": "extract: do only this group of the images"}),
    (("--total_group", "--total-group"), {"type": int, "metavar": "N", "help": "how many groups there are"}),
    (("--min-boxes",), {"type": int, "metavar": "N", "help": "extract: at least so many regions an image"}),
    (("--max-boxes",), {"type": int, "metavar": "N", "help": "extract: at most so many regions an image"}),
    (("--conf",), {"type": float, "metavar": "C", "help": "extract: least confidence of a region beyond --min-boxes"}),
    (("--geometry",), {"action": "store_true", "help": "extract: six columns of the box behind the features (Oscar)"}),
    (("--nms",), {"choices": ("class", "agnostic"), "help": "extract: boxes suppress each other by class or over all"}),
    (("--precision",), {"choices": ("float32", "bfloat16", "float16"), "help": "extract: of the network (float32)"}),
    (("--classes",), {"metavar": "F", "help": "extract: names of the detector's classes, which become labels"}),
    (("--attributes",), {"metavar": "F", "help": "extract: names of the detector's attributes"}),
    (("--seed",), {"type": int, "metavar": "N", "help": "extract: of weights that are drawn (`tiny`)"}),
    (("--batch-size",), {"type": int, "metavar": "N", "help": "extract: images at a time (default: 4)"}),
    (("--device",), {"metavar": "D", "help": "extract: cpu, cuda, cuda:1 (default: a GPU if there is one)"}),
    (("--tolerance",), {"type": float, "metavar": "S", "help": "share of images that may be missing (default: 0)"}),
]
FEATURES: list[Argument] = [
    (("action",), {"choices": ACTIONS, "metavar": "ACTION", "help": ", ".join(ACTIONS)}),
    (
        ("paths",),
        {"nargs": "+", "metavar": "PATH", "help": "sources, then the store; or the store, then what to write"},
    ),
    (("--from",), {"dest": "form", "choices": FORMATS, "metavar": "FORMAT", "help": f"one of {', '.join(FORMATS)}"}),
    (("--to",), {"choices": FORMATS, "metavar": "FORMAT", "help": "what to export to, what a TSV is to be"}),
    (("--dtype",), {"choices": ("float16", "float32"), "help": "precision of a new store (default: float32)"}),
    (
        ("--labels",),
        {"metavar": "F", "help": "predictions.tsv or x.label.tsv, where it does not lie beside the source"},
    ),
    (("--sizes",), {"metavar": "F", "help": "x.hw.tsv with height and width, where it does not lie beside the source"}),
    (("--width",), {"type": int, "metavar": "N", "help": "columns of a feature row, where it is not 2048 to 2055"}),
    (("--all-columns",), {"action": "store_true", "help": "keep class probabilities too"}),
    *DETECTOR,
    (("--rows",), {"type": int, "default": 5, "metavar": "N", "help": "how many `head` shows (default: 5)"}),
]
