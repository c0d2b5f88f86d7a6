"""Which process writes a file: an owner file made with `O_EXCL`, whose mtime a heartbeat renews.

Not `flock`: on Lustre, GPFS and NFS it may succeed for two processes at once (huggingface_hub#4228).

An owner can lose a file without noticing: it is stopped, its machine sleeps, its mount hangs, and another takes over.
When it wakes it must do no harm. So what an owner writes bears its `token` in the name, and before it touches a name
that others use it asks `require`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

from lavis_ext.common.errors import DiskError, OwnedError
from lavis_ext.common.files import decode_json
from lavis_ext.fetch.part import PartNames, boot_id, companion, give_name, read_sidecar
from lavis_ext.fetch.transfer import Policy, disk_error

log = logging.getLogger(__name__)

HEARTBEAT = 2.0
"""Seconds between two touches of an owner file."""
POLL = 0.1
UNWRITTEN = 5.0
"""Seconds after which an owner file without content is stale."""
CHECKED = 0.1
"""Seconds for which an ownership that was looked at is taken as still held, where no file but ours is touched."""
LONGEST = 4096
"""Bytes of an owner file that are read."""
MANY = 8
"""Files of one folder from which on a run shares an owner file among them."""
Verdict = Literal["live", "watched", "silent", "gone"]


@dataclass(frozen=True)
class Identity:
    """A process: where and since when it runs; `token` is new for each ownership. The heartbeat is the file's mtime.

    `host` is the host's name, the pid namespace and a digest of the machine's id, joined by slashes.
    """

    pid: int
    host: str
    boot: str
    started: int
    token: str

    @property
    def runs_here(self) -> bool:
        """Whether its pid means something here: same boot, machine, name and pid namespace.

        A name alone says nothing (two nodes called `localhost`), nor does a machine id (cloned images share it).
        """
        return bool(self.boot) and (self.boot, self.host) == (boot_id(), _host())

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended, because it ran here; False where only its heartbeat can tell."""
        return self.runs_here and not _alive(self)


def _clock() -> float:
    """Seconds that have passed, those in which the machine slept too: others may have taken over meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def own_identity() -> Identity:
    """This process, with a fresh token."""
    pid = os.getpid()
    return Identity(pid, _host(), boot_id(), _own_start(pid), secrets.token_hex(8))


def is_abandoned(path: Path) -> bool:
    """Whether the process that an owner file names is gone, or there is no such file.

    Nothing is touched, for a listing: of an owner elsewhere its heartbeat is compared with this machine's clock, and so
    is the stamp of a file that a process was killed in making.
    """
    seen = None
    with contextlib.suppress(OSError, DiskError):
        seen = _see(path)
    if seen is not None and seen.owner is not None and seen.owner.runs_here:
        return seen.owner.is_gone
    unwritten = seen is not None and seen.content == b""
    try:
        return abs(time.time() - path.stat().st_mtime) > (UNWRITTEN if unwritten else Policy().owner_expiry)
    except OSError:
        return True


@cache
def _own_start(pid: int) -> int:
    """`_started` of this process; the pid is the key because a fork has another."""
    return _started(pid)


@cache
def _host() -> str:
    """Host name, pid namespace (containers of one machine do not see each other's pids), and the machine's id.

    The id is confidential by machine-id(5), so its digest stands here.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - not a file
    with contextlib.suppress(OSError):
        machine = Path("/etc/machine-id").read_bytes().strip()
        parts.append(hashlib.sha256(b"lavis_ext " + machine).hexdigest()[:12])
    return "/".join(parts)


def _started(pid: int) -> int:
    """Start time of a process in clock ticks since boot, by which a reused pid is found; 0 where it is not known.

    Of one that has ended and that nobody has waited for, a zombie, it is 0 too.
    """
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return 0 if state in ("Z", "X") else int(numbers[18])
    except (OSError, IndexError, ValueError):
        return 0


def _alive(owner: Identity) -> bool:
    try:
        os.kill(owner.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return owner.started == _started(owner.pid)


class _Heartbeat:
    """One thread per process that touches every owner file that the process holds.

    Through its descriptor, not its name: a process that was taken over must not keep its successor's file fresh.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[int] = set()
        self._thread: threading.Thread | None = None

    def add(self, descriptor: int) -> None:
        with self._lock:
            self._held.add(descriptor)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="fetch-heartbeat", daemon=True)
                self._thread.start()

    def remove(self, descriptor: int) -> None:
        """Stop touching a file, and close it."""
        with self._lock:
            self._held.discard(descriptor)
        os.close(descriptor)  # nobody touches it any more, and others need not wait for it

    def forget(self) -> None:
        """In a child after a fork: the files are the parent's, and would stay fresh when it is gone."""
        self.__init__()  # type: ignore[misc]  # the lock may be held by a thread that the child does not have

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with self._lock:
                for descriptor in self._held:
                    try:
                        os.utime(descriptor)
                    except OSError as error:
                        log.debug("no heartbeat: %s", error)


_HEARTBEAT = _Heartbeat()
os.register_at_fork(after_in_child=_HEARTBEAT.forget)


@dataclass(frozen=True)
class _Seen:
    """An owner file at one moment: its content (None where it may not be read), heartbeat and inode."""

    content: bytes | None
    beat: int
    inode: int

    @cached_property
    def owner(self) -> Identity | None:
        """Whom it names; None where it cannot be read (yet)."""
        try:
            found = Identity(**decode_json(self.content or b""))
        except (ValueError, TypeError, RecursionError):
            return None
        numbers = isinstance(found.pid, int) and isinstance(found.started, int) and found.pid > 0
        texts = all(isinstance(text, str) for text in (found.host, found.boot, found.token))
        named = texts and found.token.isprintable() and "/" not in found.token  # it stands in a file's name
        return found if numbers and named else None


def _see(path: Path) -> _Seen | None:
    """An owner file as it is now, None where there is none; raises OSError, DiskError where something else is there.

    It is opened, since on NFS that asks the server for the mtime, which is otherwise remembered for up to a minute.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    except PermissionError:
        found = path.stat()
        return _Seen(None, found.st_mtime_ns, found.st_ino)
    except FileNotFoundError:
        if path.is_symlink():
            raise DiskError(str(path), "is a link to nothing", f"delete {path}") from FileExistsError(errno.EEXIST, "")
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DiskError(str(path), "is not a file", f"move {path} away") from FileExistsError(errno.EEXIST, "")
        return _Seen(os.read(descriptor, LONGEST), found.st_mtime_ns, found.st_ino)
    finally:
        os.close(descriptor)


class SharedOwner:
    """One owner file in a folder, `.owner.TOKEN`, of which the owner files of many ownerships are hard links.

    So no file is made and deleted for each of them: ext4 without a journal looks at every inode that was deleted in the
    last minutes before it gives out one, which took half of a small file's time. It is itself a link to the owner file
    of the first, so neither it nor those of the others are ever empty; one heartbeat is that of all. A link is an owner
    file like any other, and what a killed process leaves of them goes as they do.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tried = False
        self._descriptor = -1
        self.path: Path | None = None
        """What to link; None before the first has its owner file, and where there are no hard links."""
        self.mine: Identity
        self.written: bytes

    def begin(self, path: Path, mine: Identity, written: bytes, descriptor: int) -> bool:
        """Share an owner file that was made: True where this one does, and so keeps it fresh."""
        with self._lock:
            if self._tried:
                return False
            self._tried = True
            shared = path.with_name(f".owner.{mine.token}")
            try:
                os.link(path, shared)
                if not os.path.samestat(shared.stat(), os.fstat(descriptor)):  # that of one which took over just now
                    shared.unlink()
                    return False
            except OSError as error:
                log.debug("%s: owner files are not shared: %s", path.parent, error)
                return False
            self._descriptor, self.mine, self.written, self.path = descriptor, mine, written, shared
        return True

    def close(self) -> None:
        """Remove the file; links that are left stay."""
        if self.path is not None and os.getpid() == self.mine.pid:  # else a fork, whose parent's it is
            _HEARTBEAT.remove(self._descriptor)
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


class SharedOwners:
    """The shared owner files of one run, of the folders that get many files; a context manager that removes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, int] = {}
        self._files: dict[str, SharedOwner] = {}

    def __enter__(self) -> SharedOwners:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def of(self, path: Path) -> SharedOwner | None:
        """That of a file's folder; None for its first files."""
        folder = os.path.dirname(path)  # noqa: PTH120 - as text, for each of many files
        with self._lock:
            asked = self._asked[folder] = self._asked.get(folder, 0) + 1
            return self._files.setdefault(folder, SharedOwner()) if asked >= MANY else None


class Ownership:
    """A context manager: inside it this process alone writes the file whose owner file is `path` (`name.part.owner`).

    A live owner is waited for while `watched` (a file, or by its token its partial file) changes, within the policy's
    bounds, else OwnedError; the owner file of a process that is gone, or whose heartbeat stands still, is replaced.
    Raises DiskError where none can be made. `waited` says whether there was another owner, `replaced` which tokens were
    taken over, and `gone` which of them cannot write any more.
    """

    def __init__(
        self,
        path: Path,
        watched: Path | Callable[[str], Path],
        policy: Policy,
        pause: Callable[[float], None] = time.sleep,
        shared: SharedOwner | None = None,
    ) -> None:
        self.path = path
        self._watched = watched
        self._policy = policy
        self._pause = pause
        self._shared = shared
        self._linked = shared.path if shared is not None else None
        if shared is not None and self._linked is not None:
            self._mine, self._written = shared.mine, shared.written
        else:
            self._mine = own_identity()
            self._written = json.dumps(vars(self._mine)).encode()
        self._file = -1
        """The descriptor by which the owner file is kept fresh; -1 where another one does that."""
        self._checked = 0.0
        self.waited = False
        self.replaced: list[str] = []
        self.gone: set[str] = set()

    @property
    def token(self) -> str:
        """What the names of this owner's own files bear."""
        return self._mine.token

    def __enter__(self) -> Ownership:
        try:
            self._acquire()
        except OSError as error:
            raise disk_error(error, self.path) from error
        if self._file >= 0:
            _HEARTBEAT.add(self._file)
            if self._shared is not None and self._shared.begin(self.path, self._mine, self._written, self._file):
                self._file = -1
        left = left_tokens(self.path, again=bool(self.replaced))
        self.replaced += sorted(left - {*self.replaced, self.token})
        return self

    def __exit__(self, *_: object) -> None:
        if os.getpid() != self._mine.pid:
            return  # a fork, whose parent owns the file
        if self._file >= 0:
            _HEARTBEAT.remove(self._file)
        with contextlib.suppress(OSError):
            if self.holds():
                self.path.unlink(missing_ok=True)

    def sweep(self, clear: Callable[[], object]) -> None:
        """Remove the owner file of a process that is gone, without waiting; first `clear` what it has left."""
        seen = _see(self.path)
        if seen is not None and self._verdict(seen, 0.0)[0] in ("gone", "silent"):
            clear()
            self._take_over(seen, 0.0)

    def holds(self) -> bool:
        """Whether the owner file is still ours, as far as can be seen: a mount that fails for a moment takes none."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:  # by three calls of the system, not seven: it is asked several times a file
                return os.read(descriptor, LONGEST) == self._written
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("%s: cannot be read: %s", self.path.name, error.strerror)
            return True

    def require(self, now: bool = True) -> None:
        """Raise OwnedError if another process has taken over; unless `now`, a look of a moment ago counts."""
        clock = _clock()
        if not now and clock - self._checked < CHECKED:
            return
        if not self.holds():
            raise self.lost()
        self._checked = clock

    def lost(self) -> OwnedError:
        """The error of a process that was taken over."""
        what = "another process has taken this file over, while this one stood still"
        return OwnedError(str(self.path), what, "run again: it continues, or finds what the other made")

    def _acquire(self) -> None:
        begun = moved = time.monotonic()
        progress: object = None
        last: tuple[_Seen, float] | None = None
        while not self._create():
            self.waited = True
            seen = _see(self.path)
            if seen is None:
                continue
            now = time.monotonic()
            if last is None or last[0] != seen:
                last = (seen, now)
            if self._take_over(seen, now - last[1]):
                continue
            found = self._progress(seen)
            if found != progress:
                progress, moved = found, now
            stall = self._policy.owner_stall
            if seen.owner is None and seen.content is not None:  # soon there is a name in it, or it is nobody's
                stall += UNWRITTEN
            late = now - begun > self._policy.owner_wait or now - moved > stall
            if late and self._verdict(seen, 0.0)[0] == "live":
                raise self._owned(seen)
            self._pause(min(2.0, POLL + (now - begun) / 20))

    def _create(self) -> bool:
        if self._linked is not None:
            try:
                os.link(self._linked, self.path)
            except FileExistsError:
                return False
            except OSError:  # a machine whose clock stands wrong may have taken it for one that was left
                self._linked = None
            else:
                self._checked = _clock()
                return True
        begun = _clock()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o644)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, self._written)
            self._checked = _clock()
            # stopped between the two calls, the empty file may have been taken over
            if self._checked - begun < CHECKED or self.holds():
                self._file = descriptor
                return True
        except BaseException:
            os.close(descriptor)
            self.path.unlink(missing_ok=True)  # half a file would be in everybody's way for a while
            raise
        os.close(descriptor)
        return False

    def _progress(self, seen: _Seen) -> tuple[int, ...]:
        """Blocks on disk and mtimes of what the other owner writes, which change while it makes progress."""
        token = seen.owner.token if seen.owner else ""
        path = self._watched(token) if callable(self._watched) else self._watched
        found: list[int] = []
        for name in (path, path.with_name(f"{path.name}.json")):
            with contextlib.suppress(OSError):
                status = name.stat()
                found += [status.st_blocks, status.st_mtime_ns]
        return tuple(found)

    def _verdict(self, seen: _Seen, watched: float) -> tuple[Verdict, str]:
        """What is known of another owner whose file has not changed for `watched` seconds, and why."""
        owner = seen.owner
        if owner is not None and owner.runs_here:
            return ("gone", f"its owner, process {owner.pid}, is gone") if owner.is_gone else ("live", "")
        age = self._age(seen)
        if owner is None and seen.content is not None:  # left by a process killed between two system calls
            fresh = abs(age) <= min(UNWRITTEN, self._policy.owner_expiry)
            return ("live", "") if fresh else ("gone", "it names no owner")
        # Clocks may jump: a stamp that is too old, or that lies ahead, only gives reason to see whether it moves.
        if abs(age) <= self._policy.owner_expiry and watched <= self._policy.owner_expiry:
            return "live", ""
        if watched < self._policy.owner_watch:
            return "watched", ""
        return "silent", f"its heartbeat stands still, {age:.0f} s old"

    def _take_over(self, seen: _Seen, watched: float) -> bool:
        """Remove the file of an owner that is gone or silent; True if it is gone now."""
        verdict, why = self._verdict(seen, watched)
        if verdict not in ("gone", "silent"):
            return False
        if not self._remove(seen):
            return False
        if seen.owner is not None:
            self.replaced.append(seen.owner.token)
            self.gone |= {seen.owner.token} if verdict == "gone" else set()
        log.warning("%s: taken over: %s", self.path.name, why)
        return True

    def _remove(self, expected: _Seen) -> bool:
        """Remove the owner file if it is the expected one, else leave it; False where it is another.

        It is renamed first: where two processes try, one may have renamed the new file of the other, and puts it back.
        """
        aside = self.path.with_name(f"{self.path.name}.{self._mine.token}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return True
        found = _see(aside)
        if found is not None and found != expected:
            try:
                give_name(aside, self.path)
            except OSError:
                log.warning("%s: another process owns it now", self.path.name)
            aside.unlink(missing_ok=True)
            return False
        aside.unlink(missing_ok=True)
        return True

    def _age(self, seen: _Seen) -> float:
        """Seconds since the last heartbeat, by the file system's clock, which both sides share."""
        with contextlib.suppress(OSError, AttributeError):  # a file without a name, where there is that
            descriptor = os.open(self.path.parent, os.O_TMPFILE | os.O_WRONLY)
            try:
                return (os.fstat(descriptor).st_mtime_ns - seen.beat) / 1e9
            finally:
                os.close(descriptor)
        probe = self.path.with_name(f"{self.path.name}.{self._mine.token}")
        try:
            probe.write_bytes(self._written)  # whose it is, should this process be killed now
            return (probe.stat().st_mtime_ns - seen.beat) / 1e9
        finally:
            probe.unlink(missing_ok=True)

    def _owned(self, seen: _Seen) -> OwnedError:
        owner = seen.owner
        who = f"process {owner.pid} on {owner.host.partition('/')[0]}" if owner else "another process"
        way_out = f"wait for it, or stop it and run again; if there is no such process, delete {self.path}"
        return OwnedError(str(self.path), f"{who} works on this file", way_out)


_ASIDE = re.compile(r"(?:.+\.|\.)?owner(?:\.json)?\.[0-9a-f]{16}")
_PART = re.compile(r"(.+\.part)\.([0-9a-f]{16})(?:\.json)?(?:\.tmp)?")
_SEEN: set[str] = set()
"""Folders that this process has looked through: one may hold a hundred thousand files."""
_LEFT: dict[Path, set[str]] = {}
"""Owner file → tokens of partial files that were there then. One that takes over and is killed before it has an owner
file of its own leaves no other trace of them."""


def _look_through(folder: str) -> None:
    """Remove owner files that were renamed to be removed, or shared, by processes that were killed; once a folder.

    Only those whose owner is gone, or whose heartbeat stands still: a live one's may be put back.
    """
    _SEEN.add(folder)
    with contextlib.suppress(OSError):
        for path in [Path(entry.path) for entry in os.scandir(folder)]:
            if found := _PART.fullmatch(path.name):
                _LEFT.setdefault(path.with_name(f"{found[1]}.owner"), set()).add(found[2])
            elif _ASIDE.fullmatch(path.name) and is_abandoned(path):
                path.unlink(missing_ok=True)


def left_tokens(owner: Path, again: bool = False) -> set[str]:
    """The tokens of partial files that lay in the folder of an owner file when this process came to it; said once."""
    folder = os.path.dirname(owner) or "."  # noqa: PTH120 - as text, for each of many files
    if again or folder not in _SEEN:
        _look_through(folder)
    return _LEFT.pop(owner, set()) if _LEFT else set()


def part_bytes(target: Path) -> int:
    """How much of a download waits to be continued: by the sidecar that nobody owns, and by its owner's."""
    owner, found = read_owner(companion(target, ".part.owner")), 0
    for token in {"", owner.token if owner else ""}:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            done = read_sidecar(PartNames.of(target, token).sidecar)["done"]
            found = max(found, sum(stop - start for start, stop in done))
    return found


def read_owner(path: Path) -> Identity | None:
    """Who an owner file names; None where there is none or it cannot be read (yet)."""
    try:
        seen = _see(path)
    except (OSError, DiskError):
        return None
    return seen.owner if seen is not None else None
