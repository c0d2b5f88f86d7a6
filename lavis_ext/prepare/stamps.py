"""What was prepared, written last and atomically below `<family>/.lavis_ext/`; deleting that folder loses no data."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from lavis_ext.cards import Artifact
from lavis_ext.errors import ConfigError
from lavis_ext.files import write_atomic
from lavis_ext.prepare.members import BOOKKEEPING

log = logging.getLogger(__name__)
FORMAT = 1


def family_folder(artifact: Artifact) -> str:
    """The first folder of an artifact's storage (`coco`), where its bookkeeping lies; "" for a file in the root itself.

    Raises ConfigError for a storage that is absolute or climbs out of the cache root.
    """
    path = PurePosixPath(artifact.file)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in artifact.file:
        what = f"storage '{artifact.storage}' does not lie below the cache root"
        raise ConfigError(f"artifact '{artifact.name}'", what, "write it relative to the cache root, without `..`")
    return path.parts[0] if len(path.parts) > 1 else ""


def bookkeeping(root: Path, artifact: Artifact) -> Path:
    """`<cache root>/<family>/.lavis_ext`."""
    return root / family_folder(artifact) / BOOKKEEPING


def record_path(root: Path, artifact: Artifact, kind: str, suffix: str) -> Path:
    """Where one record of an artifact lies: by the path of its file, so that families that share it share it too."""
    inside = PurePosixPath(artifact.file).relative_to(family_folder(artifact) or ".")
    return bookkeeping(root, artifact) / kind / f"{inside}{suffix}"


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """An artifact as it was prepared: which bytes, how they were proven, what lies on disk.

    `state` is complete, or partial where only some members were asked for; `folders` maps each folder that holds
    members to its mtime in ns, by which a later run sees in a moment that nothing came or went ("" is the storage, or
    the file itself where nothing is unpacked). `wanted` maps `data set/split` to the number of samples that are there,
    where `state` is partial; packed is an archive that was left as it is.
    """

    artifact: str
    file: str
    url: str
    source: str = ""
    size: int | None = None
    sha256: str | None = None
    declared: str = ""
    equivalence: str = "byte_exact"
    state: str = "complete"
    files: int = 0
    bytes: int = 0
    verified: str = ""
    folders: dict[str, int] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)
    when: str = ""
    version: str = ""
    format: int = FORMAT

    @property
    def subset(self) -> bool:
        """Whether it came from a mirror that offers only a part of the real thing."""
        return self.equivalence == "subset"


def declared_identity(artifact: Artifact) -> str:
    """What an artifact promises, as one line: a stamp made under another promise does not count."""
    digest = artifact.sha256 or artifact.md5
    return digest.lower() if digest else f"{artifact.url} {artifact.size}"


def read_stamp(root: Path, artifact: Artifact) -> Stamp | None:
    """The stamp of an artifact, or None where there is none that can be read."""
    path = record_path(root, artifact, "stamps", ".json")
    try:
        tree = json.loads(path.read_text("utf-8"))
        stamp = Stamp(**tree)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s: cannot be read and is made anew (%s)", path, error)
        return None
    return stamp if stamp.format == FORMAT else None


def write_stamp(root: Path, artifact: Artifact, stamp: Stamp) -> Stamp:
    """Write a stamp, atomically and flushed to the disk; returns it with time and version filled in. Raises OSError."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    stamp = replace(stamp, when=now, version=own_version())
    write_atomic(record_path(root, artifact, "stamps", ".json"), json.dumps(asdict(stamp), indent=1) + "\n")
    return stamp


def drop_stamp(root: Path, artifact: Artifact) -> None:
    """Take back the word that an artifact is done (its data stay)."""
    record_path(root, artifact, "stamps", ".json").unlink(missing_ok=True)


def own_version() -> str:
    """The version of this package, "0" where it runs from a checkout that is not installed."""
    try:
        return version("lavis_ext")
    except PackageNotFoundError:
        return "0"


def crc_of(path: Path) -> int:
    """CRC-32 of a file, read in blocks."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(1 << 20):
            crc = zlib.crc32(data, crc)
    return crc


def as_json(tree: Mapping[str, Any]) -> str:
    """One line of JSON in a fixed form."""
    return json.dumps(tree, sort_keys=True, ensure_ascii=False)
