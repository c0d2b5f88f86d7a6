"""What volta's pipeline begins with: captions, ids of test1k, hard negatives and COCO's pictures, one copy of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lavis_ext.cards import Cards, load_cards
from lavis_ext.errors import NetworkError
from lavis_ext.features.volta.karpathy import build_karpathy
from lavis_ext.features.volta.names import FAMILY, FOLDERS
from lavis_ext.fetch.model import Progress
from lavis_ext.prepare import PrepareOptions, prepare
from lavis_ext.prepare.records import read_record
from lavis_ext.prepare.report import Report, worst

CAPTIONS = f"{FAMILY}/caption_datasets"
INSTEAD = "coco/karpathy_*"
OTHERS = (f"{FAMILY}/test1k_ids", f"{FAMILY}/hard_negative", *(f"coco/{folder}" for folder in FOLDERS.values()))
Told = tuple[list[str], list[dict[str, Any]], int]


def download(options: PrepareOptions, root: Path, progress: Progress) -> Told:
    """Fetch everything, put COCO's folder of pictures into volta's tree, and make what cannot be fetched.

    `dataset_coco.json` comes out of Karpathy's archive, else it is made from the caption files of family coco. Raises
    what `prepare` raises; the exit code is that of its worst failure, without the archive's where its file was made.
    """
    cards = load_cards()
    if options.dry_run:
        report = prepare([CAPTIONS, *OTHERS], options, progress, cards=cards)
        return [*report.plan.table().splitlines(), report.line()], [report.as_dict()], report.exit_code
    reports, lines = _captions(root, replace(options, no_unpack=False), cards, progress)
    reports.append(prepare(OTHERS, options, progress, cards=cards))
    lines += [line for report in reports for line in report.lines()] + link_pictures(root)
    failures = [error for report in reports for error in report.failures]
    return lines, [report.as_dict() for report in reports], worst(failures)


def _captions(root: Path, options: PrepareOptions, cards: Cards, progress: Progress) -> tuple[list[Report], list[str]]:
    """`dataset_coco.json`: kept, fetched, else made; the reports that count, and what there is to say."""
    path = root / FAMILY / "dataset_coco.json"
    if path.is_file() and read_record(root, cards.named_artifacts(CAPTIONS)[0]) is None:
        return [], [f"{path} is kept"]
    fetched, why = _fetched(options, cards, progress)
    if fetched and not fetched.failures:
        return [fetched], []
    instead = prepare([INSTEAD], options, progress, cards=cards)
    if instead.failures:
        return [*([fetched] if fetched else []), instead], []
    made = build_karpathy(root, path)
    return [instead], [f"{path} is made from coco's caption files, {made:,} images, because of {CAPTIONS}: {why}"]


def _fetched(options: PrepareOptions, cards: Cards, progress: Progress) -> tuple[Report | None, str]:
    """The report of the archive, None where a mirror lists nothing of it, and why there is nothing."""
    try:
        report = prepare([CAPTIONS], options, progress, cards=cards)
    except NetworkError as error:
        return None, error.problems[0].what
    return report, report.failures[0].problems[0].what if report.failures else ""


def link_pictures(root: Path) -> list[str]:
    """Let `mscoco/images` be `coco/images`, so that the pictures lie on the disk once; what is there is left alone."""
    place, pictures = root / FAMILY / "images", root / "coco" / "images"
    if place.exists() or place.is_symlink() or not pictures.is_dir():
        return []
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(Path("..", "coco", "images"), target_is_directory=True)
    except OSError as error:
        return [f"{place}: no link to {pictures} could be made ({error.strerror}); the steps find the pictures there"]
    return [f"{place} is a link to {pictures}"]
