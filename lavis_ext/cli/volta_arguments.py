"""The arguments of `lavis-ext volta`: upstream's of each script, and what they need to run without caffe."""

from __future__ import annotations

from typing import Any

from lavis_ext.cli.feature_arguments import DETECTOR

Argument = tuple[tuple[str, ...], dict[str, Any]]
STEPS = ("download", "extract", "merge", "convert", "captions")
DOWNLOAD = ("dry_run", "jobs", "mirror", "offline", "keep_archives", "no_unpack")
"""Flags of `lavis-ext prepare` that `download` takes too."""
_SPLITS = "train, valid or test; convert: trainval or test; captions: also test1k (default: valid; trainval)"
VOLTA: list[Argument] = [
    (("step",), {"choices": STEPS, "metavar": "STEP", "help": ", ".join(STEPS)}),
    (("--split",), {"metavar": "S", "help": _SPLITS}),
    (("--imgroot",), {"metavar": "DIR", "help": "extract: the folder that holds train2014, val2014, test2015"}),
    (("--datadir",), {"metavar": "DIR", "help": "extract, merge: the folder of the rows"}),
    (("--indir",), {"metavar": "DIR", "help": "convert: the folder of the merged rows"}),
    (("--outdir",), {"metavar": "DIR", "help": "convert, captions: the folder to write to"}),
    (("--infile",), {"metavar": "F", "help": "captions: dataset_coco.json"}),
    (("--ids",), {"metavar": "F", "help": "captions: the list of test1k, one number a line"}),
    (("--to",), {"choices": ("lmdb", "store"), "help": "convert: volta's LMDB (default), or a feature store"}),
    (("--dtype",), {"choices": ("float16", "float32"), "help": "convert: precision of the store (default: float16)"}),
    (("--needed-only",), {"action": "store_true", "help": "convert: leave out of the LMDB what volta never reads"}),
    *DETECTOR,
    (("--gpu",), {"metavar": "N", "help": "extract: the GPU, as --device cuda:N"}),
    (("--caffemodel",), {"metavar": "F", "help": "extract: as --weights"}),
    (("--out",), {"metavar": "F", "help": "extract: the file of rows, without .GROUP"}),
    (("--def",), {"dest": "prototxt", "metavar": "F", "help": "extract: caffe's; has no effect, as in volta's script"}),
    (("--cfg",), {"dest": "cfg_file", "metavar": "F", "help": "extract: caffe's; has no effect, as in volta's script"}),
    (("--set",), {"dest": "set_cfgs", "nargs": "+", "metavar": "K", "help": "extract: caffe's; has no effect"}),
    (("--dry-run",), {"action": "store_true", "help": "download: print the plan; move nothing"}),
    (("--jobs",), {"type": int, "metavar": "N", "help": "download: files at a time"}),
    (("--mirror",), {"metavar": "U", "help": "download: a mirror in place of LAVIS_EXT_MIRROR"}),
    (("--offline",), {"action": "store_true", "help": "download: open no connection"}),
    (("--keep-archives",), {"action": "store_true", "help": "download: keep zips after unpacking"}),
    (("--no-unpack",), {"action": "store_true", "help": "download: leave zips as they are; they are read as such"}),
]
_DETECTOR = {flags[0].lstrip("-").replace("-", "_") for flags, _ in DETECTOR}
IGNORED = ("prototxt", "cfg_file", "set_cfgs")
"""Flags of caffe that have no effect in upstream's script either: it sets its own."""
MEANT = {
    "download": set(DOWNLOAD),
    "extract": {
        *_DETECTOR - {"geometry"},
        "split",
        "imgroot",
        "datadir",
        "gpu",
        "caffemodel",
        "out",
        "prototxt",
        "cfg_file",
        "set_cfgs",
    },
    "merge": {"split", "datadir", "total_group", "min_boxes", "max_boxes", "tolerance", "imgroot"},
    "convert": {"split", "indir", "outdir", "to", "dtype", "needed_only", "min_boxes", "max_boxes"},
    "captions": {"split", "infile", "outdir", "ids"},
}
"""Which flags each step takes."""
