"""`lavis-ext volta STEP`: the five steps of volta's COCO document, from parsed arguments to what they say."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lavis_ext.cards import load_cards
from lavis_ext.cli.extraction import detector_of, merge_action, tell_extracted, tell_faults, tell_missing
from lavis_ext.cli.volta_arguments import IGNORED, MEANT
from lavis_ext.errors import IntegrityError, PartialError, UsageError, nearest
from lavis_ext.features.extraction.account import Account
from lavis_ext.features.extraction.extract import Request, extract
from lavis_ext.features.extraction.pictures import find_pictures
from lavis_ext.features.imports import import_features, raise_for
from lavis_ext.features.row import ReadOptions
from lavis_ext.features.store import open_store
from lavis_ext.features.volta import names
from lavis_ext.features.volta.captions import SPLITS, extract_captions
from lavis_ext.features.volta.download import download
from lavis_ext.features.volta.karpathy import build_karpathy
from lavis_ext.features.volta.serialise import Serialised, serialise
from lavis_ext.fetch.model import Progress

Told = tuple[list[str], list[dict[str, Any]], int]
DETECTOR = "butd_r101_c4"
WEIGHTS = f"{names.FAMILY}/butd_k36"
CAPTION_SPLITS = (*SPLITS, "test1k")


def run_step(args: Namespace, root: Path, progress: Progress) -> Told:
    """Do the step that `args.step` names; raises UsageError for a flag of another one, and what the step raises."""
    refuse_others(args)
    return STEPS[args.step](args, root, progress)


def refuse_others(args: Namespace) -> None:
    """Raise UsageError for flags of another step."""
    every = {name for meant in MEANT.values() for name in meant}
    for name in sorted(every - MEANT[args.step]):
        if getattr(args, name, None) not in (None, False):
            steps = ", ".join(step for step, meant in MEANT.items() if name in meant)
            raise UsageError(f"--{name.replace('_', '-')}", f"is not for `{args.step}`", f"it is for {steps}")


def _extract(args: Namespace, root: Path, progress: Progress) -> Told:
    split = _split(args, names.FOLDERS, "valid")
    lines = [f"--{name}: caffe is not used, it has no effect" for name in IGNORED if getattr(args, name)]
    args.min_boxes, args.max_boxes = boxes = _boxes(args)
    out = Path(args.out) if args.out else _datadir(args, root) / names.rows_name(split, boxes)
    images = _images(args, root, split)
    _choose_detector(args, root)
    request = Request(
        [str(images)], out, root, "volta-tsv", None, args.group_id or 0, args.total_group or 1, args.batch_size or 4
    )
    done = extract(request, partial(detector_of, args, "volta-tsv"), progress)
    told, objects, code = tell_extracted(done, args.tolerance or 0.0)
    return [*lines, *told], objects, code


def _choose_detector(args: Namespace, root: Path) -> None:
    """Fill in upstream's detector, and its weights where they were prepared; raises UsageError where there are none."""
    args.detector = args.detector or DETECTOR
    args.weights = args.weights or args.caffemodel
    if args.detector == DETECTOR and not args.weights and not args.model_type:
        known = [root / artifact.storage for artifact in load_cards().named_artifacts(f"{names.FAMILY}/butd_*")]
        args.weights = next((str(path) for path in known if path.is_file()), None)
        if args.weights is None:
            way_out = f"run `lavis-ext prepare {WEIGHTS}`, or name a file with --weights"
            raise UsageError(DETECTOR, f"its weights are not in {known[0].parent}", way_out)
    args.device = args.device or (f"cuda:{args.gpu}" if args.gpu else None)


def _merge(args: Namespace, root: Path, progress: Progress) -> Told:
    split = _split(args, names.FOLDERS, "valid")
    whole = _datadir(args, root) / names.rows_name(split, _boxes(args))
    total = 1 if args.total_group is None else args.total_group
    parts = [whole.with_name(f"{whole.name}.{group}") for group in range(total)]
    if lost := [part for part in parts if not part.is_file()]:
        what = f"{len(lost)} of {total} parts are not there, the first is {lost[0].name}"
        way_out = f"run extract_coco_image.py --split {split} --group_id {lost[0].suffix[1:]} --total_group {total}"
        raise UsageError(str(whole.parent), what, f"{way_out}, or name the folder with --datadir")
    told = all(Account.read(part) is not None for part in parts)
    expected = [] if told else _expected(args, root, split)
    return merge_action([*parts, whole], args.tolerance or 0.0, progress, expected)


def _expected(args: Namespace, root: Path, split: str) -> list[str]:
    """The ids of the pictures, where these lie here: rows of volta's own script do not tell what there should be."""
    try:
        return [picture.image_id for picture in find_pictures([str(_images(args, root, split))], root)]
    except UsageError:
        return []


def _convert(args: Namespace, root: Path, progress: Progress) -> Told:
    split = _split(args, names.TOGETHER, "trainval")
    folder = Path(args.indir) if args.indir else names.feature_folder(root)
    sources = [names.find_rows(folder, one, _boxes(args)) for one in names.TOGETHER[split]]
    outdir = Path(args.outdir) if args.outdir else folder / "volta"
    if args.to == "store":
        return _to_store(args, sources, outdir / f"{split}_feat.store", progress)
    if args.dtype:
        raise UsageError("--dtype", "volta's LMDB holds float32", "give --to store as well")
    return _tell_serialised(serialise(sources, outdir / f"{split}_feat.lmdb", args.needed_only, progress))


def _to_store(args: Namespace, sources: list[Path], store: Path, progress: Progress) -> Told:
    dtype = args.dtype or (None if store.is_dir() else "float16")
    done = import_features(sources, store, "volta-tsv", dtype, ReadOptions(), progress)
    raise_for(done.faults, str(store))
    opened = open_store(store)
    line = f"{store}: {len(opened):,} images, {done.added:,} added now, {opened.about.dtype}"
    return [line], [{"store": str(store), "images": len(opened), "added": done.added}], 0


def _tell_serialised(done: Serialised) -> Told:
    lines = [f"{done.path}: a folder of {done.rows:,} images, {done.added:,} added now"]
    lines += [*tell_faults(done.faults), *tell_missing(done.missing)]
    faults = [{"file": str(p), "line": f.line, "image_id": f.image_id, "what": f.what} for p, f in done.faults]
    told = {"path": str(done.path), "images": done.rows, "added": done.added, "faults": faults}
    return lines, [{**told, "missing": done.missing}], IntegrityError.exit_code if done.faults else 0


def _captions(args: Namespace, root: Path, progress: Progress) -> Told:
    split = _split(args, CAPTION_SPLITS, "valid")
    home = root / names.FAMILY
    infile = Path(args.infile) if args.infile else home / "dataset_coco.json"
    lines = []
    if not infile.is_file() and infile == home / "dataset_coco.json":
        lines.append(f"{infile}: made from the caption files of family coco, {build_karpathy(root, infile):,} images")
    outdir = Path(args.outdir) if args.outdir else home / "annotations"
    done = extract_captions(infile, outdir, split, root, Path(args.ids) if args.ids else None)
    lines.append(f"{done.path}: {done.captions:,} captions of {done.images:,} images")
    if done.unknown:
        lines.append(f"{len(done.unknown):,} ids of the list are of no image: {', '.join(map(str, done.unknown[:9]))}")
    told = {"path": str(done.path), "images": done.images, "captions": done.captions, "unknown": done.unknown}
    return lines, [told], PartialError.exit_code if done.unknown else 0


def _split(args: Namespace, known: Any, default: str) -> str:
    split: str = args.split or default
    if split not in known:
        raise UsageError(f"--split {split}", f"is no split of `{args.step}`", nearest(split, known))
    return split


def _boxes(args: Namespace) -> tuple[int, int]:
    least, most = names.BOXES
    least = least if args.min_boxes is None else args.min_boxes
    return least, max(least, most) if args.max_boxes is None else args.max_boxes


def _datadir(args: Namespace, root: Path) -> Path:
    return Path(args.datadir) if args.datadir else names.feature_folder(root)


def _images(args: Namespace, root: Path, split: str) -> Path:
    """`train2014`, a folder or a zip, below `--imgroot`, else where mscoco or coco has it; raises UsageError."""
    folder = names.FOLDERS[split]
    places = [Path(args.imgroot)] if args.imgroot else [root / family / "images" for family in (names.FAMILY, "coco")]
    candidates = [place / name for place in places for name in (folder, f"{folder}.zip")]
    found = next((place for place in candidates if place.is_dir() or place.is_file()), None)
    if found is None:
        way_out = "run download_data.py, or name the folder that holds it with --imgroot"
        raise UsageError(str(places[0]), f"has no {folder}", way_out)
    return found


STEPS: dict[str, Callable[[Namespace, Path, Progress], Told]] = {
    "download": download,
    "extract": _extract,
    "merge": _merge,
    "convert": _convert,
    "captions": _captions,
}
