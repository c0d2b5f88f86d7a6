"""Pictures by the names that annotations use, from a folder, from zip archives without unpacking, or both."""

from __future__ import annotations

import os
import struct
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lavis_ext.common.errors import IntegrityError
from lavis_ext.common.files import open_file, read_file
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.packed import PACKED_NAME, PackedImages

if TYPE_CHECKING:
    from lavis_ext.datasets.readers.bundled import EncodedImages

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})


class ImageStore:
    """Pictures below `root`, then in `archives` (default: the zips that lie in `root`, else beside it).

    A name that does not exist as given is looked up below `layouts`, the folders in which a card says that pictures lie
    (default: those directly below the root, where the name stands in one only); then by its tails (`b/c.jpg`, `c.jpg`),
    below the root and declared layouts: that finds Visual Genome's two folders, and absolute paths of another machine.
    Where the folder of a name is there as given, only that very file counts, and no tail is sought in a folder that
    nobody declared: another folder may have another picture of that name. Names never lead out of the root.

    `FILE.parquet!COLUMN/ROW` is a picture in a table below the root (`readers/packed.py`), `FILE.csv!COLUMN/ROW` one
    in base64 (`readers/bundled.py`). The root may be a zip itself.
    """

    def __init__(
        self, root: str | Path, archives: Iterable[str | Path] | None = None, layouts: Sequence[str] | None = None
    ) -> None:
        self.root = Path(root)
        self._given = None if archives is None else tuple(Path(path) for path in archives)
        self._layouts = None if layouts is None else tuple(layouts)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageStore, (self.root, self._given, self._layouts)

    @cached_property
    def archives(self) -> tuple[Path, ...]:
        """The zip files that are read from."""
        if self._given is not None:
            return self._given
        if self.root.suffix.lower() == ".zip" and self.root.is_file():
            return (self.root,)
        near = sorted(self.root.glob("*.zip"))
        return tuple(near or ([] if self.root.is_dir() else sorted(self.root.parent.glob("*.zip"))))

    @property
    def ready(self) -> bool:
        """Whether there is a folder or an archive."""
        return self.root.is_dir() or bool(self.archives)

    @cached_property
    def places(self) -> tuple[ImageSource, ...]:
        """The folder first, then the archives."""
        folder: list[ImageSource] = [ImageFolder(self.root)] if self.root.is_dir() else []
        return (*folder, *(ZipArchive(path) for path in self.archives))

    @cached_property
    def layouts(self) -> tuple[str, ...]:
        """Folders in which the tails of a name are looked up, the root first."""
        if self._layouts is not None:
            return "", *self._layouts
        below = {path.name for path in self.root.iterdir() if path.is_dir()} if self.root.is_dir() else set()
        for place in self.places:
            below |= {folder.partition("/")[0] for folder in place.folders} if isinstance(place, ZipArchive) else set()
        return "", *sorted(name for name in below if name and not name.startswith("."))

    def read(self, name: str) -> bytes:
        """The bytes of a picture; raises SampleError if it is missing, unreadable or its name leads elsewhere."""
        place, member = self.find(name)
        return place.read(member)

    def exists(self, name: str) -> bool:
        """Whether `read` would find a file."""
        try:
            self.find(name)
        except SampleError:
            return False
        return True

    def where(self, name: str) -> str:
        """The path that `read` would open, else the one that it would look for first."""
        try:
            place, member = self.find(name)
        except SampleError as error:
            return error.path
        return place.where(member)

    def names(self) -> Iterator[str]:
        """Relative names of all pictures, each once."""
        seen: set[str] = set()
        for place in self.places:
            for name in place.names():
                if name not in seen and Path(name).suffix.lower() in SUFFIXES:
                    seen.add(name)
                    yield name

    def find(self, name: str) -> tuple[ImageSource | PackedImages | EncodedImages, str]:
        """The place that holds a picture and its name there; raises SampleError if none does."""
        parts = self._parts(name)
        if packed := PACKED_NAME.match("/".join(parts)):
            table, _, member = "/".join(parts).rpartition("!")
            if (self.root / packed[1]).is_file():
                return self._table(table), member
            raise SampleError(name, f"{self.root}/{table}", "image is missing")
        for number, candidate in enumerate(candidates(parts, lambda: self.layouts, self._layouts is not None)):
            several = [candidate] if isinstance(candidate, str) else candidate
            found = [(place, one) for one in several for place in self._within(one) if place.has(one)]
            if len({one for _, one in found}) > 1:
                what = f"image name stands for several files: {', '.join(one for _, one in found[:3])}"
                raise SampleError(name, f"{self.root}/{'/'.join(parts)}", what)
            if found:
                return found[0]
            if number == 1 and len(parts) > 1 and self._within("/".join(parts)):
                break
        raise SampleError(name, f"{self.root}/{'/'.join(parts)}", "image is missing")

    def _within(self, candidate: str) -> list[ImageSource]:
        """The places in which the folder of a name is."""
        return [place for place in self.places if place.has_folder(candidate.rpartition("/")[0])]

    def _table(self, name: str) -> PackedImages | EncodedImages:
        if name not in self._tables:
            from lavis_ext.datasets.readers.bundled import EncodedImages

            table = name.lower().endswith((".parquet", ".arrow"))
            self._tables[name] = PackedImages(self.root / name) if table else EncodedImages(self.root / name)
        return self._tables[name]

    @cached_property
    def _tables(self) -> dict[str, PackedImages | EncodedImages]:
        return {}

    def _parts(self, name: str) -> list[str]:
        if not isinstance(name, str) or not name.strip("/") or "\0" in name:
            raise SampleError(str(name), str(self.root), "image name is missing or not a name")
        name = name.removeprefix(f"{self.root}/")
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts:
            raise SampleError(name, str(self.root), "image name leads out of its folder")
        return parts


def candidates(parts: Sequence[str], layouts: Callable[[], Sequence[str]], declared: bool) -> Iterator[str | list[str]]:
    """Where a name may stand, in order; a list are places of which only one may hold it. See `ImageStore`."""
    whole = "/".join(parts)
    yield whole  # before `layouts`: listing a folder of a million files takes a second
    yield spellings(whole)
    below = [f"{layout}/{whole}" for layout in layouts() if layout]
    yield from below if declared else [below]
    for start in range(1, len(parts)):
        tail = "/".join(parts[start:])
        yield tail
        yield spellings(tail)
        yield from (f"{layout}/{tail}" for layout in layouts() if layout and declared)


def spellings(name: str) -> list[str]:
    """Other spellings of the same name, as systems and programs differ in them.

    Letters composed or not (macOS), the name or its suffix in capitals or not (cameras), or no suffix at all.
    """
    forms = [name] if name.isascii() else [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    suffix = os.path.splitext(name)[1]  # noqa: PTH122 - a name below a folder, not a path
    folder, slash, last = name.rpartition("/")
    forms += [folder + slash + last.lower(), folder + slash + last.upper()]
    if suffix.lower() in SUFFIXES:
        ends = (suffix, suffix.lower(), suffix.upper())
        forms += [form[: -len(suffix)] + end for form in forms for end in ends]
    else:
        forms += [form + end for form in forms for end in sorted(SUFFIXES)]
    return [form for form in dict.fromkeys(forms) if form != name]


class ImageSource(Protocol):
    """A folder or an archive: files by relative name with `/`."""

    def has(self, name: str) -> bool:
        """Whether the file is there."""

    def has_folder(self, name: str) -> bool:
        """Whether files can lie in that folder; `""` is the root."""

    def read(self, name: str) -> bytes:
        """The bytes of a file that is there."""

    def where(self, name: str) -> str:
        """Where the file is, for messages."""

    def names(self) -> Iterator[str]:
        """The relative names of all files."""


class ImageFolder:
    """Files below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, bool] = {}

    def has(self, name: str) -> bool:
        """Whether it is a file."""
        return os.path.isfile(f"{self.root}/{name}")  # noqa: PTH113 (a third of Path.is_file's time, per sample)

    def has_folder(self, name: str) -> bool:
        """Whether it is a directory; cached, so that a long absolute name costs one stat per folder."""
        if name not in self._known:
            self._known[name] = os.path.isdir(f"{self.root}/{name}")  # noqa: PTH112 (Path raises for names too long)
        return self._known[name]

    def read(self, name: str) -> bytes:
        """The bytes of the file; raises SampleError if it cannot be read."""
        try:
            return read_file(f"{self.root}/{name}")
        except OSError as error:
            raise SampleError(name, self.where(name), f"image cannot be read: {error.strerror}") from error

    def where(self, name: str) -> str:
        """The full path."""
        return f"{self.root}/{name}"

    def names(self) -> Iterator[str]:
        """Relative names of all files below, by folder, sorted."""
        for folder, inner, files in os.walk(self.root):
            inner.sort()
            base = Path(folder).relative_to(self.root)
            yield from ((base / file).as_posix() for file in sorted(files))

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_known": {}}


LOCAL_HEADER = struct.Struct("<4s5H3I2H")
MAX_MEMBER = 1 << 30
ENCRYPTED = 0x1
BAD_ZIP = (
    *(OSError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError),
    *(ValueError, EOFError, struct.error, OverflowError, IndexError),
)
"""What zipfile raises for damaged directories, and for kinds of zip that it does not know."""


class ZipArchive:
    """The files of one zip by name; its directory is read once, on first use. Pickled as its path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return ZipArchive, (self.path,)

    @cached_property
    def members(self) -> dict[str, ZipEntry]:
        """Name → entry, without folders; raises IntegrityError for a file that is not a whole zip."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = [info for info in archive.infolist() if info.filename and not info.filename.endswith("/")]
        except BAD_ZIP as error:
            raise IntegrityError(str(self.path), f"not a whole zip file ({error})", "fetch it again") from error
        return {
            i.filename: ZipEntry(i.header_offset, i.compress_size, i.file_size, i.compress_type, i.CRC, i.flag_bits)
            for i in infos
        }

    @cached_property
    def folders(self) -> frozenset[str]:
        """Every folder that a member lies in, without trailing slash; `""` is the root."""
        return frozenset(name.rpartition("/")[0] for name in self.members) | {""}

    @cached_property
    def _file(self) -> PositionalFile:
        return PositionalFile(self.path)

    def has(self, name: str) -> bool:
        """Whether a file of that name is in the archive."""
        return name in self.members

    def has_folder(self, name: str) -> bool:
        """Whether a file lies directly in that folder."""
        return name in self.folders

    def where(self, name: str) -> str:
        """Where a member is, for messages: `archive.zip!name`."""
        return f"{self.path}!{name}"

    def names(self) -> Iterator[str]:
        """The names of all files, in the order of the archive."""
        return iter(self.members)

    def read(self, name: str) -> bytes:
        """The bytes of a member, checked against its CRC; raises SampleError if they are damaged."""
        member = self.members[name]
        if member.flags & ENCRYPTED or max(member.size, member.packed) > MAX_MEMBER:
            raise SampleError(name, self.where(name), "archive member is encrypted or larger than 1 GiB")
        try:
            data = self._unpack(member)
        except (OSError, zlib.error, struct.error, ValueError, OverflowError) as error:
            raise SampleError(name, self.where(name), f"archive member is damaged: {error}") from error
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise SampleError(name, self.where(name), "archive member is damaged: its CRC does not match")
        return data

    def _unpack(self, member: ZipEntry) -> bytes:
        header = LOCAL_HEADER.unpack(self._file.read_at(member.offset, LOCAL_HEADER.size))
        packed = self._file.read_at(member.offset + LOCAL_HEADER.size + header[9] + header[10], member.packed)
        if header[0] != b"PK\x03\x04":
            raise ValueError("no local header where the directory says")
        if member.method == zipfile.ZIP_STORED:
            return packed
        if member.method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.size + 1)
        raise ValueError(f"compression method {member.method} is not read here")


class ZipEntry(NamedTuple):
    """One file of the archive: the offset of its local header, sizes in bytes, and what its directory entry says."""

    offset: int
    packed: int
    size: int
    method: int
    crc: int
    flags: int


class PositionalFile:
    """A file that several threads read at once.

    A memory map would hold the GIL at each page that is read from disk; `pread` releases it.
    """

    def __init__(self, path: Path) -> None:
        self._stream = open_file(path)
        self._lock = threading.Lock()

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the end of the file."""
        size = max(0, min(size, os.fstat(self._stream.fileno()).st_size - offset))  # a directory may claim terabytes
        if hasattr(os, "pread"):
            return os.pread(self._stream.fileno(), size, offset)
        with self._lock:
            self._stream.seek(offset)
            return self._stream.read(size)
