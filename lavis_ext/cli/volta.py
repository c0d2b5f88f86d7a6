"""The verb `volta`: the five steps of volta's COCO document, with the flags of its scripts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lavis_ext.cli.features import Extraction, extract_regions, fault_lines, fault_objects, merge_tsvs, missing_lines
from lavis_ext.cli.verb import Answer, Options, Quiet, Verb, cache_root_of, examples, fill, flag, progress_of
from lavis_ext.common.errors import IntegrityError, PartialError, UsageError, nearest
from lavis_ext.oscar.volta import coco as names

if TYPE_CHECKING:
    from lavis_ext.fetch import Progress

DETECTOR = "butd_r101_c4"
WEIGHTS = f"{names.FAMILY}/butd_k36"


CAFFE = "caffe's; has no effect, as in volta's script"


@dataclass(frozen=True, kw_only=True)
class Download(Quiet, Options):
    """Flags of `volta download`."""

    dry_run: bool = flag(False, help="print the plan; move nothing")
    jobs: int | None = flag(None, metavar="N", help="files at a time")
    mirror: str | None = flag(None, metavar="U", help="a mirror in place of LAVIS_EXT_MIRROR")
    offline: bool = flag(False, help="open no connection")
    keep_archives: bool = flag(False, help="keep zips after unpacking")
    no_unpack: bool = flag(False, help="leave zips as they are; they are read as such")


@dataclass(frozen=True, kw_only=True)
class Extract(Extraction, Quiet, Options):
    """Flags of `volta extract`: upstream's, and what they need to run without caffe."""

    split: str | None = flag(None, metavar="S", help="train, valid or test (default: valid)")
    imgroot: Path | None = flag(None, metavar="DIR", help="the folder that holds train2014, val2014, test2015")
    datadir: Path | None = flag(None, metavar="DIR", help="the folder of the rows")
    gpu: str | None = flag(None, metavar="N", help="the GPU, as --device cuda:N")
    caffemodel: str | None = flag(None, metavar="F", help="as --weights")
    out: Path | None = flag(None, metavar="F", help="the file of rows, without .GROUP")
    prototxt: str | None = flag(None, "--def", metavar="F", help=CAFFE)
    cfg_file: str | None = flag(None, "--cfg", metavar="F", help=CAFFE)
    set_cfgs: tuple[str, ...] | None = flag(None, "--set", nargs="+", metavar="K", help=CAFFE)


@dataclass(frozen=True, kw_only=True)
class Merge(Quiet, Options):
    """Flags of `volta merge`."""

    split: str | None = flag(None, metavar="S", help="train, valid or test (default: valid)")
    imgroot: Path | None = flag(None, metavar="DIR", help="the folder that holds train2014, val2014, test2015")
    datadir: Path | None = flag(None, metavar="DIR", help="the folder of the rows")
    total_group: int | None = flag(
        None, "--total_group", "--total-group", metavar="N", help="how many groups there are"
    )
    min_boxes: int | None = flag(None, metavar="N", help="at least so many regions an image")
    max_boxes: int | None = flag(None, metavar="N", help="at most so many regions an image")
    tolerance: float | None = flag(None, metavar="S", help="share of images that may be missing (default: 0)")


@dataclass(frozen=True, kw_only=True)
class Convert(Quiet, Options):
    """Flags of `volta convert`."""

    split: str | None = flag(None, metavar="S", help="trainval or test (default: trainval)")
    indir: Path | None = flag(None, metavar="DIR", help="the folder of the merged rows")
    outdir: Path | None = flag(None, metavar="DIR", help="the folder to write to")
    to: Literal["lmdb", "store"] | None = flag(None, help="volta's LMDB (default), or a feature store")
    dtype: Literal["float16", "float32"] | None = flag(None, help="precision of the store (default: float16)")
    needed_only: bool = flag(False, help="leave out of the LMDB what volta never reads")
    min_boxes: int | None = flag(None, metavar="N", help="at least so many regions an image")
    max_boxes: int | None = flag(None, metavar="N", help="at most so many regions an image")


@dataclass(frozen=True, kw_only=True)
class Captions(Quiet, Options):
    """Flags of `volta captions`."""

    split: str | None = flag(None, metavar="S", help="train, valid, test or test1k (default: valid)")
    infile: Path | None = flag(None, metavar="F", help="dataset_coco.json")
    outdir: Path | None = flag(None, metavar="DIR", help="the folder to write to")
    ids: Path | None = flag(None, metavar="F", help="the list of test1k, one number a line")


IGNORED = ("prototxt", "cfg_file", "set_cfgs")
"""Flags of caffe that have no effect in upstream's script either: it sets its own."""


@examples("volta download --dry-run")
def download(args: Download) -> Answer:
    """Annotations and pictures of COCO, where volta's scripts look for them."""
    from lavis_ext.oscar.volta.coco import download as fetch
    from lavis_ext.prepare import PrepareOptions

    root = cache_root_of(args)
    options = fill(PrepareOptions, args, cache_root=root, offline=args.offline or None)
    with progress_of(args) as progress:
        return Answer(*fetch(options, root, progress))


@examples("volta extract --split valid --gpu 0 --group_id 0 --total_group 8")
def extract(args: Extract) -> Answer:
    """The regions of the pictures of a split, as volta's script writes them."""
    if args.geometry:
        raise UsageError("--geometry", "is not for `volta extract`", "it is for `lavis-ext features extract`")
    root, split = cache_root_of(args), _split("extract", args.split or "valid", names.FOLDERS)
    least, most = boxes = _boxes(args)
    out = args.out or _datadir(args, root) / names.rows_name(split, boxes)
    images = _images(args, root, split)
    meant = replace(
        args,
        min_boxes=least,
        max_boxes=most,
        group_id=args.group_id or 0,
        detector=args.detector or DETECTOR,
        weights=args.weights or args.caffemodel or _weights(args, root),
        device=args.device or (f"cuda:{args.gpu}" if args.gpu else None),
    )
    with progress_of(args) as progress:
        answer = extract_regions(meant, [str(images)], out, root, "volta-tsv", None, progress)
    lines = [f"--{name}: caffe is not used, it has no effect" for name in IGNORED if getattr(args, name)]
    return replace(answer, lines=[*lines, *answer.lines])


def _weights(args: Extract, root: Path) -> str | None:
    """Those of upstream's detector, where they were prepared; raises UsageError where there are none."""
    from lavis_ext.common.config.cards import load_cards

    if args.model_type or args.detector not in (None, DETECTOR):
        return None
    known = [root / artifact.storage for artifact in load_cards().named_artifacts(f"{names.FAMILY}/butd_*")]
    found = next((str(path) for path in known if path.is_file()), None)
    if found is None:
        way_out = f"run `lavis-ext prepare {WEIGHTS}`, or name a file with --weights"
        raise UsageError(DETECTOR, f"its weights are not in {known[0].parent}", way_out)
    return found


@examples("volta merge --split valid --total_group 8")
def merge(args: Merge) -> Answer:
    """The parts of all groups as one file of rows."""
    from lavis_ext.features.extraction.rows import ExtractionLog

    root, split = cache_root_of(args), _split("merge", args.split or "valid", names.FOLDERS)
    whole = _datadir(args, root) / names.rows_name(split, _boxes(args))
    total = 1 if args.total_group is None else args.total_group
    parts = [whole.with_name(f"{whole.name}.{group}") for group in range(total)]
    if lost := [part for part in parts if not part.is_file()]:
        what = f"{len(lost)} of {total} parts are not there, the first is {lost[0].name}"
        way_out = f"run extract_coco_image.py --split {split} --group_id {lost[0].suffix[1:]} --total_group {total}"
        raise UsageError(str(whole.parent), what, f"{way_out}, or name the folder with --datadir")
    accounted = all(ExtractionLog.read(part) is not None for part in parts)
    expected = [] if accounted else _expected(args, root, split)
    with progress_of(args) as progress:
        answer = merge_tsvs([*parts, whole], args.tolerance or 0.0, progress, expected)
    line = names.link_rows(whole, split) if whole.is_file() else ""
    return replace(answer, lines=[*answer.lines, *([line] if line else [])])


def _expected(args: Merge, root: Path, split: str) -> list[str]:
    """The ids of the pictures, if these are here: rows of volta's own script do not say which images were asked for."""
    from lavis_ext.features.extraction.extract import find_pictures

    try:
        return [picture.image_id for picture in find_pictures([str(_images(args, root, split))], root)]
    except UsageError:
        return []


@examples("volta convert --split trainval --to store")
def convert(args: Convert) -> Answer:
    """Rows as volta's LMDB, or as a feature store."""
    from lavis_ext.oscar.volta.serialise import serialise

    split = _split("convert", args.split or "trainval", names.TOGETHER)
    folder = args.indir or names.feature_folder(cache_root_of(args))
    sources = [names.find_rows(folder, one, _boxes(args)) for one in names.TOGETHER[split]]
    outdir = args.outdir or folder / "volta"
    if args.dtype and args.to != "store":
        raise UsageError("--dtype", "volta's LMDB holds float32", "give --to store as well")
    with progress_of(args) as progress:
        if args.to == "store":
            return _to_store(args, sources, outdir / f"{split}_feat.store", progress)
        done = serialise(sources, outdir / f"{split}_feat.lmdb", args.needed_only, progress)
    lines = [f"{done.path}: a folder of {done.rows:,} images, {done.added:,} added now"]
    lines += [*fault_lines(done.faults), *missing_lines(done.missing)]
    found = {"path": str(done.path), "images": done.rows, "added": done.added, "faults": fault_objects(done.faults)}
    return Answer(lines, [{**found, "missing": done.missing}], IntegrityError.exit_code if done.faults else 0)


def _to_store(args: Convert, sources: list[Path], store: Path, progress: Progress) -> Answer:
    from lavis_ext.features.imports import import_features, raise_for
    from lavis_ext.features.store import ReadOptions, open_store

    dtype = args.dtype or (None if store.is_dir() else "float16")
    done = import_features(sources, store, "volta-tsv", dtype, ReadOptions(), progress)
    raise_for(done.faults, str(store))
    opened = open_store(store)
    line = f"{store}: {len(opened):,} images, {done.added:,} added now, {opened.about.dtype}"
    return Answer([line], [{"store": str(store), "images": len(opened), "added": done.added}])


@examples("volta captions --split test1k --ids ids.txt")
def captions(args: Captions) -> Answer:
    """The captions of a split of Karpathy's list."""
    from lavis_ext.oscar.volta.coco import SPLITS, build_karpathy, extract_captions

    root, split = cache_root_of(args), _split("captions", args.split or "valid", (*SPLITS, "test1k"))
    home = root / names.FAMILY
    infile = args.infile or home / "dataset_coco.json"
    lines = []
    if not infile.is_file() and infile == home / "dataset_coco.json":
        lines.append(f"{infile}: made from the caption files of family coco, {build_karpathy(root, infile):,} images")
    done = extract_captions(infile, args.outdir or home / "annotations", split, root, args.ids)
    lines.append(f"{done.path}: {done.captions:,} captions of {done.images:,} images")
    if done.unknown:
        lines.append(f"{len(done.unknown):,} ids of the list are of no image: {', '.join(map(str, done.unknown[:9]))}")
    found = {"path": str(done.path), "images": done.images, "captions": done.captions, "unknown": done.unknown}
    return Answer(lines, [found], PartialError.exit_code if done.unknown else 0)


def _split(step: str, split: str, known: Any) -> str:
    if split not in known:
        raise UsageError(f"--split {split}", f"is no split of `{step}`", nearest(split, known))
    return split


def _boxes(args: Extract | Merge | Convert) -> tuple[int, int]:
    least, most = names.BOXES
    least = least if args.min_boxes is None else args.min_boxes
    return least, max(least, most) if args.max_boxes is None else args.max_boxes


def _datadir(args: Extract | Merge, root: Path) -> Path:
    return args.datadir or names.feature_folder(root)


def _images(args: Extract | Merge, root: Path, split: str) -> Path:
    """`train2014`, a folder or a zip, below `--imgroot`, else where mscoco or coco has it; raises UsageError."""
    folder = names.FOLDERS[split]
    places = [args.imgroot] if args.imgroot else [root / family / "images" for family in (names.FAMILY, "coco")]
    candidates = [place / name for place in places for name in (folder, f"{folder}.zip")]
    found = next((place for place in candidates if place.is_dir() or place.is_file()), None)
    if found is None:
        way_out = "run download_data.py, or name the folder that holds it with --imgroot"
        raise UsageError(str(places[0]), f"has no {folder}", way_out)
    return found


STEPS: dict[str, Verb] = {
    "download": Verb("COCO's annotations and pictures", "lavis_ext.cli.volta:download"),
    "extract": Verb("regions of the pictures of a split", "lavis_ext.cli.volta:extract"),
    "merge": Verb("the rows of all groups as one file", "lavis_ext.cli.volta:merge"),
    "convert": Verb("rows as volta's LMDB, or as a store", "lavis_ext.cli.volta:convert"),
    "captions": Verb("the captions of a split", "lavis_ext.cli.volta:captions"),
}
