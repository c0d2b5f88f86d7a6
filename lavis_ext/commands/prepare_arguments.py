"""The arguments of `prepare`: what they are called, and the names and options that they amount to."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.errors import UsageError, nearest

if TYPE_CHECKING:
    from lavis_ext.prepare import PrepareOptions

Argument = tuple[tuple[str, ...], dict[str, Any]]


def names_of(args: Namespace) -> list[str]:
    """The names, of artifacts where a family is given; raises UsageError, which tells them, where there is none."""
    from lavis_ext.cards import load_cards

    if args.names:
        return [f"{args.family}/{name}" for name in args.names] if args.family else list(args.names)
    cards = load_cards()
    card = cards.families.get(args.family or "")
    known = list(card.artifacts) if card else [*cards.families, *cards.names()]
    raise UsageError(f"prepare {args.family or ''}".strip(), "names nothing to prepare", nearest("", known))


def options_of(args: Namespace, cache_root: Path) -> PrepareOptions:
    """The options of `lavis_ext.prepare`."""
    from lavis_ext.prepare import PrepareOptions

    return PrepareOptions(
        cache_root=cache_root,
        splits=args.split,
        max_samples=args.max_samples,
        dry_run=args.dry_run,
        jobs=args.jobs,
        keep_archives=args.keep_archives,
        no_unpack=args.no_unpack,
        offline=args.offline or None,
        mirror=args.mirror,
        source=args.source,
        metadata_only=args.metadata_only,
        distributor=args.distributor,
        processes=args.processes,
        include=args.include,
        exclude=args.exclude,
        listing=args.list,
    )


def load_tokens(args: Namespace) -> None:
    """Take Azure's tokens from where `--sas-file` says; raises AccessError, ConfigError."""
    if args.sas_file:
        from lavis_ext.fetch.sas import TOKENS

        TOKENS.load(args.sas_file)


ARGUMENTS: list[Argument] = [
    (("names",), {"nargs": "*", "metavar": "NAME", "help": "coco, coco_caption, or an artifact: vinvl/coco_ir"}),
    (("--split",), {"nargs": "+", "metavar": "S", "help": "only these splits"}),
    (
        ("--max-samples",),
        {"type": int, "metavar": "N", "help": "only the first N samples of each split, out of the remote archive"},
    ),
    (("--dry-run",), {"action": "store_true", "help": "print the plan; move nothing, write nothing"}),
    (("--jobs",), {"type": int, "metavar": "N", "help": "files at a time"}),
    (("--keep-archives",), {"action": "store_true", "help": "keep zips and tars after unpacking"}),
    (("--no-unpack",), {"action": "store_true", "help": "leave archives as they are; images are read out of them"}),
    (("--offline",), {"action": "store_true", "help": "open no connection; name what is missing"}),
    (("--mirror",), {"metavar": "U", "help": "a mirror's URL or folder, in place of LAVIS_EXT_MIRROR"}),
    (
        ("--source",),
        {
            "default": "",
            "metavar": "S",
            "help": "another place of a list's files: folder, URL, file of URLs, hf:datasets/…",
        },
    ),
    (("--metadata-only",), {"action": "store_true", "help": "fetch lists of images, but not the images"}),
    (
        ("--distributor",),
        {
            "choices": ("multiprocessing", "pyspark", "ray"),
            "default": "multiprocessing",
            "help": "for lists of the web",
        },
    ),
    (("--processes",), {"type": int, "default": 0, "metavar": "N", "help": "that download such lists"}),
    (("--family",), {"metavar": "F", "help": "NAMEs are artifacts of this family: F/NAME"}),
    (("--include",), {"nargs": "+", "default": [], "metavar": "P", "help": "only files that match (`features.*`)"}),
    (("--exclude",), {"nargs": "+", "default": [], "metavar": "P", "help": "no files that match"}),
    (("--list",), {"action": "store_true", "help": "ask the host what folders hold, and keep the answer"}),
    (("--sas-file",), {"metavar": "F", "help": "Azure tokens: a file that only you may read, or - for standard input"}),
]
