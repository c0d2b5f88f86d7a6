"""The verb `features`: convert, join, index, check and extract region features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lavis_ext.cli.verb import REQUIRED, Answer, Quiet, Verb, examples, fill, flag, progress_of
from lavis_ext.common.errors import IntegrityError, PartialError, UsageError, nearest
from lavis_ext.common.wording import human

if TYPE_CHECKING:
    from lavis_ext.features.detectors import Detector
    from lavis_ext.features.store import Fault
    from lavis_ext.fetch import Progress

SHOWN = 20
FORMATS = (
    *("oscar-tsv", "vinvl-tsv", "oscar-offsets", "butd-tsv", "lxmert-tsv", "volta-tsv"),
    *("volta-lmdb", "tensorpack-lmdb", "oscar-pt", "h5", "npy"),
)


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Flags of extraction; those that `DetectorOptions` has too fill it, None leaves the detector's own setting."""

    detector: str | None = flag(None, metavar="NAME", help="the network that finds the regions")
    model_type: str | None = flag(None, metavar="T", help="which of the detector's sizes, `tiny` for trying out")
    weights: str | None = flag(None, metavar="F", help="the detector's weights, where not its own")
    group_id: int | None = flag(None, "--group_id", "--group-id", metavar="G", help="do only this group of the images")
    total_group: int | None = flag(
        None, "--total_group", "--total-group", metavar="N", help="how many groups there are"
    )
    min_boxes: int | None = flag(None, metavar="N", help="at least so many regions an image")
    max_boxes: int | None = flag(None, metavar="N", help="at most so many regions an image")
    conf: float | None = flag(None, metavar="C", help="least confidence of a region beyond --min-boxes")
    geometry: bool = flag(False, help="six columns of the box behind the features (Oscar)")
    nms: Literal["class", "agnostic"] | None = flag(None, help="boxes suppress each other by class or over all")
    precision: Literal["float32", "bfloat16", "float16"] | None = flag(None, help="of the network (float32)")
    classes: Path | None = flag(None, metavar="F", help="names of the detector's classes, which become labels")
    attributes: Path | None = flag(None, metavar="F", help="names of the detector's attributes")
    seed: int | None = flag(None, metavar="N", help="of weights that are drawn (`tiny`)")
    batch_size: int | None = flag(None, metavar="N", help="images at a time (default: 4)")
    device: str | None = flag(None, metavar="D", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    tolerance: float | None = flag(None, metavar="S", help="share of images that may be missing (default: 0)")


@dataclass(frozen=True, kw_only=True)
class Import(Quiet):
    """Flags of `features import`."""

    paths: tuple[str, ...] = flag(REQUIRED, positional=True, nargs="+", metavar="PATH", help="sources, then the store")
    form: str | None = flag(None, "--from", choices=FORMATS, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")
    dtype: Literal["float16", "float32"] | None = flag(None, help="precision of a new store (default: float32)")
    labels: Path | None = flag(
        None, metavar="F", help="predictions.tsv or x.label.tsv, where it does not lie beside the source"
    )
    sizes: Path | None = flag(
        None, metavar="F", help="x.hw.tsv with height and width, where it does not lie beside the source"
    )
    width: int | None = flag(None, metavar="N", help="columns of a feature row, where it is not 2048 to 2055")
    all_columns: bool = flag(False, help="keep class probabilities too")


@examples(
    "features import predictions.tsv oscar.store",
    "features import train2014_obj36.tsv lxmert.store --from lxmert-tsv --dtype float16",
)
def import_(args: Import) -> Answer:
    """Region features of another form into a store; raises IntegrityError for rows that were left out."""
    from lavis_ext.features.imports import import_features, raise_for
    from lavis_ext.features.store import ReadOptions, open_store
    from lavis_ext.features.tools import info

    *sources, store = several(args.paths, "import", "sources, then the store")
    options = fill(ReadOptions, args, columns=args.width or 0, keep_all=args.all_columns)
    with progress_of(args) as progress:
        done = import_features(sources, store, args.form, args.dtype, options, progress)
    opened = open_store(store)
    lines = [f"{store}: {len(opened)} images, {done.added} added now, {opened.about.dtype}, {opened.columns} columns"]
    if done.repeated:
        lines.append(f"{done.repeated} rows repeat an image with the same features and were left out")
    wide = any(s["format"] in ("volta-tsv", "volta-lmdb", "tensorpack-lmdb", "h5", "npy") for s in opened.about.sources)
    if wide and not args.all_columns:
        lines.append("class probabilities (cls_prob, attrs, classes) are not kept; --all-columns keeps them")
    raise_for(done.faults, str(store))
    return Answer(lines, [{**info(opened), "added": done.added, "repeated": done.repeated}])


@dataclass(frozen=True, kw_only=True)
class Export(Quiet):
    """Flags of `features export`."""

    store: Path = flag(REQUIRED, positional=True, metavar="STORE")
    destination: Path = flag(REQUIRED, positional=True, metavar="DST")
    to: str = flag(REQUIRED, choices=FORMATS, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")


@examples("features export oscar.store features.tsv --to vinvl-tsv")
def export(args: Export) -> Answer:
    """A store as a file of another form."""
    from lavis_ext.features.formats import format_of
    from lavis_ext.features.store import open_store
    from lavis_ext.features.tools import export_store

    opened = open_store(args.store)
    remarks = export_store(opened, args.destination, format_of(args.to).name)
    row = {"destination": str(args.destination), "images": len(opened), "format": args.to}
    return Answer([f"{args.destination}: {len(opened)} images as {args.to}", *remarks], [row])


@dataclass(frozen=True, kw_only=True)
class Extract(Extraction, Quiet):
    """Flags of `features extract`."""

    paths: tuple[str, ...] = flag(
        REQUIRED,
        positional=True,
        nargs="+",
        metavar="PATH",
        help="folders, archives or pictures, then STORE or FILE.tsv",
    )
    to: str | None = flag(None, choices=FORMATS, metavar="FORMAT", help="what a TSV is to be (default: volta-tsv)")
    dtype: Literal["float16", "float32"] | None = flag(None, help="precision of a new store (default: float32)")


@examples(
    "features extract photos/ regions.store --detector butd",
    "features extract photos/ rows.tsv --detector butd --group_id 0 --total_group 4",
)
def extract(args: Extract) -> Answer:
    """Exit code 8 where more is missing than `--tolerance` allows; UsageError for a format that is not written."""
    from lavis_ext.common.config.resolve import cache_root
    from lavis_ext.features.extraction.extract import STORE
    from lavis_ext.features.formats.tsv import COLUMNS

    destination = several(args.paths, "extract", "pictures, then the store or the TSV")[-1]
    form = args.to or ("volta-tsv" if destination.suffix == ".tsv" else STORE)
    if form not in (STORE, *COLUMNS):
        raise UsageError(f"--to {form}", "is not what extraction writes", nearest(form, COLUMNS))
    with progress_of(args) as progress:
        return extract_regions(args, args.paths[:-1], destination, cache_root(), form, args.dtype, progress)


@dataclass(frozen=True, kw_only=True)
class Index(Quiet):
    """Flags of `features index`."""

    path: Path = flag(REQUIRED, positional=True, metavar="STORE|FILE.tsv")


@examples("features index oscar.store", "features index predictions.tsv")
def index(args: Index) -> Answer:
    """The index of a store, or the side files of a TSV, anew."""
    from lavis_ext.features.tools import index as renew

    rows, written = renew(args.path)
    if rows is not None:
        return Answer([f"{args.path}: index of {rows} images written"], [{"store": str(args.path), "images": rows}])
    lines = [f"written: {path}" for path in written] or [f"{args.path}: its side files are there and fit"]
    return Answer(lines, [{"written": [str(path) for path in written]}])


@dataclass(frozen=True, kw_only=True)
class Merge(Quiet):
    """Flags of `features merge`."""

    paths: tuple[str, ...] = flag(
        REQUIRED,
        positional=True,
        nargs="+",
        metavar="PATH",
        help="stores, then the store of all; or TSVs, then the whole",
    )
    tolerance: float | None = flag(None, metavar="S", help="share of images that may be missing (default: 0)")


@examples("features merge train.store val.store both.store", "features merge rows.tsv.0 rows.tsv.1 rows.tsv")
def merge(args: Merge) -> Answer:
    """Several stores, or the parts of a TSV, as one."""
    from lavis_ext.features.imports import raise_for
    from lavis_ext.features.store import open_store
    from lavis_ext.features.tools import merge_stores

    paths = several(args.paths, "merge", "the parts, then the whole")
    if paths[0].is_file():
        with progress_of(args) as progress:
            return merge_tsvs(paths, args.tolerance or 0.0, progress)
    *stores, destination = paths
    _, faults = merge_stores(stores, destination)
    raise_for(faults, str(destination))
    total = len(open_store(destination))
    line = f"{destination}: {total} images of {len(stores)} stores"
    return Answer([line], [{"store": str(destination), "images": total}])


@dataclass(frozen=True, kw_only=True)
class Info(Quiet):
    """Flags of `features info`."""

    store: Path = flag(REQUIRED, positional=True, metavar="STORE")


@examples("features info oscar.store")
def info(args: Info) -> Answer:
    """What a store holds, and where it is from."""
    from lavis_ext.features.store import open_store
    from lavis_ext.features.tools import info as facts

    found = facts(open_store(args.store))
    shown = {**found, "bytes": human(found["bytes"]), "sources": len(found["sources"])}
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in shown.items()]
    lines += [f"  {source['format']}: {source['path']}" for source in found["sources"]]
    return Answer(lines, [found])


@dataclass(frozen=True, kw_only=True)
class Verify(Quiet):
    """Flags of `features verify`."""

    stores: tuple[str, ...] = flag(REQUIRED, positional=True, nargs="+", metavar="STORE")


@examples("features verify oscar.store")
def verify(args: Verify) -> Answer:
    """Every record of some stores against its checksum; raises IntegrityError."""
    from lavis_ext.features.store import open_store
    from lavis_ext.features.tools import raise_damaged
    from lavis_ext.features.tools import verify as damaged

    answer = Answer()
    for path in map(Path, args.stores):
        store = open_store(path)
        raise_damaged(damaged(store), store)
        answer.lines.append(f"{path}: {len(store)} records, every checksum matches")
        answer.objects.append({"store": str(path), "images": len(store), "damaged": 0})
    return answer


@dataclass(frozen=True, kw_only=True)
class Head(Quiet):
    """Flags of `features head`."""

    store: Path = flag(REQUIRED, positional=True, metavar="STORE")
    rows: int = flag(5, metavar="N", help="how many (default: 5)")


@examples("features head oscar.store --rows 3")
def head(args: Head) -> Answer:
    """The first images of a store."""
    from lavis_ext.features.store import open_store
    from lavis_ext.features.tools import head as first

    rows = first(open_store(args.store), args.rows)
    lines = [
        f"{r['image_id']}: {r['boxes']} boxes, {r['height']}x{r['width']}, first {r['first_box']} {r['box_unit']}, "
        f"mean {r['mean']}, {', '.join(r['labels']) or 'no labels'}"
        for r in rows
    ]
    return Answer(lines, rows)


ACTIONS: dict[str, Verb] = {
    "import": Verb("features of another form into a store", "lavis_ext.cli.features:import_"),
    "export": Verb("a store as a file of another form", "lavis_ext.cli.features:export"),
    "extract": Verb("the regions of pictures, by a detector", "lavis_ext.cli.features:extract"),
    "index": Verb("the index of a store, the side files of a TSV", "lavis_ext.cli.features:index"),
    "merge": Verb("several stores, or parts of a TSV, as one", "lavis_ext.cli.features:merge"),
    "info": Verb("what a store holds", "lavis_ext.cli.features:info"),
    "verify": Verb("every record against its checksum", "lavis_ext.cli.features:verify"),
    "head": Verb("the first images of a store", "lavis_ext.cli.features:head"),
}


def several(paths: Sequence[str], action: str, what: str) -> list[Path]:
    """At least two paths; raises UsageError."""
    if len(paths) < 2:
        raise UsageError(f"lavis-ext features {action}", f"got {len(paths)} path", f"name {what}")
    return [Path(path) for path in paths]


def extract_regions(
    args: Extraction, sources: Sequence[str], out: Path, root: Path, form: str, dtype: str | None, progress: Progress
) -> Answer:
    """The regions of pictures, by the detector that the flags name, in the `form` of a TSV or a store at `out`."""
    from lavis_ext.features.extraction.extract import ExtractionRequest, extract

    request = ExtractionRequest(
        sources, out, root, form, dtype, args.group_id, args.total_group or 1, args.batch_size or 4
    )
    done = extract(request, partial(detector_of, args, form), progress)
    line = f"{done.path}: {done.present:,} of {done.images:,} images, {done.added:,} extracted now"
    code = _code(done.missing, done.images, args.tolerance or 0.0)
    return Answer([line, *missing_lines(done.missing)], [done.as_dict()], code)


def detector_of(args: Extraction, form: str) -> Detector:
    """The detector that the flags name, its weights loaded; raises UsageError, RegistryError, ConfigError."""
    import torch

    from lavis_ext.features.detectors import DetectorOptions, build_detector

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = fill(DetectorOptions, args, device=device, probabilities=form == "volta-tsv")
    return build_detector(detector_name(args.detector or "", args.model_type or ""), options)


def detector_name(name: str, model_type: str) -> str:
    """The registered name: `butd` is the one that begins so, `butd` of the type `tiny` is `butd_tiny`, else `tiny`.

    Raises UsageError with the nearest names.
    """
    from lavis_ext.common.registry import detectors

    known = detectors.names()
    if model_type:
        found = [one for one in (f"{name}_{model_type}", model_type) if one in known][:1]
    else:
        found = [name] if name in known else [one for one in known if name and one.startswith(f"{name}_")]
    if len(found) != 1:
        where = f"--detector {name}" + (f" --model-type {model_type}" if model_type else "")
        raise UsageError(where, "names no detector" if name else "is needed", nearest(model_type or name, known))
    return found[0]


def merge_tsvs(paths: Sequence[Path], tolerance: float, progress: Progress, expected: Sequence[str] = ()) -> Answer:
    """Exit code 5 where rows are damaged or differ, 8 where more of the images are missing than may be."""
    from lavis_ext.features.extraction.merging import merge_rows

    *parts, destination = paths
    done = merge_rows(parts, destination, expected, progress)
    lines = [f"{done.path}: {done.rows:,} images, {done.added:,} added now, {done.repeated:,} repeated rows left out"]
    if done.differing:
        shown = ", ".join(done.differing[:SHOWN])
        lines.append(f"{len(done.differing):,} images occur twice with other numbers, the first counts: {shown}")
    lines += [*fault_lines(done.faults), *missing_lines(done.missing)]
    if not done.accounted:
        lines.append("nothing says which images there should be; rows of `lavis-ext features extract` do")
    code = _code(done.missing, done.rows + len(done.missing), tolerance)
    if done.faults or done.differing:
        code = IntegrityError.exit_code
    counts = {"rows": done.rows, "added": done.added, "repeated": done.repeated, "differing": done.differing}
    faults = fault_objects(done.faults)
    found = {"path": str(done.path), **counts, "faults": faults, "missing": done.missing, "accounted": done.accounted}
    return Answer(lines, [found], code)


def missing_lines(missing: Mapping[str, str]) -> list[str]:
    """How many images are missing, and the first of them with the reason."""
    lines = [f"missing: {len(missing):,}"] if missing else []
    lines += [f"  {name}: {why}" for name, why in list(missing.items())[:SHOWN]]
    return lines + ([f"  and {len(missing) - SHOWN:,} more; --json lists all"] if len(missing) > SHOWN else [])


def fault_lines(faults: Sequence[tuple[Path, Fault]]) -> list[str]:
    """Rows that were left out, by file, line and id."""
    lines = [f"  {path.name}, line {f.line}, image {f.image_id!r}: {f.what}" for path, f in faults[:SHOWN]]
    return [f"rows left out: {len(faults):,}", *lines] if faults else []


def fault_objects(faults: Sequence[tuple[Path, Fault]]) -> list[dict[str, Any]]:
    """The same for a program."""
    return [{"file": str(path), "line": f.line, "image_id": f.image_id, "what": f.what} for path, f in faults]


def _code(missing: Mapping[str, str], images: int, tolerance: float) -> int:
    return PartialError.exit_code if missing and len(missing) > tolerance * images else 0
