"""The verb `features`: convert, join, index, check and extract region features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lavis_ext.cli.verb import REQUIRED, Answer, Quiet, fill, flag, progress_of
from lavis_ext.common.errors import IntegrityError, PartialError, UsageError, nearest
from lavis_ext.common.wording import human

if TYPE_CHECKING:
    from lavis_ext.features.detectors import Detector
    from lavis_ext.features.store import Fault
    from lavis_ext.fetch import Progress

SHOWN = 20
USES = {
    "import": "features import SRC… STORE [--from FORMAT] [--dtype float16|float32]",
    "export": "features export STORE DST --to FORMAT",
    "extract": "features extract IMAGES… STORE|FILE.tsv --detector NAME [--group_id G --total_group N]",
    "index": "features index STORE, or features index FILE.tsv",
    "merge": "features merge STORE… STORE, or features merge PART.tsv… WHOLE.tsv",
    "info": "features info STORE",
    "verify": "features verify STORE…",
    "head": "features head STORE [--rows N]",
}
FORMATS = (
    *("oscar-tsv", "vinvl-tsv", "oscar-offsets", "butd-tsv", "lxmert-tsv", "volta-tsv"),
    *("volta-lmdb", "tensorpack-lmdb", "oscar-pt", "h5", "npy"),
)


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Flags of extraction; those that `DetectorOptions` has too fill it, None leaves the detector's own setting."""

    detector: str | None = flag(None, metavar="NAME", help="extract: the network that finds the regions")
    model_type: str | None = flag(
        None, metavar="T", help="extract: which of the detector's sizes, `tiny` for trying out"
    )
    weights: str | None = flag(None, metavar="F", help="extract: the detector's weights, where not its own")
    group_id: int | None = flag(
        None, "--group_id", "--group-id", metavar="G", help="extract: do only this group of the images"
    )
    total_group: int | None = flag(
        None, "--total_group", "--total-group", metavar="N", help="how many groups there are"
    )
    min_boxes: int | None = flag(None, metavar="N", help="extract: at least so many regions an image")
    max_boxes: int | None = flag(None, metavar="N", help="extract: at most so many regions an image")
    conf: float | None = flag(None, metavar="C", help="extract: least confidence of a region beyond --min-boxes")
    geometry: bool = flag(False, help="extract: six columns of the box behind the features (Oscar)")
    nms: Literal["class", "agnostic"] | None = flag(
        None, help="extract: boxes suppress each other by class or over all"
    )
    precision: Literal["float32", "bfloat16", "float16"] | None = flag(None, help="extract: of the network (float32)")
    classes: Path | None = flag(None, metavar="F", help="extract: names of the detector's classes, which become labels")
    attributes: Path | None = flag(None, metavar="F", help="extract: names of the detector's attributes")
    seed: int | None = flag(None, metavar="N", help="extract: of weights that are drawn (`tiny`)")
    batch_size: int | None = flag(None, metavar="N", help="extract: images at a time (default: 4)")
    device: str | None = flag(None, metavar="D", help="extract: cpu, cuda, cuda:1 (default: a GPU if there is one)")
    tolerance: float | None = flag(None, metavar="S", help="share of images that may be missing (default: 0)")


@dataclass(frozen=True, kw_only=True)
class Features(Extraction, Quiet):
    """Flags of `features`."""

    action: str = flag(REQUIRED, positional=True, choices=tuple(USES), metavar="ACTION", help=", ".join(USES))
    paths: tuple[str, ...] = flag(
        REQUIRED,
        positional=True,
        nargs="+",
        metavar="PATH",
        help="sources, then the store; or the store, then what to write",
    )
    form: str | None = flag(None, "--from", choices=FORMATS, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")
    to: str | None = flag(None, choices=FORMATS, metavar="FORMAT", help="what to export to, what a TSV is to be")
    dtype: Literal["float16", "float32"] | None = flag(None, help="precision of a new store (default: float32)")
    labels: Path | None = flag(
        None, metavar="F", help="predictions.tsv or x.label.tsv, where it does not lie beside the source"
    )
    sizes: Path | None = flag(
        None, metavar="F", help="x.hw.tsv with height and width, where it does not lie beside the source"
    )
    width: int | None = flag(None, metavar="N", help="columns of a feature row, where it is not 2048 to 2055")
    all_columns: bool = flag(False, help="keep class probabilities too")
    rows: int = flag(5, metavar="N", help="how many `head` shows (default: 5)")


def features(args: Features) -> Answer:
    """Convert, join, index, check and extract region features.

    Raises what the action raises, UsageError for too few paths.
    """
    action, least = ACTIONS[args.action]
    paths = [Path(path) for path in args.paths]
    if len(paths) < least or (least == 1 and args.action != "verify" and len(paths) > 1):
        raise UsageError(f"lavis-ext features {args.action}", f"got {len(paths)} paths", USES[args.action])
    with progress_of(args) as progress:
        return action(args, paths, progress)


def _import(args: Features, paths: list[Path], progress: Progress) -> Answer:
    from lavis_ext.features.imports import import_features, raise_for
    from lavis_ext.features.store import ReadOptions, open_store
    from lavis_ext.features.tools import info

    *sources, store = paths
    if args.to:
        raise UsageError("--to", "belongs to export", USES["import"])
    options = fill(ReadOptions, args, columns=args.width or 0, keep_all=args.all_columns)
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


def _export(args: Features, paths: list[Path], progress: Progress) -> Answer:
    from lavis_ext.features.formats import format_of
    from lavis_ext.features.store import open_store
    from lavis_ext.features.tools import export_store

    if len(paths) != 2:
        raise UsageError("lavis-ext features export", f"got {len(paths)} paths", USES["export"])
    store, destination = paths
    if not args.to:
        raise UsageError("lavis-ext features export", "needs --to FORMAT", f"one of {', '.join(FORMATS)}")
    opened = open_store(store)
    remarks = export_store(opened, destination, format_of(args.to).name)
    line = f"{destination}: {len(opened)} images as {args.to}"
    return Answer([line, *remarks], [{"destination": str(destination), "images": len(opened), "format": args.to}])


def _index(args: Features, paths: list[Path], progress: Progress) -> Answer:
    from lavis_ext.features.tools import index

    rows, written = index(paths[0])
    if rows is not None:
        return Answer([f"{paths[0]}: index of {rows} images written"], [{"store": str(paths[0]), "images": rows}])
    lines = [f"written: {path}" for path in written] or [f"{paths[0]}: its side files are there and fit"]
    return Answer(lines, [{"written": [str(path) for path in written]}])


def _extract(args: Features, paths: list[Path], progress: Progress) -> Answer:
    """Exit code 8 where more is missing than `--tolerance` allows; UsageError for a format that is not written."""
    from lavis_ext.common.config.resolve import cache_root
    from lavis_ext.features.extraction.extract import STORE
    from lavis_ext.features.formats.tsv import COLUMNS

    *sources, destination = args.paths
    form = args.to or ("volta-tsv" if Path(destination).suffix == ".tsv" else STORE)
    if form not in (STORE, *COLUMNS):
        raise UsageError(f"--to {form}", "is not what extraction writes", nearest(form, COLUMNS))
    return extract_regions(args, sources, Path(destination), cache_root(), form, args.dtype, progress)


def _merge(args: Features, paths: list[Path], progress: Progress) -> Answer:
    from lavis_ext.features.imports import raise_for
    from lavis_ext.features.store import open_store
    from lavis_ext.features.tools import merge_stores

    if paths[0].is_file():
        return merge_tsvs(paths, args.tolerance or 0.0, progress)
    *stores, destination = paths
    _, faults = merge_stores(stores, destination)
    raise_for(faults, str(destination))
    total = len(open_store(destination))
    line = f"{destination}: {total} images of {len(stores)} stores"
    return Answer([line], [{"store": str(destination), "images": total}])


def _info(args: Features, paths: list[Path], progress: Progress) -> Answer:
    from lavis_ext.features.store import open_store
    from lavis_ext.features.tools import info

    found = info(open_store(paths[0]))
    shown = {**found, "bytes": human(found["bytes"]), "sources": len(found["sources"])}
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in shown.items()]
    lines += [f"  {source['format']}: {source['path']}" for source in found["sources"]]
    return Answer(lines, [found])


def _verify(args: Features, paths: list[Path], progress: Progress) -> Answer:
    from lavis_ext.features.store import open_store
    from lavis_ext.features.tools import raise_damaged, verify

    answer = Answer()
    for path in paths:
        store = open_store(path)
        raise_damaged(verify(store), store)
        answer.lines.append(f"{path}: {len(store)} records, every checksum matches")
        answer.objects.append({"store": str(path), "images": len(store), "damaged": 0})
    return answer


def _head(args: Features, paths: list[Path], progress: Progress) -> Answer:
    from lavis_ext.features.store import open_store
    from lavis_ext.features.tools import head

    rows = head(open_store(paths[0]), args.rows)
    lines = [
        f"{r['image_id']}: {r['boxes']} boxes, {r['height']}x{r['width']}, first {r['first_box']} {r['box_unit']}, "
        f"mean {r['mean']}, {', '.join(r['labels']) or 'no labels'}"
        for r in rows
    ]
    return Answer(lines, rows)


ACTIONS: dict[str, tuple[Callable[[Features, list[Path], Progress], Answer], int]] = {
    "import": (_import, 2),
    "export": (_export, 2),
    "extract": (_extract, 2),
    "index": (_index, 1),
    "merge": (_merge, 2),
    "info": (_info, 1),
    "verify": (_verify, 1),
    "head": (_head, 1),
}
"""What each action calls, and the least number of paths that it takes."""


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
