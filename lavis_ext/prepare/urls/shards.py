"""Shards of img2dataset: publishing with a manifest, what became of each row, and the check of image bodies.

A shard that no longer fits its list is set aside, never deleted.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any, Literal

from lavis_ext.common.errors import IntegrityError, LavisExtError
from lavis_ext.common.files import decode_json, read_object, write_json
from lavis_ext.datasets.readers.images import PositionalFile
from lavis_ext.datasets.readers.shard_index import Extent, read_index
from lavis_ext.prepare.urls.job import ASIDE, Passing, passing_status

BLOCK = 1 << 20


@dataclass(frozen=True)
class ShardManifest:
    """What a shard `NNNNN.tar` holds, written as `NNNNN.manifest.json` once it is complete.

    `samples` counts keys that have an image and a JSON; first and last key are in the order of the file; `input_hash`
    is of the rows that the shard was made from. `crcs` are the samples' CRC-32s, see `sample_crc`, 8 digits each in the
    order of the file, by which a reader can find damage; "" in manifests of older versions.
    """

    shard: str
    bytes: int
    sha256: str
    samples: int
    first_key: str
    last_key: str
    input_hash: str
    crcs: str = ""

    @classmethod
    def read(cls, tar: Path) -> ShardManifest | None:
        """The manifest of a shard, None where it has none that can be read."""
        try:
            found = cls(**read_object(manifest_path(tar)))
        except TypeError:
            return None
        return found if all(type(getattr(found, one.name)).__name__ == one.type for one in fields(cls)) else None


def manifest_path(tar: Path) -> Path:
    """The path of the manifest of a shard."""
    return tar.with_suffix(".manifest.json")


def shard_path(target: Path, number: int) -> Path:
    """`NNNNN.tar`."""
    return target / f"{number:05d}.tar"


def is_published(tar: Path, input_hash: str) -> bool:
    """Whether a shard is there as its manifest says, made from these rows; its bytes are not read."""
    manifest = ShardManifest.read(tar)
    return (
        manifest is not None
        and manifest.input_hash == input_hash
        and tar.is_file()
        and tar.stat().st_size == manifest.bytes
    )


def publish(finished: Path, tar: Path, manifest: ShardManifest) -> None:
    """Flush a finished shard, give it its name, and write its manifest last; done again it changes nothing."""
    if finished.exists():
        manifest_path(tar).unlink(missing_ok=True)
        with finished.open("rb") as file:
            os.fsync(file.fileno())
        tar.parent.mkdir(parents=True, exist_ok=True)
        finished.replace(tar)
    write_json(manifest_path(tar), asdict(manifest))


def describe(tar: Path, input_hash: str) -> ShardManifest:
    """The manifest of a shard, from its bytes; raises IntegrityError for one that is cut, UnsafeError for a pickle."""
    index = read_index(tar, ("image", "json"))
    if index.cut:
        raise IntegrityError(str(tar), f"not a whole tar: {index.cut}", "run again: it is made again")
    samples = [entry for entry in index.entries if {"image", "json"} <= set(entry.members)]
    size, sha256, crcs = _digests(tar, [list(entry.members.values()) for entry in samples])
    return ShardManifest(
        shard=tar.stem,
        bytes=size,
        sha256=sha256,
        samples=len(samples),
        first_key=samples[0].key if samples else "",
        last_key=samples[-1].key if samples else "",
        input_hash=input_hash,
        crcs="".join(f"{crc:08x}" for crc in crcs),
    )


def _digests(tar: Path, samples: Sequence[Sequence[Extent]]) -> tuple[int, str, list[int]]:
    """Bytes and SHA-256 of a shard, and of each sample what `sample_crc` gives, in one pass over the file."""
    places = sorted((*extent, number) for number, extents in enumerate(samples) for extent in extents)
    digest, crcs, at, first = hashlib.sha256(), [0] * len(samples), 0, 0
    block = memoryview(bytearray(BLOCK))
    with tar.open("rb", buffering=0) as file:
        while read := file.readinto(block):
            digest.update(block[:read])
            while first < len(places) and places[first][0] < at + read:
                offset, size, number = places[first]
                crcs[number] = zlib.crc32(block[max(0, offset - at) : min(read, offset + size - at)], crcs[number])
                if offset + size > at + read:
                    break
                first += 1
            at += read
    return at, digest.hexdigest(), crcs


def sample_records(tar: Path) -> Iterator[dict[str, Any]]:
    """The JSON object of each sample of a shard; one that cannot be read is empty."""
    file = PositionalFile(tar)
    for entry in read_index(tar, ("image", "json")).entries:
        if {"image", "json"} <= set(entry.members):
            try:
                record = decode_json(file.read_at(*entry.members["json"]))
            except ValueError:
                record = {}
            yield record if isinstance(record, dict) else {}


def shard_fault(tar: Path) -> str:
    """How a shard, hashed again, differs from its manifest; "" if it does not."""
    manifest = ShardManifest.read(tar)
    if manifest is None:
        return "has no manifest"
    try:
        now = describe(tar, manifest.input_hash)
    except LavisExtError as error:
        return error.problems[0].what
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    told = {name: value for name, value in asdict(manifest).items() if name != "crcs" or value}
    differs = [name for name, value in told.items() if asdict(now)[name] != value]
    return f"differs from its manifest in {', '.join(differs)}" if differs else ""


def set_aside(tar: Path) -> Path | None:
    """Move a shard and its manifest to ASIDE; returns its new path, None where there was none."""
    if not os.path.lexists(tar):
        manifest_path(tar).unlink(missing_ok=True)
        return None
    folder = tar.parent / ASIDE
    folder.mkdir(parents=True, exist_ok=True)
    place = next(place for n in count() if not os.path.lexists(place := folder / f"{tar.stem}.{n}.tar"))
    manifest = manifest_path(tar)
    if manifest.exists():
        manifest.replace(manifest_path(place))
    tar.replace(place)
    return place


# Outcomes of rows: img2dataset reports failures only as messages, which become reasons that can be counted

Kind = Literal["present", "missing", "corrupt"]

_STATUS = re.compile(r"HTTP Error (\d{3})")
_REASONS: tuple[tuple[str, Passing | str], ...] = (
    (r"timed? ?out", Passing.TIMEOUT),
    (r"Temporary failure in name resolution", Passing.NAME_SERVER),
    (r"Name or service not known|No address associated|nodename nor servname|getaddrinfo failed", "host is gone"),
    (r"CERTIFICATE|certificate|SSL|TLS", "TLS"),
    (r"X-Robots-Tag", "disallowed by its host"),
    (
        r"refused\]|Connection refused|reset by peer|Remote end closed|unreachable|No route|Broken pipe|EOF occurred"
        r"|IncompleteRead|BadStatusLine|no address",
        Passing.CONNECTION,
    ),
    (r"redirect", "redirects"),
    (r"unknown url type|no host given|control characters|InvalidURL|nonnumeric port", "refused: not a URL"),
)


@dataclass(frozen=True)
class RowOutcome:
    """What became of a row; `passing` says that another try may go better."""

    kind: Kind
    reason: str = ""
    passing: bool = False


def classify_failure(status: str | None, message: str | None) -> RowOutcome:
    """The outcome of one row by img2dataset's status and error message; status None: it wrote none."""
    if status == "success":
        return RowOutcome("present")
    if status is None:
        return RowOutcome("missing", Passing.UNFINISHED.value, True)
    text = (message or "no reason given").strip().removeprefix("<urlopen error ").removesuffix(">")
    head, _, rest = text.partition(": ")
    if head == "corrupt":
        return RowOutcome("corrupt", rest[:80])
    if head == "cut":
        return RowOutcome("corrupt", "body cut short", True)
    if text == ALTERED:
        return RowOutcome("corrupt", Passing.ALTERED.value, True)
    if head in ("refused", "placeholder"):
        return RowOutcome("missing", text[:80])
    if status == "failed_to_resize":
        return RowOutcome("corrupt", "cannot be decoded")
    return _network_failure(text)


def _network_failure(text: str) -> RowOutcome:
    found = _STATUS.search(text)
    if found:
        code = int(found[1])
        return RowOutcome("missing", f"HTTP {code}", passing_status(code))
    for pattern, reason in _REASONS:
        if re.search(pattern, text):
            if isinstance(reason, Passing):
                return RowOutcome("missing", reason.value, passing=True)
            return RowOutcome("missing", reason)
    return RowOutcome("missing", f"other: {text[:60]}")


# The check of bodies: placeholders of hosts, pages, cut and damaged files are no images


ALTERED = "altered"


class Unwanted(Exception):
    """A body that is not the image; the text begins with `placeholder`, ALTERED or `corrupt`."""


@dataclass(frozen=True)
class Inspector:
    """Called with a body and the URL it came from at last; raises Unwanted. Picklable.

    `placeholders` are sha256 digests of bodies, and parts of URLs to which hosts redirect requests for lost images.
    `digests` are those of the bodies at some URLs.
    """

    placeholders: Collection[str] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, body: bytes, url: str) -> None:
        """Accept a body that the readers can decode whole."""
        from lavis_ext.datasets.readers.decode import decode_rgb  # numpy and Pillow, which no plan needs
        from lavis_ext.datasets.readers.faults import SampleError

        digest = hashlib.sha256(body).hexdigest()
        if self.digests.get(url, digest) != digest:
            raise Unwanted(ALTERED)
        if digest in self.placeholders or any(p in url for p in self.placeholders):
            raise Unwanted("placeholder")
        try:
            decode_rgb(body)
        except SampleError as error:
            raise Unwanted(f"corrupt: {error.reason if 'damaged' in error.why else error.why}") from error
