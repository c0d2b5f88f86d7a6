"""What an export writes, while it grows: under another name, marked with the store that it is of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lavis_ext.errors import UsageError
from lavis_ext.features.files import disk_errors, finish, part_of, refuse_existing, write_atomic
from lavis_ext.features.store import FeatureStore


@contextmanager
def growing(store: FeatureStore, path: Path) -> Iterator[Path]:
    """`growing_of` an export of a store."""
    with growing_of({"store": str(store.path.resolve()), "rows": len(store), "end": store.index.end}, path) as part:
        yield part


@contextmanager
def growing_of(state: dict[str, Any], path: Path) -> Iterator[Path]:
    """The name of a partial file or folder, which becomes `path` when the block ends without an error.

    What an earlier run left there of the same `state` (plain values) is to be gone on with. Raises UsageError where
    `path` exists or the part is of another state, DiskError.
    """
    refuse_existing(path)
    part = part_of(path)
    stamp = part.with_name(f"{part.name}.json")
    if part.exists() and _read(stamp) != state:
        raise UsageError(str(part), "is a part of another export", "move it away, or name another place")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(stamp, json.dumps(state).encode())
    yield part
    finish(part, path)
    with disk_errors(path):
        stamp.unlink(missing_ok=True)


def _read(stamp: Path) -> Any:
    try:
        return json.loads(stamp.read_bytes())
    except (OSError, ValueError):
        return None
