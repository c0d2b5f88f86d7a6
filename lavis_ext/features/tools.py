"""Tools for stores, one for each verb of `lavis-ext features`: export, merge, index, info, head, verify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.features.formats import format_of
from lavis_ext.features.formats.lines import write_lineidx, write_offset_map
from lavis_ext.features.layout import ABOUT, FAULTS, ROWS
from lavis_ext.features.store import BadRow, Fault, FeatureStore, Record
from lavis_ext.features.writer import StoreWriter, read_lines


def export_store(store: FeatureStore, destination: Path, form: str) -> list[str]:
    """Write a store as one of the published forms; returns remarks. Raises UsageError where `destination` exists.

    A killed export of a TSV, an LMDB or a folder of npy is resumed at the next record; one of h5 or .pt begins again.
    """
    sources = store.about.sources
    known: dict[str, Any] = {key: sources[0][key] for key in ("newline", "ids") if sources and key in sources[0]}
    if sources and sources[0].get("format") != form:
        known.pop("newline", None)
    return format_of(form).write(store, destination, known)


def merge_stores(paths: Sequence[Path], destination: Path) -> tuple[int, list[Fault]]:
    """Append the records of stores to one of the same precision; ids that are there with other features are faults.

    Returns how many were added. A killed run can be repeated: records that are there already are skipped.
    """
    stores = [FeatureStore(path) for path in paths]
    dtypes = sorted({store.about.dtype for store in stores})
    if len(dtypes) > 1:
        raise UsageError(str(destination), f"the stores hold {' and '.join(dtypes)}", "import them in one precision")
    faults: list[Fault] = []
    with StoreWriter(destination, dtypes[0]) as writer:
        before = len(writer.entries)
        for store in stores:
            base = _sources(writer, store)
            for record in records(store):
                fault = _merge(writer, record, base)
                faults += [replace(fault, source=str(store.path))] if fault else []
        added = len(writer.entries) - before
    return added, faults


def _sources(writer: StoreWriter, store: FeatureStore) -> int:
    """The number that the first source of `store` has in the merged store; its sources are added if they are new."""
    ours, theirs = writer.about.sources, store.about.sources
    for base in range(len(ours)):
        if ours[base : base + len(theirs)] == theirs:
            return base
    ours += theirs
    writer.about.save(writer.path)
    return len(ours) - len(theirs)


def _merge(writer: StoreWriter, record: Record, base: int) -> Fault | None:
    row = record.as_row()
    if record.image_id in writer and writer.same(row):
        return None
    try:
        writer.append(row, base + record.source)
    except BadRow as error:
        return Fault(record.image_id, record.line, str(error))
    return None


def rebuild_index(path: Path) -> int:
    """Write the index of a store again from its data; returns the number of records. Raises IntegrityError."""
    with StoreWriter(path) as writer:
        writer.commit()
        return len(writer.entries)


def index(path: Path) -> tuple[int | None, list[Path]]:
    """Write the index of a store again, or of a TSV the missing ones of `.lineidx`, `imageid2idx.json`, offset map.

    Returns the number of records (None for a TSV) and the files that were written. Raises UsageError, IntegrityError.
    """
    if (path / ABOUT).is_file():
        return rebuild_index(path), [path]
    if not path.is_file():
        raise UsageError(str(path), "is neither a store nor a file", "name a feature store or a .tsv")
    return None, write_lineidx(path) + write_offset_map(path)


def records(store: FeatureStore) -> Iterator[Record]:
    """All records in the order in which they were written."""
    return (store.at(row) for row in range(len(store)))


def info(store: FeatureStore) -> dict[str, Any]:
    """Figures of a store, from its index alone."""
    counts = np.asarray(store.index.count)
    rows = len(store)
    unknown = int((np.asarray(store.index.height) == 0).sum())
    return {
        "store": str(store.path),
        "images": rows,
        "boxes": int(counts.sum()) if rows else 0,
        "boxes_per_image": [int(counts.min()), round(float(counts.mean()), 1), int(counts.max())] if rows else [],
        "columns": store.columns,
        "dtype": store.about.dtype,
        "bytes": (store.path / ROWS).stat().st_size,
        "without_size": unknown,
        "faults": len(read_lines(store.path / FAULTS)),
        "unindexed_bytes": (store.path / ROWS).stat().st_size - store.index.end,
        "sources": store.about.sources,
    }


def verify(store: FeatureStore) -> list[Fault]:
    """Every record whose bytes do not match its checksum, its header or the index."""
    found = []
    for row in range(len(store)):
        what = store.fault_of(row)
        if what is not None:
            found.append(Fault(store.index.id_at(row), row + 1, what))
    return found


def head(store: FeatureStore, count: int) -> list[dict[str, Any]]:
    """The first records as plain values: sizes, first box, mean of the features, labels, names of extra arrays."""
    return [_summary(store.at(row)) for row in range(min(count, len(store)))]


def _summary(record: Record) -> dict[str, Any]:
    features = np.asarray(record.features, np.float32)
    first = record.boxes[0] if record.boxes is not None and len(record) else ()
    return {
        "image_id": record.image_id,
        "boxes": len(record),
        "height": record.height,
        "width": record.width,
        "box_unit": record.box_unit,
        "first_box": [round(float(x), 3) for x in first],
        "mean": round(float(features.mean()), 4) if features.size else 0.0,
        "labels": [str(label.get("class", "")) for label in record.labels[:8]],
        "arrays": sorted(record.arrays),
    }


def raise_damaged(faults: Sequence[Fault], store: FeatureStore) -> None:
    """Raise IntegrityError that names every damaged record."""
    if faults:
        problems = [IntegrityError(f"{store.path}, image {f.image_id!r}", f.what).problems[0] for f in faults[:50]]
        last = problems[-1]
        rest = f"; {len(faults)} records are damaged in all" if len(faults) > len(problems) else ""
        problems[-1] = replace(last, way_out=f"import these images again into another store{rest}")
        raise IntegrityError.of(problems)
