"""Tar shards in webdataset's form: samples that differ, and the ways in which a shard goes wrong."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.pictures import encoded, pixels

Members = Sequence[tuple[str, bytes]]


def sample(number: int, record: Mapping[str, Any] | None = None, image: bool = True) -> Members:
    """The members of one sample: a picture of its own, its JSON and its text."""
    told = {"caption": f"picture {number}", "key": f"{number:09d}"} if record is None else record
    parts = [(f"{number:09d}.jpg", encoded(pixels(number, 12, 16), "JPEG"))] if image else []
    return [*parts, (f"{number:09d}.json", json.dumps(told).encode()), (f"{number:09d}.txt", b"text of it")]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_shard(folder: Path, number: int, count: int, manifest: bool = False, **record: Any) -> Path:
    """`NNNNN.tar` of `count` samples, keys `NNNNN0000`…; `record` goes into each JSON; with a manifest where asked."""
    base = number * 10_000
    told = [{"caption": f"picture {base + i}", "key": f"{base + i:09d}", **record} for i in range(count)]
    path = write_tar(folder / f"{number:05d}.tar", [m for i in range(count) for m in sample(base + i, told[i])])
    if manifest:
        write_manifest(path, count)
    return path


def write_manifest(path: Path, samples: int) -> None:
    """What step 2 of the preparation writes beside a shard, of the bytes as they are now."""
    told = {"shard": path.stem, "bytes": path.stat().st_size, "sha256": "", "samples": samples}
    path.with_suffix(".manifest.json").write_text(json.dumps(told))


def ends(path: Path) -> list[tuple[str, int, int]]:
    """Name, begin of the header and end of the padded data of each member."""
    with tarfile.open(path) as archive:
        return [(m.name, m.offset, m.offset_data + -(-m.size // 512) * 512) for m in archive]


def cut(path: Path, size: int) -> Path:
    """The shard's first `size` bytes."""
    path.write_bytes(path.read_bytes()[:size])
    return path
