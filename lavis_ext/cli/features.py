"""The actions of `lavis-ext features`: from parsed arguments to lines, objects and an exit code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lavis_ext.config import cache_root
from lavis_ext.errors import UsageError
from lavis_ext.features import tools
from lavis_ext.features.formats import FORMATS, format_of
from lavis_ext.features.imports import import_features, raise_for
from lavis_ext.features.row import ReadOptions
from lavis_ext.features.store import open_store
from lavis_ext.fetch.model import Progress
from lavis_ext.wording import human

Told = tuple[list[str], list[dict[str, Any]]] | tuple[list[str], list[dict[str, Any]], int]


def run_action(args: Namespace, progress: Progress) -> Told:
    """Do what `args.action` says to `args.paths`: lines, objects and, where it is not 0, the exit code.

    Raises what the action raises, UsageError for too few paths.
    """
    action, least = ACTIONS[args.action]
    paths = [Path(path) for path in args.paths]
    if len(paths) < least or (least == 1 and args.action != "verify" and len(paths) > 1):
        raise UsageError(f"lavis-ext features {args.action}", f"got {len(paths)} paths", USES[args.action])
    return action(args, paths, progress)


def _import(args: Namespace, paths: list[Path], progress: Progress) -> Told:
    *sources, store = paths
    if args.to:
        raise UsageError("--to", "belongs to export", USES["import"])
    options = ReadOptions(_path(args.labels), _path(args.sizes), args.width or 0, args.all_columns)
    done = import_features(sources, store, args.form, args.dtype, options, progress)
    opened = open_store(store)
    lines = [f"{store}: {len(opened)} images, {done.added} added now, {opened.about.dtype}, {opened.columns} columns"]
    if done.repeated:
        lines.append(f"{done.repeated} rows repeat an image with the same features and were left out")
    wide = any(s["format"] in ("volta-tsv", "volta-lmdb", "tensorpack-lmdb", "h5", "npy") for s in opened.about.sources)
    if wide and not args.all_columns:
        lines.append("class probabilities (cls_prob, attrs, classes) are not kept; --all-columns keeps them")
    raise_for(done.faults, str(store))
    return lines, [{**tools.info(opened), "added": done.added, "repeated": done.repeated}]


def _export(args: Namespace, paths: list[Path], progress: Progress) -> Told:
    store, destination = _two(args, paths)
    if not args.to:
        raise UsageError("lavis-ext features export", "needs --to FORMAT", f"one of {', '.join(FORMATS)}")
    opened = open_store(store)
    remarks = tools.export_store(opened, destination, format_of(args.to).name)
    line = f"{destination}: {len(opened)} images as {args.to}"
    return [line, *remarks], [{"destination": str(destination), "images": len(opened), "format": args.to}]


def _index(args: Namespace, paths: list[Path], progress: Progress) -> Told:
    rows, written = tools.index(paths[0])
    if rows is not None:
        return [f"{paths[0]}: index of {rows} images written"], [{"store": str(paths[0]), "images": rows}]
    lines = [f"written: {path}" for path in written] or [f"{paths[0]}: its side files are there and fit"]
    return lines, [{"written": [str(path) for path in written]}]


def _extract(args: Namespace, paths: list[Path], progress: Progress) -> Told:
    from lavis_ext.cli.extraction import extract_action

    return extract_action(args, list(map(str, args.paths)), cache_root(), progress)


def _merge(args: Namespace, paths: list[Path], progress: Progress) -> Told:
    if paths[0].is_file():
        from lavis_ext.cli.extraction import merge_action

        return merge_action(paths, args.tolerance or 0.0, progress)
    *stores, destination = paths
    _, faults = tools.merge_stores(stores, destination)
    raise_for(faults, str(destination))
    total = len(open_store(destination))
    return [f"{destination}: {total} images of {len(stores)} stores"], [{"store": str(destination), "images": total}]


def _info(args: Namespace, paths: list[Path], progress: Progress) -> Told:
    found = tools.info(open_store(paths[0]))
    shown = {**found, "bytes": human(found["bytes"]), "sources": len(found["sources"])}
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in shown.items()]
    lines += [f"  {source['format']}: {source['path']}" for source in found["sources"]]
    return lines, [found]


def _verify(args: Namespace, paths: list[Path], progress: Progress) -> Told:
    lines, objects = [], []
    for path in paths:
        store = open_store(path)
        tools.raise_damaged(tools.verify(store), store)
        lines.append(f"{path}: {len(store)} records, every checksum matches")
        objects.append({"store": str(path), "images": len(store), "damaged": 0})
    return lines, objects


def _head(args: Namespace, paths: list[Path], progress: Progress) -> Told:
    rows = tools.head(open_store(paths[0]), args.rows)
    lines = [
        f"{r['image_id']}: {r['boxes']} boxes, {r['height']}x{r['width']}, first {r['first_box']} {r['box_unit']}, "
        f"mean {r['mean']}, {', '.join(r['labels']) or 'no labels'}"
        for r in rows
    ]
    return lines, rows


def _two(args: Namespace, paths: Sequence[Path]) -> tuple[Path, Path]:
    if len(paths) != 2:
        raise UsageError(f"lavis-ext features {args.action}", f"got {len(paths)} paths", USES[args.action])
    return paths[0], paths[1]


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None


ACTIONS: dict[str, tuple[Callable[[Namespace, list[Path], Progress], Told], int]] = {
    "import": (_import, 2),
    "export": (_export, 2),
    "extract": (_extract, 2),
    "index": (_index, 1),
    "merge": (_merge, 2),
    "info": (_info, 1),
    "verify": (_verify, 1),
    "head": (_head, 1),
}
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
