"""One tar shard becomes the list of its samples, told from its headers alone; what is cut, half or pickled is named."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_ext.errors import IntegrityError, UnsafeError
from lavis_ext.readers.faults import SampleError
from lavis_ext.readers.shard_walk import Extent, walk

IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
TEXTS = frozenset({"json", "txt"})
PICKLED = frozenset({"pyd", "pkl", "pickle", "pth", "pt"})
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
"""webdataset's rule: the key is all up to the first dot of the last part, the kind is what follows it."""


@dataclass(frozen=True)
class Entry:
    """One sample of a shard: its key, and its members by kind (every image format is `image`); or why it is none."""

    key: str
    members: Mapping[str, Extent] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard in the order of the file, half ones too; `cut` says what its end lacks."""

    path: Path
    entries: tuple[Entry, ...]
    unknown: Mapping[str, int]
    """Members of other kinds, which are left out: kind → how many."""
    cut: str = ""


@dataclass(frozen=True)
class Shard:
    """A shard of a list: its file, when it was changed, and how many samples were written to it (None: nobody says)."""

    path: Path
    changed_ns: int
    promised: int | None = None
    fault: str = ""
    """How the file differs from its manifest."""

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Read what stands beside the shard: our `NNNNN.manifest.json`, else img2dataset's `NNNNN_stats.json`."""
        size, changed_ns = path.stat().st_size, path.stat().st_mtime_ns
        manifest = _read_json(path.with_suffix(".manifest.json"))
        if _is_count(manifest.get("samples")):
            differs = _is_count(manifest.get("bytes")) and manifest["bytes"] != size
            fault = f"has {size:,} bytes, its manifest says {manifest['bytes']:,}" if differs else ""
            return cls(path, changed_ns, manifest["samples"], fault)
        successes = _read_json(path.with_name(f"{path.stem}_stats.json")).get("successes")
        return cls(path, changed_ns, successes if _is_count(successes) else None)

    def entries(self, needs: tuple[str, ...]) -> tuple[ShardIndex, tuple[Entry, ...]]:
        """The index and exactly as many entries as `count_entries` says; those that the shard lost are faults.

        Raises UnsafeError for a pickled member and IntegrityError where there are more samples than were promised.
        """
        index = read_index(self.path, needs)
        found = index.entries
        if self.promised is None:
            return index, (*found, Entry("end", fault=index.cut)) if index.cut else found
        if len(found) > self.promised:
            found = tuple(entry for entry in found if not entry.fault)
        if len(found) > self.promised:
            what = f"holds {len(found):,} samples, {self.promised:,} were written"
            raise IntegrityError(str(self.path), what, "its manifest is of another file: prepare it again")
        why = f"shard lost samples: {index.cut or self.fault or 'they are not in it'}"
        return index, found + (Entry("lost", fault=why),) * (self.promised - len(found))

    def count_entries(self, needs: tuple[str, ...]) -> int:
        """How many entries there are; the shard is read only where nobody says it."""
        return len(self.entries(needs)[1]) if self.promised is None else self.promised


def read_index(path: Path, needs: tuple[str, ...]) -> ShardIndex:
    """Index a shard; an entry that lacks one of `needs` (`image`, `json`, `txt`) has a fault.

    Nothing is unpacked. Raises UnsafeError for a member that only pickle could read. A file that ends early, or is no
    tar at all, gives the samples that are whole and says in `cut` what is wrong.
    """
    found: dict[str, dict[str, Extent]] = {}
    faults: dict[str, str] = {}
    unknown: Counter[str] = Counter()
    members, cut = walk(path)
    for name, extent in members:
        match = NAME.fullmatch(name)
        key, kind = match.groups() if match else (name, name.rpartition("/")[2].partition(".")[2])
        kind = check_kind(kind.lower(), path, name)
        if kind not in ("image", *TEXTS):
            unknown[kind] += 1
        elif kind in found.setdefault(key, {}):
            faults[key] = f"sample has two members of one kind: {kind}"
        else:
            found[key][kind] = extent
    entries = (Entry(key, members, faults.get(key) or _lacking(members, needs)) for key, members in found.items())
    return ShardIndex(path, tuple(entries), dict(unknown), cut)


def check_kind(kind: str, path: Path, name: str) -> str:
    """`image` for an image format, else the kind as it is; raises UnsafeError for pickles."""
    if kind.rpartition(".")[2] in PICKLED:
        what = f"member '{name}' is a pickle, which can run code when it is read"
        raise UnsafeError(str(path), what, "do not use this shard: move it out of the folder")
    return "image" if kind in IMAGES else kind


def _lacking(members: Mapping[str, Extent], needs: tuple[str, ...]) -> str:
    lacking = [kind for kind in needs if kind not in members]
    return f"sample has no {' and no '.join(lacking)}" if lacking else ""


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none that can be read."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def sample_fault(shard: Path, entry: Entry) -> SampleError:
    """The error that stands for an entry without a sample, named by shard and key."""
    return SampleError(f"{shard.name}!{entry.key}", str(shard), entry.fault)
