"""The partial file beside its target and the sidecar that says which bytes of which object it holds.

Each owner has a pair of its own, `name.part.TOKEN` and `name.part.TOKEN.json`, so that one which was taken over and
wakes writes and truncates nothing of another's. While nobody owns the file its bytes wait as `name.part` and
`name.part.json`. A sidecar is a line of JSON, and behind it, while the file grows, a line `start stop` for each block.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import threading
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lavis_ext.common.files import decode_json
from lavis_ext.fetch.ranges import Ranges, cut
from lavis_ext.fetch.readback import ReadBack
from lavis_ext.fetch.safety import identity
from lavis_ext.fetch.session import Flusher, Validators
from lavis_ext.fetch.transfer import Failure, Figures, Source

if TYPE_CHECKING:
    from lavis_ext.fetch.lock import Ownership

log = logging.getLogger(__name__)
FORMAT = 1
LONGEST_NAME = 255 - len(".part.0123456789abcdef.json.tmp")
COPIED = 1 << 20
ROOM = 1 << 16
"""Bytes that are given back on a full disk for the sidecar: more than a block of any file system in use."""
LINES = 4096
"""Blocks after which a sidecar is written anew."""
_COMPARABLE: set[str] = set()
"""Folders whose files were seen to keep their numbers."""


def companion(path: Path, suffix: str) -> Path:
    """`name` + suffix beside a file; a name too long for that is shortened, with a digest so that it stays unique."""
    name = path.name
    if len(name) > LONGEST_NAME or (not name.isascii() and len(os.fsencode(name)) > LONGEST_NAME):
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = f"{os.fsencode(name)[:100].decode('utf-8', 'ignore')}-{digest}"
    return path.with_name(name + suffix)


@cache
def boot_id() -> str:
    """The kernel's id of this boot of the machine, "" where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


class PartNames(NamedTuple):
    """A partial file and its sidecar."""

    path: Path
    sidecar: Path

    @classmethod
    def of(cls, target: Path, token: str = "") -> PartNames:
        """The pair of an owner, or with no token the one that nobody owns."""
        suffix = f".part.{token}" if token else ".part"
        return cls(companion(target, suffix), companion(target, f"{suffix}.json"))

    @property
    def temporary(self) -> Path:
        """The name under which the sidecar is written anew."""
        return self.sidecar.with_name(self.sidecar.name + ".tmp")

    def remove(self) -> None:
        """Delete both, and a sidecar that a kill left half written; raises OSError."""
        for name in (self.path, self.sidecar, self.temporary):
            name.unlink(missing_ok=True)


def leftovers(target: Path) -> dict[str, PartNames]:
    """Token → pair, of every owner that left one; the folder is listed, so only where there was another owner."""
    prefix = companion(target, ".part.").name
    tokens = re.compile(re.escape(prefix) + r"([0-9a-f]{16})(?:\.json)?(?:\.tmp)?")
    with os.scandir(target.parent) as entries:
        found = [tokens.fullmatch(entry.name) for entry in entries if entry.name.startswith(prefix)]
    return {name[1]: PartNames.of(target, name[1]) for name in found if name is not None}


def read_sidecar(path: Path) -> dict[str, Any]:
    """What a sidecar says, the blocks behind its first line among `done`; raises OSError, ValueError, TypeError."""
    head, *lines = path.read_bytes().split(b"\n")
    state = dict(decode_json(head))
    done = [(int(start), int(stop)) for start, stop in state["done"]]
    for line in lines[:-1]:  # behind the last newline a kill may have left half a line
        start, _, stop = line.partition(b" ")
        done.append((int(start), int(stop)))
    return {**state, "done": list(Ranges(done))}


class Part:
    """The partial file of one owner, or without one the pair that nobody owns.

    The bytes that were left (by the last owner, or by one that was killed) are continued: renamed where nobody can
    write them any more, else copied. A line of the sidecar is written after the bytes that it lists, at least every
    half `block`, and of all connections one writes at a time, at most as much: a killed process loses less than a block
    of what it had written.
    The sidecar holds no query string. With `summed` what is written can be compared with what lies on the disk then.
    """

    def __init__(self, target: Path, block: int, owner: Ownership | None = None, summed: bool = False) -> None:
        self.target = target
        self.path, self.sidecar = PartNames.of(target, owner.token if owner else "")
        self.ranges = Ranges()
        self.url = ""
        self.equivalence = ""
        self.validators = Validators()
        self.total: int | None = None
        self._owner = owner
        self._boot = boot_id()
        self._written_on: str | None = None
        """The boot on which the sidecar that was found was written."""
        self._block = block
        self._pending = Ranges()
        """Bytes that no sidecar lists yet."""
        self._sums: dict[int, tuple[int, int]] | None = {} if summed else None
        """Offset → length and CRC-32 of each piece as it came."""
        self._lines = -1
        """How many blocks stand behind the first line of the sidecar; -1: it has to be written anew."""
        self._log = -1
        self._noted = owner is None
        """Whether there may be a sidecar; under the name of an owner there is none before its first line."""
        self._lock = threading.Lock()
        self._read_back: ReadBack | None = None
        self._comparable = True  # while what was left is opened, which may begin anew
        self.fd = -1
        try:
            self._open()
            self._comparable = self._is_comparable()
        except BaseException:  # a disk that is too full for a copy, say
            self._forget()
            if owner is not None:
                PartNames(self.path, self.sidecar).remove()
            raise

    # What was left

    def _open(self) -> None:
        """Continue what was left, or begin; raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        if self._owner is None:
            self.fd = os.open(self.path, flags, 0o666)
            self._load(PartNames(self.path, self.sidecar))
            return
        left = {"": PartNames.of(self.target)}
        if self._owner.replaced:
            left |= leftovers(self.target)
            left.pop(self._owner.token, None)
        sizes = {token: self._size_of(names) for token, names in left.items()}
        for token in sorted((token for token in left if sizes[token] is not None), key=lambda one: -(sizes[one] or 0)):
            if self.fd < 0 and self._load(left[token]):
                safe = not token or token in self._owner.gone
                (self._adopt if safe else self._copy)(left[token], flags)
        if self.fd < 0:
            self.fd = os.open(self.path, flags | os.O_TRUNC, 0o666)
        for token, names in left.items():
            if sizes[token] is not None or token:
                names.remove()
            elif os.path.lexists(names.sidecar):  # looked at first, since it hardly ever is: that needs no lock
                names.sidecar.unlink(missing_ok=True)

    def _size_of(self, names: PartNames) -> int | None:
        """Bytes that its sidecar lists, 0 if none can be read; None where there is no partial file."""
        if not names.path.exists():
            return None
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return Ranges(read_sidecar(names.sidecar)["done"]).covered
        return 0

    def _adopt(self, left: PartNames, flags: int) -> None:
        """Take a file that nobody writes; the sidecar comes first, so that a kill in between loses nothing."""
        self._save()
        left.path.rename(self.path)
        self.fd = os.open(self.path, flags, 0o666)

    def _copy(self, left: PartNames, flags: int) -> None:
        """Copy a file whose owner is silent, but may wake; it then finds that its file is gone."""
        before = left.sidecar.read_bytes()
        self.fd = os.open(self.path, flags | os.O_TRUNC, 0o666)
        with left.path.open("rb", buffering=0) as source:
            for start, stop in cut(self.ranges, COPIED):
                _write_all(self.fd, os.pread(source.fileno(), stop - start, start), start)
        try:
            same = left.sidecar.read_bytes() == before and os.fstat(self.fd).st_size >= self.ranges.stop
        except FileNotFoundError:
            same = False
        if same:
            self._save()
        else:  # it woke meanwhile
            self.reset()

    def _load(self, names: PartNames) -> bool:
        """Whether there is something to continue, by the sidecar; it is read into this object."""
        size = names.path.stat().st_size
        if not size:
            names.sidecar.unlink(missing_ok=True)
            return False
        try:
            self._restore(read_sidecar(names.sidecar), size)
            return True
        except FileNotFoundError:
            log.warning("%s: starting over: there is no record of what it holds", names.path.name)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s: starting over: its record cannot be read (%s)", names.path.name, error)
        if self.fd >= 0:
            self.reset()
        return False

    def _restore(self, state: dict[str, Any], size: int) -> None:
        ranges, total = Ranges(state["done"]), state["size"]
        if state["format"] != FORMAT or ranges.stop > size or not isinstance(total, int | None):
            raise ValueError("it does not fit the file")
        self.url, self.equivalence = str(state["url"]), str(state["equivalence"])
        self.validators = Validators(state["etag"], state["last_modified"])
        self.ranges, self.total, self._written_on = ranges, total, state.get("boot")

    # The end

    def close(self) -> None:
        """Leave what can be continued for the next owner, else nothing; raises OSError."""
        if self.fd < 0:
            return
        mine, left = PartNames(self.path, self.sidecar), PartNames.of(self.target)
        try:
            if not self.ranges.covered or not self.intact() or (self._owner is not None and not self._owner.holds()):
                mine.remove()
                return
            self._save_for_the_next()
            if mine != left:
                left.sidecar.unlink(missing_ok=True)
                give_name(mine.sidecar, left.sidecar)  # both names until the file is renamed, for a kill in between
                self.path.rename(left.path)
                mine.sidecar.unlink(missing_ok=True)
        finally:
            self._forget()

    def _save_for_the_next(self) -> None:
        """`save`; on a full disk the lines that are there list nearly all, and where there are none room is made."""
        try:
            self.save()
        except OSError as error:
            if self.sidecar.exists() or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                log.warning("%s: its record is not renewed: %s", self.path.name, error.strerror)
                return
            with self._lock:
                self.ranges.clip(max(0, self.ranges.stop - ROOM))
                os.ftruncate(self.fd, self.ranges.stop)
                self._save()

    def _forget(self) -> None:
        self._stop_reading()
        for descriptor in (self.fd, self._log):
            if descriptor >= 0:
                os.close(descriptor)
        self.fd = self._log = -1

    def intact(self, seen: os.stat_result | None = None) -> bool:
        """Whether the name of the partial file still means the file that is written, which was `seen` so just now."""
        return not self._comparable or self._same_inode(seen)

    def _same_inode(self, seen: os.stat_result | None = None) -> bool:
        try:
            return os.path.samestat(self.path.stat(), seen or os.fstat(self.fd))
        except OSError:
            return False

    def _is_comparable(self) -> bool:
        """Whether a file keeps its number: some user-space file systems number it anew at each look."""
        folder = os.path.dirname(self.path)  # noqa: PTH120 - as text, for each of many files
        if folder in _COMPARABLE or not self._same_inode():
            return folder in _COMPARABLE
        _COMPARABLE.add(folder)
        return True

    def altered(self) -> bool:
        """Whether what lies on the disk is not what was written since the last `reset`; raises OSError."""
        pieces = (self._sums or {}).items()
        return any(zlib.crc32(os.pread(self.fd, size, at)) != crc for at, (size, crc) in pieces)

    def publish(
        self, flusher: Flusher | None, note: Callable[[os.stat_result], None], seen: os.stat_result | None = None
    ) -> None:
        """Make the part the target: give it the name, flush the folder if asked, forget the sidecar; raises OSError.

        `note` is told how it lies there, by its descriptor: the name may mean a file of the user's a moment later. A
        file that has appeared at the target is never replaced: FileExistsError.
        """
        if not self.intact(seen):
            raise Failure("integrity", "the partial file was replaced by another file while it was fetched")
        give_name(self.path, self.target)
        self.path.unlink(missing_ok=True)
        note(os.fstat(self.fd))
        self._forget()
        if flusher is not None:
            flusher.named(self.target.parent)
        if self._noted:
            self.sidecar.unlink(missing_ok=True)

    def reset(self) -> int:
        """Discard the bytes; returns how many there were. The sidecar that lists them is removed first."""
        self._stop_reading()
        with self._lock:
            lost = self.ranges.covered
            self.sidecar.unlink(missing_ok=True)
            if not self.intact():
                self._forget()
                self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            os.ftruncate(self.fd, 0)
            self.ranges, self.total, self.validators, self.url = Ranges(), None, Validators(), ""
            self._pending, self._lines = Ranges(), -1
            self._sums = None if self._sums is None else {}
        return lost

    def resume_condition(self, source: Source, figures: Figures) -> str | None:
        """The `If-Range` condition under which the bytes that are there are continued from `source`.

        None where a declared hash decides about the result, or nothing is there. Bytes that may not be continued are
        discarded: `wget -c`, `curl -C -` and `aria2c -c` join the halves of two versions, and exit with 0.
        """
        if not self.ranges.covered:
            return None
        reason = self._obstacle(source, figures)
        if reason:
            log.warning("%s: starting over: %s", self.path.name, reason)
            self.reset()
            return None
        self._written_on = self._boot
        if self.url == identity(source.url):
            return self.validators.strong
        return None if figures.hashed else self.validators.strong

    def record_validators(self, source: Source, validators: Validators, total: int | None) -> None:
        """Record of which object the bytes are."""
        with self._lock:
            before = self.url, self.equivalence, self.validators, self.total
            self.url, self.equivalence = identity(source.url), source.equivalence
            self.validators = validators
            self.total = total if total is not None else self.total
            if before != (self.url, self.equivalence, self.validators, self.total):
                self._lines = -1

    def allocate(self) -> None:
        """Give the file its final length (sparse), for segments that are written out of order."""
        if self.total is not None:
            os.ftruncate(self.fd, self.total)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes at `offset` and count them as there; raises OSError, OwnedError where another has taken over."""
        if self._owner is not None:
            self._owner.require(now=False)
        crc = 0 if self._sums is None else zlib.crc32(data)
        with self._lock:  # held while it writes: what several write at once would be lost together
            at = offset + _write_all(self.fd, data, offset)
            if self._sums is not None:
                self._sums[offset] = len(data), crc
            self.ranges.add(offset, at)
            self._pending.add(offset, at)
            if self._read_back is not None:
                self._read_back.advance(self.ranges.prefix)
            if self._pending.covered >= self._block // 2:
                self._note()

    def read_back(self, md5: bool, flush: bool) -> None:
        """Hash what is there, and flush it where asked, while the rest comes."""
        if self._read_back is not None and not self._read_back.takes(md5):
            self._stop_reading()
        if self._read_back is None:
            self._read_back = ReadBack(self.fd, md5, flush)
            self._read_back.advance(self.ranges.prefix)

    def digests(self, size: int, tick: Callable[[], None]) -> tuple[str, str | None] | None:
        """(sha256, md5 or None) of the file as it lies there, None where they are not taken yet; raises as `finish`."""
        found, self._read_back = self._read_back, None
        if found is None:
            return None
        if size == self.ranges.prefix:
            return found.finish(size, tick)
        found.close()
        return None

    def _stop_reading(self) -> None:
        if self._read_back is not None:
            self._read_back.close()
        self._read_back = None

    def save(self) -> None:
        """Write the sidecar now; raises OSError."""
        with self._lock:
            self._save()

    def _note(self) -> None:
        """List the pending bytes: by lines behind the sidecar's first one, or in a new sidecar."""
        if not 0 <= self._lines < LINES:
            self._save()
            return
        if self._log < 0:
            self._log = os.open(self.sidecar, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))
        lines = "".join(f"{start} {stop}\n" for start, stop in self._pending).encode()
        if os.write(self._log, lines) < len(lines):
            self._lines = -1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.sidecar))
        self._lines += 1
        self._pending = Ranges()

    def _save(self) -> None:
        state = {
            "format": FORMAT,
            "url": self.url,
            "equivalence": self.equivalence,
            "etag": self.validators.etag,
            "last_modified": self.validators.last_modified,
            "size": self.total,
            "boot": self._boot if self._written_on is None else self._written_on,
            "done": list(self.ranges),
        }
        temporary = PartNames(self.path, self.sidecar).temporary
        self._noted = True
        try:
            temporary.write_text(json.dumps(state) + "\n", "utf-8")
            temporary.replace(self.sidecar)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if self._log >= 0:
            os.close(self._log)
        self._log, self._lines, self._pending = -1, 0, Ranges()

    def _obstacle(self, source: Source, figures: Figures) -> str | None:
        """Why the bytes that are there may not be continued from this source, or None."""
        size = os.fstat(self.fd).st_size
        if figures.size is not None and size > figures.size:
            return f"{size} bytes are there, the file has {figures.size}"
        if None not in (figures.size, self.total) and figures.size != self.total:
            return f"it was of an object of {self.total} bytes"
        if not figures.hashed and self._written_on is not None and self._written_on != self._boot:
            return "the machine was restarted since, and no hash is declared"
        if self.url == identity(source.url):
            return None if figures.hashed or self.validators.strong else "no hash is declared, nor a version named"
        if not (source.exact and self.equivalence == "byte_exact"):
            return "it came from a source with other bytes"
        etag = self.validators.etag
        return None if figures.hashed or (etag and not etag.startswith("W/")) else "it came from another source"


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> int:
    """Write all of `data` at `offset`; returns how many bytes that were."""
    view, at = memoryview(data), offset
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
    return at - offset


def give_name(path: Path, name: Path) -> None:
    """Give a file another name too, if that is free (FileExistsError).

    It is renamed where there are no hard links: FAT, some FUSE and SMB mounts, which answer with many an error.
    """
    try:
        os.link(path, name)
    except FileExistsError:
        raise
    except OSError as error:
        if name.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from error
        path.rename(name)
