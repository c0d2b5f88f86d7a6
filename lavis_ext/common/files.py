"""Atomic writes, flushed before the rename, and OSErrors as DiskErrors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import threading
import time
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import DiskError, near

CHUNK = 1 << 20
NEAR, MOST_BESIDE = 0.75, 500
"""How like a path a name must be to be suggested (at 0.6 `captions.csv` is `vg_caption`), and how many are asked."""


def to_disk_error(error: Exception, path: Path, way_out: str) -> DiskError:
    """The DiskError of a failed write; it says whether space, inodes or the quota are used up.

    `way_out` names another place; freeing space is added where that would help. Of a link to nothing on the way it says
    where that leads: a disk that is not mounted, most often.
    """
    number = getattr(error, "errno", None)
    reason, first = str(getattr(error, "strerror", None) or error), ""
    link = next((one for one in (path, *path.parents) if is_dangling(one)), None)
    if link is not None:
        what = f"is a link to {os.readlink(link)}, which is not there"  # noqa: PTH115 - as it is written
        return DiskError(str(link), what, f"mount or make that, or remove the link; or {way_out}")
    if number == errno.EDQUOT:
        reason, first = "quota exceeded", "free space, or "
    elif number == errno.ENOSPC:
        disk = os.statvfs(next(one for one in (path, *path.absolute().parents) if one.exists()))
        full = disk.f_files > 0 and disk.f_favail == 0
        reason, first = ("out of inodes", "remove files, or ") if full else ("no space left", "free space, or ")
    elif number is None:  # a library's own error, which does not say
        first = "free space, or "
    return DiskError(str(path), f"cannot write: {reason}", f"{first}{way_out}")


@contextmanager
def disk_errors(
    path: Path, way_out: str = "choose another folder", also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn an OSError inside the block into a DiskError that names `path`, or the file below it that failed.

    `way_out` names another place; `also` are what libraries make of one: torch a RuntimeError, safetensors a
    SafetensorError.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except kinds as error:
        name = getattr(error, "filename", None)
        failed = Path(name) if isinstance(name, str) else path
        raise to_disk_error(error, failed if failed.is_relative_to(path) else path, way_out) from error


@contextmanager
def read_errors(path: Path, way_out: str = "check that it is there and that you may read it") -> Iterator[None]:
    """Turn an OSError of reading inside the block into a DiskError that names `path`."""
    try:
        yield
    except OSError as error:
        looked = f": {path.absolute()}" if isinstance(error, FileNotFoundError) and not path.is_absolute() else ""
        raise DiskError(str(path), f"cannot be read: {error.strerror or error}{looked}", way_out) from error


def expanded(path: str | Path) -> Path:
    """A path with `~` expanded, as a shell does it: that of a user who is not there stays, and names nothing."""
    try:
        return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises RuntimeError)
    except ValueError:  # a NUL or half a character in the user's name: whoever opens it says so
        return Path(path)


def is_pathlike(text: str) -> bool:
    """Whether a text can only be meant as a path: it has a separator or a suffix, or starts as a shell's do."""
    return "/" in text or text.startswith(("~", ".")) or bool(Path(text).suffix)


def not_there(
    given: str | Path, kind: str = "file or folder", names: Iterable[str] = (), otherwise: str = ""
) -> tuple[str, str]:
    """What is wrong with a path that is not there, with the place that was looked at, and the way out.

    Suggested is what is really like it of `names` or of what lies beside it, else `otherwise`.
    """
    path, place = expanded(given), ""
    with suppress(OSError):  # the folder that we are in may be gone
        place = str(path.absolute())
    beside: list[str] = []
    with suppress(OSError, ValueError), os.scandir(path.parent) as entries:
        beside = [entry.name for entry in islice(entries, MOST_BESIDE)]
    folder = "" if path.parent == Path() else f"{path.parent}/"
    found = near(str(given), names, NEAR) or near(path.name, beside, NEAR, folder)
    what = f"no such {kind}" + (f": {place}" if place not in ("", str(given)) else "")
    return what, found or otherwise or "check its spelling, and the folder that you are in"


def checked_path(path: Path) -> Path:
    """The path; raises ValueError where no file system takes it: a NUL, a lone surrogate, a name of over 255 bytes."""
    encoded = os.fsencode(path)  # UnicodeEncodeError is a ValueError
    if b"\0" in encoded:
        raise ValueError("it holds a NUL")
    if len(encoded) > 4095 or any(len(name) > 255 for name in encoded.split(b"/")):
        raise ValueError("a name in it is too long")
    return path


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_dangling(path: Path) -> bool:
    """Whether it is a link to nothing, or to itself."""
    return os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114 - of any text, without an error


def open_file(path: str | Path) -> FileIO:
    """A file, open for reading, unbuffered; raises OSError, also of what may have no end: a pipe, a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return FileIO(descriptor)
    os.close(descriptor)
    number = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
    raise OSError(number, os.strerror(number) if number == errno.EISDIR else "is not a file", str(path))


def read_file(path: str | Path) -> bytes:
    """All bytes of a file; raises OSError, as `open_file`, and of a log of the kernel, which says that it is a file."""
    with open_file(path) as file:
        data = file.read()
    if data is None:
        raise OSError(errno.EINVAL, "is not a file: it has no end", str(path))
    return data


def read_bounded(path: str | Path, most: int) -> bytes:
    """The first `most` bytes of a file; raises OSError, as `read_file`."""
    with open_file(path) as file:
        data = bytearray()
        while len(data) < most:
            piece = file.read(min(CHUNK, most - len(data)))
            if piece is None:
                raise OSError(errno.EINVAL, "is not a file: it has no end", str(path))
            if not piece:
                break
            data += piece
        return bytes(data)


def size_of(entry: os.DirEntry[str]) -> int | None:
    """The size of a regular file, links followed; None of anything else, as of a link to nothing or to itself."""
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:
        return None


def folded(name: str) -> str:
    """A name as file systems see it that know neither case nor Unicode form: NFC and case folded."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{8})-)?([0-9]+)-[0-9]+\.tmp")
STALE_S = 24 * 3600.0
"""Seconds after which a temporary file of a process that nothing is known of is nobody's any more."""
_SWEPT: set[Path] = set()


@cache
def _place() -> str:
    """Names this boot of the machine and its pid namespace, in which a pid means something."""
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - not a file
    return f"{zlib.crc32('/'.join(parts).encode()):08x}"


def remove_stale(folder: Path) -> None:
    """Remove temporary files of `replacing` whose process was killed; a folder is looked through once a process."""
    if folder in _SWEPT:
        return
    _SWEPT.add(folder)
    with suppress(OSError):
        for entry in os.scandir(folder):
            if (found := TEMPORARY.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False):
                here = found[1] == _place()
                if _is_gone(int(found[2])) if here else abs(time.time() - entry.stat().st_mtime) > STALE_S:
                    os.unlink(entry.path)  # noqa: PTH108 - of a listing


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary name to write a file to, which takes the place of `path` when the block ends well.

    A reader, and a crash, sees the old or the new content; nothing is left of a block that failed. Raises OSError.
    What is easily made again need not be `durable`: it is not flushed, which costs milliseconds a file.
    """
    stem = os.fsencode(path.name)[:200].decode(errors="ignore")  # names hold 255 bytes
    temporary = path.with_name(f".{stem}.{_place()}-{os.getpid()}-{threading.get_native_id()}.tmp")
    remove_stale(path.parent)
    try:
        yield temporary
        if durable:
            flush_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        flush_folder(path.parent)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by a text or bytes, as `replacing`, and make its folder; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def decode_json(data: str | bytes) -> Any:
    """The value of a JSON text; raises ValueError for everything else, also where it is nested too deep to be read."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of a JSON value, indented; raises OSError."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where none can be read: absent, cut off, other bytes, nested too deep."""
    try:
        value = decode_json(read_file(path))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def apply_umask(folder: Path) -> None:
    """Give each file below a folder the mode of a new one: safetensors writes 0600 through a temporary file.

    File systems without modes are left alone.
    """
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            with suppress(OSError):
                file.chmod(mode)


def flush_file(path: Path) -> None:
    """Force a file's content to the disk; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power loss; raises OSError.

    File systems that cannot are left alone.
    """
    try:
        flush_file(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
