"""The samples of tar shards from the tar headers alone, with faults; and the list of shards that `storage:` names."""

from __future__ import annotations

import glob
import logging
import os
import re
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from lavis_ext.common.errors import ConfigError, IntegrityError, UnsafeError
from lavis_ext.common.files import decode_json, expanded, read_object
from lavis_ext.common.secrets import redact
from lavis_ext.datasets.readers.faults import BAD_TAR, SampleError
from lavis_ext.datasets.readers.images import PositionalFile

log = logging.getLogger(__name__)

BLOCK = 512
AHEAD = 8 * BLOCK
"""Bytes read at a header: a text and a record of up to a block each, and all headers to the next picture's."""
MOST = 1_000_000
"""Shards that one pattern may name, and samples that are believed of a shard that is too small to hold them (cut off,
it may lack many): a declared 3,000,000,000 would take gigabytes."""
IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
TEXTS = frozenset({"json", "txt"})
PICKLED = frozenset({"pyd", "pkl", "pickle", "pth", "pt"})
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
"""webdataset's rule: the key ends at the first dot of the file name, the kind follows it."""


@dataclass(frozen=True)
class ShardSample:
    """One entry of a shard: key and members by kind (every image format is `image`), or why it is not a sample."""

    key: str
    members: Mapping[str, Extent] = field(default_factory=dict)
    fault: str = ""
    crc: str | None = None
    """What `sample_crc` must give; None: not to be compared."""


@dataclass(frozen=True)
class ShardIndex:
    """The entries of one shard in the order of the file, incomplete ones too; `cut` says how the file is cut off."""

    path: Path
    entries: tuple[ShardSample, ...]
    unknown: Mapping[str, int]
    """Members of other kinds, which are skipped: kind → count."""
    cut: str = ""


class Bytes(Protocol):
    """What bytes are read from: an open file, or a shard."""

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the end."""


class Remote(Protocol):
    """A shard in an object store, whose file comes when it is asked for; see `lavis_ext.fetch.cache.CachedObject`."""

    @property
    def shown(self) -> str:
        """Its address, for messages."""

    @property
    def size(self) -> int:
        """Its bytes."""

    @property
    def path(self) -> Path:
        """Where its file lies, once it is there."""

    def open(self) -> int:
        """A descriptor of its file, which stays readable when the file is removed; the caller closes it."""

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`."""


@lru_cache(maxsize=64)
def open_shard(path: Path, changed_ns: int) -> PositionalFile:
    """A shard open for reading; `changed_ns`, its modification time, is part of the cache key."""
    return PositionalFile(path)


@dataclass(frozen=True)
class Shard:
    """A shard: its file, its modification time, and how many samples were written to it (None: not declared)."""

    path: Path
    changed_ns: int
    promised: int | None = None
    fault: str = ""
    """How the file differs from its manifest."""

    crcs: str | None = None
    """CRC-32 of each sample (`sample_crc`) in the order of the file, 8 hexadecimal digits each, to be compared."""

    remote: Remote | None = None
    """The object whose copy `path` is, or will be."""

    @property
    def where(self) -> str:
        """Its address or path, for messages."""
        return str(self.path) if self.remote is None else self.remote.shown

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the end of the file; raises OSError."""
        if self.remote is not None:
            return self.remote.read_at(offset, size)
        return open_shard(self.path, self.changed_ns).read_at(offset, size)

    @classmethod
    def open(cls, path: Path, check: bool = False) -> Shard:
        """Read the count beside the shard: `NNNNN.manifest.json`, img2dataset's `NNNNN_stats.json`, or `_info.json`.

        With `check`, the manifest's CRCs too. Raises ConfigError where it has none to compare with.
        """
        stat = path.stat()
        beside = {kind: path.with_name(name) for kind, name in beside_names(path.name).items()}
        return cls.of(
            path, stat.st_size, {kind: read_object(file) for kind, file in beside.items()}, check, stat.st_mtime_ns
        )

    @classmethod
    def of(
        cls,
        path: Path,
        size: int,
        beside: Mapping[str, Mapping[str, Any]],
        check: bool = False,
        changed_ns: int = 0,
        remote: Remote | None = None,
    ) -> Shard:
        """A shard of `size` bytes by the objects of the files `beside` it (`beside_names`); see `open`."""
        manifest = beside.get("manifest", {})
        crcs = manifest.get("crcs") if check else None
        where = str(path) if remote is None else remote.shown
        if check and not isinstance(crcs, str):
            way_out = "prepare it again, or leave out run.check_shards (`lavis-ext verify` compares whole shards)"
            raise ConfigError(where, "its manifest has no CRC of each sample", way_out)
        samples: Any = manifest.get("samples")
        fault = ""
        if not _is_count(samples):
            samples = beside.get("stats", {}).get("successes")
            samples = samples if _is_count(samples) else _listed_count(beside.get("info", {}), path.name)
        elif _is_count(manifest.get("bytes")) and manifest["bytes"] != size:
            fault = f"has {size:,} bytes, its manifest says {manifest['bytes']:,}"
        if type(samples) is int and samples > max(MOST, size // (2 * BLOCK)):
            samples, fault = None, "cannot hold as many samples as are declared: they are counted again"
        return cls(path, changed_ns, samples if _is_count(samples) else None, fault, crcs, remote)

    def entries(self, needs: tuple[str, ...]) -> tuple[ShardIndex, tuple[ShardSample, ...]]:
        """The index, and exactly `count_entries` entries; samples that the shard lost are entries with a fault.

        Raises UnsafeError for a pickled member and IntegrityError for more samples than were declared.
        """
        index = read_index(self.path, needs, None if self.remote is None else self.remote.open())
        found = index.entries if self.crcs is None else tuple(_with_crcs(index.entries, self.crcs))
        if self.promised is None:
            return index, (*found, ShardSample("end", fault=index.cut)) if index.cut else found
        if len(found) > self.promised:
            found = tuple(entry for entry in found if not entry.fault)
        if len(found) > self.promised:
            what = f"holds {len(found):,} samples, {self.promised:,} were written"
            raise IntegrityError(self.where, what, "its manifest is of another file: prepare it again")
        why = f"shard lost samples: {index.cut or self.fault or 'they are not in it'}"
        return index, found + (ShardSample("lost", fault=why),) * (self.promised - len(found))

    def count_entries(self, needs: tuple[str, ...]) -> int:
        """How many entries there are; the shard is read only where its count is not declared."""
        return len(self.entries(needs)[1]) if self.promised is None else self.promised


def beside_names(name: str) -> dict[str, str]:
    """Kind → name of the files beside a shard that may say how many samples it has.

    `_info.json` is of webdatasets on the hub: `splits: {NAME: {filenames: […], shard_lengths: […]}}`.
    """
    stem = name.rpartition(".")[0] or name
    return {"manifest": f"{stem}.manifest.json", "stats": f"{stem}_stats.json", "info": "_info.json"}


def _listed_count(info: Mapping[str, Any], name: str) -> Any:
    """The count that an `_info.json` has for a shard of this name, None for none."""
    splits = info.get("splits")
    for split in splits.values() if isinstance(splits, dict) else ():
        names, lengths = (
            (split.get(key) for key in ("filenames", "shard_lengths")) if isinstance(split, dict) else ((), ())
        )
        if isinstance(names, list) and isinstance(lengths, list) and len(names) == len(lengths) and name in names:
            return lengths[names.index(name)]
    return None


def read_index(path: Path, needs: tuple[str, ...], descriptor: int | None = None) -> ShardIndex:
    """Index a shard; an entry that lacks one of `needs` (`image`, `json`, `txt`) has a fault.

    It is read through its `descriptor`, which is closed, where it has been opened.
    Nothing is unpacked. Raises UnsafeError for a pickled member. Of a file that is cut off, or not a tar, the index has
    the samples that are whole, and `cut` says what is wrong.
    """
    found: dict[str, dict[str, Extent]] = {}
    faults: dict[str, str] = {}
    unknown: Counter[str] = Counter()
    longer: dict[str, dict[str, list[tuple[str, Extent]]]] = {}  # `key.input.jpg`, the picture where there is no other
    members, cut = walk(path, descriptor)
    for name, extent in members:
        match = NAME.fullmatch(name)
        key, kind = match.groups() if match else (name, name.rpartition("/")[2].partition(".")[2])
        kind = check_kind(kind.lower(), path, name)
        if kind not in ("image", *TEXTS):
            last = check_kind(kind.rpartition(".")[2], path, name)
            if last != kind and last in ("image", *TEXTS):
                longer.setdefault(key, {}).setdefault(last, []).append((kind, extent))
            else:
                unknown[kind] += 1
        elif kind in found.setdefault(key, {}):
            faults[key] = f"sample has two members of one kind: {kind}"
        else:
            found[key][kind] = extent
    for key, kinds in longer.items():
        for kind, some in kinds.items():
            if len(some) == 1 and kind not in found.get(key, {}):
                found.setdefault(key, {})[kind] = some[0][1]
            else:
                unknown.update(name for name, _ in some)
    entries = (
        ShardSample(key, members, faults.get(key) or _missing_members(members, needs)) for key, members in found.items()
    )
    return ShardIndex(path, tuple(entries), dict(unknown), cut)


def _with_crcs(entries: Iterable[ShardSample], crcs: str) -> Iterator[ShardSample]:
    """Entries with the CRCs of a manifest, which has one for each pair of image and JSON."""
    at = 0
    for entry in entries:
        if {"image", "json"} <= set(entry.members):
            entry = replace(entry, crc=crcs[at : at + 8])
            at += 8
        yield entry


def check_kind(kind: str, path: Path, name: str) -> str:
    """`image` for an image format, else the kind unchanged; raises UnsafeError for pickles."""
    if kind.rpartition(".")[2] in PICKLED:
        what = f"member '{name}' is a pickle, which can run code when it is read"
        raise UnsafeError(str(path), what, "do not use this shard: move it out of the folder")
    return "image" if kind in IMAGES else kind


def kinds_in(path: Path, most: int = 200) -> set[str]:
    """The kinds of the first members of a shard: `image`, `json`, `txt`, and others."""
    kinds = (NAME.fullmatch(name) for name, _ in walk(path)[0][:most])
    return {check_kind(match[2].lower().rpartition(".")[2], path, match[0]) for match in kinds if match}


def first_object(path: Path) -> dict[str, Any]:
    """The first `.json` of a shard; empty where there is none that can be read."""
    extent = next((extent for name, extent in walk(path)[0] if name.lower().endswith(".json")), None)
    try:
        value = decode_json(PositionalFile(path).read_at(*extent)) if extent else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _missing_members(members: Mapping[str, Extent], needs: tuple[str, ...]) -> str:
    lacking = [kind for kind in needs if kind not in members]
    return f"sample has no {' and no '.join(lacking)}" if lacking else ""


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def sample_fault(shard: Shard, entry: ShardSample) -> SampleError:
    """The error of an entry that is not a sample, named by shard and key."""
    return SampleError(f"{shard.path.name}!{entry.key}", shard.where, entry.fault)


def sample_crc(file: Bytes, members: Mapping[str, Extent]) -> str:
    """CRC-32 of a sample's image, JSON and text, one after the other as in the file; 8 hexadecimal digits."""
    crc = 0
    for offset, size in sorted(members.values()):
        crc = zlib.crc32(file.read_at(offset, size), crc)
    return f"{crc:08x}"


END = bytes(2 * BLOCK)
HEADER = struct.Struct("100s24x12s12x8s1s188x155s12x")
"""POSIX ustar, the fields in use: name, size, checksum, kind, prefix."""
PLAIN = (b"0", b"\0")
GZIP = b"\x1f\x8b"


class Extent(NamedTuple):
    """Where the bytes of a member are in the tar."""

    offset: int
    size: int


Members = list[tuple[str, Extent]]


def walk(path: Path, descriptor: int | None = None) -> tuple[Members, str]:
    """The whole plain files of a tar, in order, and how the tar is cut off ("" for one that is whole).

    A whole tar of plain files only, which is what shard writers make, is read here, several times as fast as by
    tarfile. Any other goes to tarfile, with checks for the cuts that tarfile does not report: between two members,
    inside a header and at the end mark.
    """
    try:
        with open(path if descriptor is None else descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - of either
            size = os.fstat(file.fileno()).st_size
            members = _read_plain(file, size)
            return _read_any(file, size) if members is None else (members, "")
    except OSError as error:
        return [], f"it cannot be read ({error.strerror})"


def _read_plain(file: IO[bytes], size: int) -> Members | None:
    """The members, or None for a tar that is cut off or has other members than plain files."""
    members: Members = []
    offset, begin, held = 0, 0, b""
    while True:
        if offset + 2 * BLOCK > begin + len(held):
            file.seek(offset)
            begin, held = offset, file.read(AHEAD)
        at = offset - begin
        header = held[at : at + BLOCK]
        if len(header) == BLOCK and not header[0] and held[at : at + 2 * BLOCK] == END:
            return members
        member = _parse(header, offset + BLOCK) if len(header) == BLOCK else None
        if member is None or member[1].offset + member[1].size > size:
            return None
        members.append(member)
        offset = member[1].offset + -(-member[1].size // BLOCK) * BLOCK


def _parse(header: bytes, offset: int) -> tuple[str, Extent] | None:
    """A plain file's header, or None."""
    name, size, checksum, kind, prefix = HEADER.unpack(header)
    try:
        declared, length = int(checksum.strip(b" \0"), 8), int(size.strip(b" \0"), 8)
    except ValueError:
        return None
    name = name.partition(b"\0")[0]
    if length < 0 or declared != _byte_sum(header) - sum(checksum) + 8 * 0x20:
        return None
    if kind not in PLAIN or name[-1:] in (b"/", b""):
        return None
    prefix = prefix.partition(b"\0")[0]
    whole = prefix + b"/" + name if prefix else name
    return whole.decode("utf-8", "surrogateescape"), Extent(offset, length)


def _byte_sum(header: bytes) -> int:
    """The sum of a block's bytes, by Adler-32, twenty times as fast as `sum`: exact for 256 bytes, whose sum fits."""
    return sum((zlib.adler32(header[start : start + 256]) & 0xFFFF) - 1 for start in (0, 256))


def _read_any(file: IO[bytes], size: int) -> tuple[Members, str]:
    """As tarfile reads it; a size below zero would have it go back and read the same headers for ever."""
    members: Members = []
    file.seek(0)
    if file.read(2) == GZIP:
        return [], "it is compressed (gzip), and samples are read in place: unpack it"
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps every header in memory
                # of a sparse file `size` is another field than the one by which tarfile goes on
                if member.size < 0 or archive.offset < member.offset_data:
                    return members, "it has a damaged header"
                if member.offset_data + member.size > size:
                    return members, "it is cut off inside a member"
                if member.isreg() and not member.issparse():
                    members.append((member.name, Extent(member.offset_data, member.size)))
            file.seek(archive.offset)
            return members, _end_fault(file.read(len(END)))
    except BAD_TAR as error:
        return members, f"it is cut off or no tar ({error})"


def _end_fault(tail: bytes) -> str:
    """What is wrong with the end, "" for two blocks of zeros; tarfile stops silently at anything that is no header."""
    if tail == END:
        return ""
    return "it has a damaged header" if len(tail) >= BLOCK and any(tail) else "it is cut off before its end mark"


# `storage:` names shards by paths, brace or glob patterns, or folders.

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
WILD = re.compile(r"[*?\[{]")
BRACES = re.compile(r"\{[^{}]*(?:,|\.\.)[^{}]*\}")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
SHOWN = 12


def list_shards(storage: Sequence[str], root: Path, where: str) -> list[Path]:
    """The tar files that `storage` names, relative to `root`, in order and each once.

    Raises UnsafeError for `pipe:` and every other scheme (shards are prepared first, then read from disk) and
    ConfigError where a pattern finds nothing or names shards that do not exist. Gaps in the numbers are logged.
    """
    if not storage:
        raise ConfigError(where, "names no shards", "write a folder or a pattern such as laion_coco/{00000..00200}.tar")
    found: dict[Path, None] = {}
    for pattern in storage:
        refuse_scheme(pattern, where)
        found |= dict.fromkeys(_expand(pattern, root, where))
    return checked_shards(list(found), where)


def checked_shards(paths: list[Path], where: str) -> list[Path]:
    """The shards; raises ConfigError for a compressed one, and logs gaps in their numbers."""
    packed = [path for path in paths if path.suffix.lower() in (".gz", ".tgz", ".bz2", ".xz", ".zst")]
    if packed:
        what = f"'{packed[0].name}' is compressed, and samples are read in place"
        raise ConfigError(where, what, "unpack it (gunzip): its pictures are compressed already")
    gaps = find_gaps(paths)
    if gaps:
        log.warning("%s: shards are left out between the first and the last: %s", where, gaps)
    return paths


def refuse_scheme(pattern: str, where: str) -> None:
    """Raise UnsafeError for anything but a local path: webdataset's own opener would run `pipe:` as a command."""
    scheme = SCHEME.match(pattern)
    if scheme or "::" in pattern:
        what = f"'{redact(pattern)}' is no local path, nor in an object store"
        raise UnsafeError(where, what, "name a folder of shards, or s3://, gs://, az://, hf://, https://")


def fixed_folder(pattern: str, root: Path) -> Path:
    """The folder that holds everything a pattern names: its path up to the first wildcard."""
    path = root / expanded(pattern)
    wild = next((i for i, part in enumerate(path.parts) if WILD.search(part)), None)
    if wild is not None:
        return Path(*path.parts[:wild])
    return path.parent if ".tar" in path.suffixes or path.suffix == ".tgz" else path


def _expand(pattern: str, root: Path, where: str) -> list[Path]:
    path = root / expanded(pattern)
    if BRACES.search(pattern):
        return _expand_braces(pattern, root, where)
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif WILD.search(pattern):
        found = sorted(Path(name) for name in glob.glob(str(path)))  # noqa: PTH207 (the pattern may be absolute)
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise ConfigError(where, f"'{pattern}' finds no shards (looked in {path})", "correct it, or prepare the shards")
    return found


def _expand_braces(pattern: str, root: Path, where: str) -> list[Path]:
    """The files of a brace pattern, in which globs are expanded too; raises ConfigError for missing shards."""
    names = list(islice(braced(pattern), MOST + 1))
    if len(names) > MOST:
        raise ConfigError(where, f"'{pattern}' names more than {MOST:,} shards", "correct the range")
    if any(WILD.search(name) for name in names):
        return [path for name in names for path in _expand(name, root, where)]
    paths = [root / expanded(name) for name in names]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        what = f"'{pattern}' names {len(paths):,} shards, {len(absent):,} of them are absent: {_shown(absent)}"
        raise ConfigError(where, what, "prepare them, or name what is there")
    return paths


def _shown(paths: Sequence[Path]) -> str:
    if all(path.stem.isascii() and path.stem.isdigit() for path in paths):
        return number_runs(sorted(int(path.stem) for path in paths), len(paths[0].stem))
    return ", ".join(path.name for path in paths[:SHOWN]) + (" …" if len(paths) > SHOWN else "")


def braced(pattern: str) -> Iterable[str]:
    """Expand `{000..010}` (leading zeros are kept) and `{a,b}`; the rightmost brace varies fastest, as in a shell."""
    match = BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    head, tail = pattern[: match.start()], pattern[match.end() :]
    for middle in _choices(match.group()):
        for rest in braced(tail):
            yield f"{head}{middle}{rest}"


def _choices(brace: str) -> Iterable[str]:
    count = RANGE.fullmatch(brace)
    if count is None:
        return brace[1:-1].split(",")
    first, last = count.groups()
    width = max(len(first), len(last)) if first[0] == "0" or last[0] == "0" else 0
    step = 1 if int(first) <= int(last) else -1
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))


def find_gaps(paths: Iterable[Path]) -> str:
    """The numbers that are missing between the first and the last shard of each folder: `00003, 00007–00009`."""
    gaps = []
    numbered = sorted((str(path.parent), path.stem) for path in paths if path.stem.isascii() and path.stem.isdigit())
    for _, group in groupby(numbered, lambda pair: pair[0]):
        stems = [stem for _, stem in group]
        numbers = {int(stem) for stem in stems}
        if max(numbers) - min(numbers) < MOST:
            missing = [n for n in range(min(numbers), max(numbers)) if n not in numbers]
            gaps += [number_runs(missing, len(stems[0]))] if missing else []
    return "; ".join(gaps)


def number_runs(numbers: Sequence[int], width: int) -> str:
    """Sorted numbers as runs: `00003, 00007–00009`, the first of them."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    shown = ["–".join(f"{n:0{width}d}" for n in run) for run in runs[:SHOWN]]
    return ", ".join(shown) + (f" and {len(runs) - SHOWN} more runs" if len(runs) > SHOWN else "")
