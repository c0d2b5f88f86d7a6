"""Finished shards get their name and, after it, a manifest; what no longer fits is set aside, never deleted."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

from lavis_ext.errors import IntegrityError
from lavis_ext.files import write_json

BLOCK = 1 << 20
ASIDE = ".lavis_ext/set_aside"
IMAGES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Manifest:
    """What a shard `NNNNN.tar` holds, written as `NNNNN.manifest.json` once it is complete.

    `samples` counts keys that have an image; first and last key are in the order of the file; `input_hash` is of the
    rows that the shard was made from.
    """

    shard: str
    bytes: int
    sha256: str
    samples: int
    first_key: str
    last_key: str
    input_hash: str

    @classmethod
    def read(cls, tar: Path) -> Manifest | None:
        """The manifest of a shard, None where it has none that can be read."""
        try:
            return cls(**json.loads(manifest_path(tar).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def manifest_path(tar: Path) -> Path:
    """Where the manifest of a shard lies."""
    return tar.with_suffix(".manifest.json")


def shard_path(target: Path, number: int) -> Path:
    """`NNNNN.tar`."""
    return target / f"{number:05d}.tar"


def is_published(tar: Path, input_hash: str) -> bool:
    """Whether a shard is there as its manifest says, made from these rows; its bytes are not read."""
    manifest = Manifest.read(tar)
    return (
        manifest is not None
        and manifest.input_hash == input_hash
        and tar.is_file()
        and tar.stat().st_size == manifest.bytes
    )


def publish(finished: Path, tar: Path, manifest: Manifest) -> None:
    """Flush a finished shard, give it its name, and write its manifest last; done again it changes nothing."""
    if finished.exists():
        manifest_path(tar).unlink(missing_ok=True)
        with finished.open("rb") as file:
            os.fsync(file.fileno())
        tar.parent.mkdir(parents=True, exist_ok=True)
        finished.replace(tar)
    write_json(manifest_path(tar), asdict(manifest))


def describe(tar: Path, input_hash: str) -> Manifest:
    """The manifest of a shard, from its bytes; raises IntegrityError for one that is cut or has half samples."""
    digest = hashlib.sha256()
    with tar.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    keys: dict[str, set[str]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                path = Path(member.name)
                keys.setdefault(path.stem, set()).add(path.suffix)
    except tarfile.TarError as error:
        raise IntegrityError(str(tar), f"not a whole tar ({error})", "run again: it is made anew") from error
    samples = [key for key, suffixes in keys.items() if suffixes & set(IMAGES) and ".json" in suffixes]
    first, last = (samples[0], samples[-1]) if samples else ("", "")
    return Manifest(tar.stem, tar.stat().st_size, digest.hexdigest(), len(samples), first, last, input_hash)


def shard_fault(tar: Path) -> str:
    """How a shard differs from its manifest, hashed anew; "" if it does not."""
    manifest = Manifest.read(tar)
    if manifest is None:
        return "has no manifest"
    try:
        now = describe(tar, manifest.input_hash)
    except IntegrityError as error:
        return error.problems[0].what
    differs = [name for name, value in asdict(manifest).items() if asdict(now)[name] != value]
    return f"differs from its manifest in {', '.join(differs)}" if differs else ""


def set_aside(tar: Path) -> Path | None:
    """Move a shard and its manifest out of the way; returns where to, None where there was none."""
    if not tar.exists():
        manifest_path(tar).unlink(missing_ok=True)
        return None
    folder = tar.parent / ASIDE
    folder.mkdir(parents=True, exist_ok=True)
    number = sum(1 for _ in folder.glob(f"{tar.stem}*.tar"))
    place = folder / f"{tar.stem}.{number}.tar"
    manifest = manifest_path(tar)
    if manifest.exists():
        manifest.replace(manifest_path(place))
    tar.replace(place)
    return place
