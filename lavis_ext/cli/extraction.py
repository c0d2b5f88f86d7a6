"""`lavis-ext features extract` and the joining of TSVs: from parsed arguments to lines, objects and an exit code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lavis_ext.errors import IntegrityError, PartialError, UsageError, nearest
from lavis_ext.features.detectors import Detector, DetectorOptions, build_detector
from lavis_ext.features.extraction.extract import STORE, Extracted, Request, extract
from lavis_ext.features.extraction.merging import Merged, merge_rows
from lavis_ext.features.formats.butd import COLUMNS
from lavis_ext.features.row import Fault
from lavis_ext.fetch.model import Progress

Told = tuple[list[str], list[dict[str, Any]], int]
SHOWN = 20


def extract_action(args: Namespace, paths: Sequence[str], root: Path, progress: Progress) -> Told:
    """`features extract IMAGES… DESTINATION`; raises UsageError for what cannot be meant."""
    *sources, destination = paths
    form = form_of(destination, args.to)
    request = Request(
        sources,
        Path(destination),
        root,
        form,
        args.dtype,
        args.group_id,
        args.total_group or 1,
        args.batch_size or 4,
    )
    done = extract(request, partial(detector_of, args, form), progress)
    return tell_extracted(done, args.tolerance or 0.0)


def form_of(destination: str, to: str | None) -> str:
    """Which form a destination is to have: that of `--to`, else 13 columns for a .tsv, else a store."""
    form = to or ("volta-tsv" if Path(destination).suffix == ".tsv" else STORE)
    if form not in (STORE, *COLUMNS):
        raise UsageError(f"--to {form}", "is not what extraction writes", nearest(form, COLUMNS))
    return form


def detector_of(args: Namespace, form: str) -> Detector:
    """The detector that the arguments name, its weights loaded; raises UsageError, RegistryError, ConfigError."""
    options = DetectorOptions(
        weights=args.weights,
        min_boxes=args.min_boxes,
        max_boxes=args.max_boxes,
        conf=args.conf,
        geometry=args.geometry,
        probabilities=form == "volta-tsv",
        precision=args.precision or "float32",
        device=args.device or _device(),
        classes=Path(args.classes) if args.classes else None,
        attributes=Path(args.attributes) if args.attributes else None,
        nms=args.nms,
        seed=args.seed or 0,
    )
    return build_detector(detector_name(args.detector or "", args.model_type or ""), options)


def detector_name(name: str, model_type: str) -> str:
    """The registered name: `butd` is the one that begins so, `butd` of the type `tiny` is `butd_tiny`, else `tiny`.

    Raises UsageError with the nearest names.
    """
    from lavis_ext.registry import detectors

    known = detectors.names()
    if model_type:
        found = [one for one in (f"{name}_{model_type}", model_type) if one in known][:1]
    else:
        found = [name] if name in known else [one for one in known if name and one.startswith(f"{name}_")]
    if len(found) != 1:
        told = f"--detector {name}" + (f" --model-type {model_type}" if model_type else "")
        raise UsageError(told, "names no detector" if name else "is needed", nearest(model_type or name, known))
    return found[0]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def tell_extracted(done: Extracted, tolerance: float) -> Told:
    """What there is, what is missing and why; exit code 8 where more is missing than may be."""
    line = f"{done.path}: {done.present:,} of {done.images:,} images, {done.added:,} extracted now"
    lines = [line, *tell_missing(done.missing)]
    return lines, [done.as_dict()], code_of(done.missing, done.images, tolerance)


def tell_missing(missing: Mapping[str, str]) -> list[str]:
    """How many images are missing, and the first of them with the reason."""
    lines = [f"missing: {len(missing):,}"] if missing else []
    lines += [f"  {name}: {why}" for name, why in list(missing.items())[:SHOWN]]
    return lines + ([f"  and {len(missing) - SHOWN:,} more; --json tells all"] if len(missing) > SHOWN else [])


def tell_faults(faults: Sequence[tuple[Path, Fault]]) -> list[str]:
    """Rows that were left out, by file, line and id."""
    lines = [f"  {path.name}, line {f.line}, image {f.image_id!r}: {f.what}" for path, f in faults[:SHOWN]]
    return [f"rows left out: {len(faults):,}", *lines] if faults else []


def code_of(missing: Mapping[str, str], images: int, tolerance: float) -> int:
    """8 where a larger share of the images is missing than may be, else 0."""
    return PartialError.exit_code if missing and len(missing) > tolerance * images else 0


def merge_action(paths: Sequence[Path], tolerance: float, progress: Progress, expected: Sequence[str] = ()) -> Told:
    """`features merge PART.tsv… WHOLE.tsv`: exit code 5 where rows are damaged, 8 where too many images are missing."""
    *parts, destination = paths
    return tell_merged(merge_rows(parts, destination, expected, progress), tolerance)


def tell_merged(done: Merged, tolerance: float) -> Told:
    """The account of a merge."""
    lines = [f"{done.path}: {done.rows:,} images, {done.added:,} added now, {done.repeated:,} repeated rows left out"]
    if done.differing:
        told = ", ".join(done.differing[:SHOWN])
        lines.append(f"{len(done.differing):,} images stand twice with other numbers, the first counts: {told}")
    lines += [*tell_faults(done.faults), *tell_missing(done.missing)]
    if not done.accounted:
        lines.append("nothing says which images there should be; rows of `lavis-ext features extract` do")
    damaged = bool(done.faults or done.differing)
    code = code_of(done.missing, done.rows + len(done.missing), tolerance)
    return lines, [_merged(done)], IntegrityError.exit_code if damaged else code


def _merged(done: Merged) -> dict[str, Any]:
    faults = [{"file": str(path), "line": f.line, "image_id": f.image_id, "what": f.what} for path, f in done.faults]
    counts = {"rows": done.rows, "added": done.added, "repeated": done.repeated, "differing": done.differing}
    return {"path": str(done.path), **counts, "faults": faults, "missing": done.missing, "accounted": done.accounted}
