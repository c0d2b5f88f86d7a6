"""Which process writes a file: an owner file made with `O_EXCL`, whose mtime a heartbeat renews.

Not `flock`: on Lustre, GPFS and NFS it may succeed for two processes at once (huggingface_hub#4228).
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lavis_ext.common.errors import OwnedError
from lavis_ext.fetch.part import boot_id
from lavis_ext.fetch.transfer import Policy

log = logging.getLogger(__name__)

HEARTBEAT = 10.0
"""Seconds between two touches of an owner file."""
POLL = 0.1
UNWRITTEN = 5.0
"""Seconds after which an owner file without content is stale."""


@dataclass(frozen=True)
class Identity:
    """A process: where and since when it runs; `token` is new for each ownership. The heartbeat is the file's mtime."""

    pid: int
    host: str
    boot: str
    started: int
    token: str


def own_identity() -> Identity:
    """This process, with a fresh token."""
    pid = os.getpid()
    return Identity(pid, _host(), boot_id(), _own_start(pid), secrets.token_hex(8))


def is_abandoned(path: Path) -> bool:
    """Whether the process that an owner file names is gone, or there is no such file.

    Nothing is touched, for a listing: of an owner elsewhere its heartbeat is compared with this machine's clock.
    """
    owner = read_owner(path)
    if owner is not None and (owner.host, owner.boot) == (_host(), boot_id()):
        return not _alive(owner)
    try:
        return time.time() - path.stat().st_mtime > Policy().owner_expiry
    except OSError:
        return True


@cache
def _own_start(pid: int) -> int:
    """`_started` of this process; the pid is the key because a fork has another."""
    return _started(pid)


@cache
def _host() -> str:
    """Host name and pid namespace: containers of one machine do not see each other's pids."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - not a file
    except OSError:
        return socket.gethostname()


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
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return owner.started == _started(owner.pid)


class _Heartbeat:
    """One thread per process that touches every owner file that the process holds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[Path] = set()
        self._thread: threading.Thread | None = None

    def add(self, path: Path) -> None:
        with self._lock:
            self._held.add(path)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="fetch-heartbeat", daemon=True)
                self._thread.start()

    def remove(self, path: Path) -> None:
        with self._lock:
            self._held.discard(path)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with self._lock:
                held = list(self._held)
            for path in held:
                try:
                    os.utime(path)
                except OSError:
                    log.debug("no heartbeat on %s", path)


_HEARTBEAT = _Heartbeat()


class Ownership:
    """A context manager: inside it this process alone writes the file whose owner file is `path` (`name.part.owner`).

    A live owner is waited for while `watched` (the partial file) changes, within the policy's bounds, else OwnedError;
    the owner file of a dead or silent one is replaced. `waited` says whether there was another owner.
    """

    def __init__(self, path: Path, watched: Path, policy: Policy, pause: Callable[[float], None] = time.sleep) -> None:
        self._path = path
        self._watched = watched
        self._policy = policy
        self._pause = pause
        self._mine = own_identity()
        self._written = json.dumps(vars(self._mine)).encode()
        self.waited = False

    def __enter__(self) -> Ownership:
        self._acquire()
        _HEARTBEAT.add(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        _HEARTBEAT.remove(self._path)
        if self.holds():
            self._path.unlink(missing_ok=True)

    def sweep(self) -> bool:
        """Remove the owner file of a process that is gone, without waiting; whether there is none now."""
        return not self._path.exists() or self._take_over()

    def holds(self) -> bool:
        """Whether the owner file is still ours."""
        try:
            return self._path.read_bytes() == self._written
        except OSError:
            return False

    def _acquire(self) -> None:
        begun = moved = time.monotonic()
        seen = self._progress()
        while not self._create():
            self.waited = True
            if self._take_over():
                continue
            now, progress = time.monotonic(), self._progress()
            if progress != seen:
                seen, moved = progress, now
            if now - begun > self._policy.owner_wait or now - moved > self._policy.owner_stall:
                raise self._owned()
            self._pause(min(2.0, POLL + (now - begun) / 20))

    def _create(self) -> bool:
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(fd, self._written)
        finally:
            os.close(fd)
        return True

    def _progress(self) -> tuple[int, int]:
        """Blocks on disk and mtime of the partial file, which change while the other owner makes progress."""
        try:
            stat = self._watched.stat()
        except OSError:
            return (0, 0)
        return stat.st_blocks, stat.st_mtime_ns

    def _take_over(self) -> bool:
        """Rename and remove a stale owner file; True if it is gone.

        Where two processes try, one may rename the new file of the other: it is compared, and put back.
        """
        owner = read_owner(self._path)
        why = self._stale(owner)
        if why is None:
            return False
        aside = self._path.with_name(f"{self._path.name}.{self._mine.token}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return True
        if read_owner(aside) != owner:
            self._put_back(aside)
            return False
        aside.unlink(missing_ok=True)
        log.warning("%s: taken over: %s", self._path.name, why)
        return True

    def _put_back(self, aside: Path) -> None:
        try:
            os.link(aside, self._path)
        except OSError:
            log.warning("%s: another process owns it now", self._path.name)
        aside.unlink(missing_ok=True)

    def _stale(self, owner: Identity | None) -> str | None:
        if owner is not None and owner.host == self._mine.host:
            if owner.boot != self._mine.boot:
                return "its owner ran before the machine restarted"
            return None if _alive(owner) else f"its owner, process {owner.pid}, is gone"
        age = self._age()
        # an owner file without content was left by a process killed between two system calls
        expiry = self._policy.owner_expiry if owner is not None else min(UNWRITTEN, self._policy.owner_expiry)
        if age is not None and age > expiry:
            return f"its owner has been silent for {age:.0f} s"
        return None

    def _age(self) -> float | None:
        """Seconds since the last heartbeat, by the file system's clock, which both sides share."""
        probe = self._path.with_name(f"{self._path.name}.{self._mine.token}")
        try:
            probe.touch()
            return probe.stat().st_mtime - self._path.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            probe.unlink(missing_ok=True)

    def _owned(self) -> OwnedError:
        owner = read_owner(self._path)
        who = f"process {owner.pid} on {owner.host.partition('/')[0]}" if owner else "another process"
        return OwnedError(str(self._path), f"{who} works on this file", "wait for it, or stop it and run again")


def read_owner(path: Path) -> Identity | None:
    """Who an owner file names; None where there is none or it cannot be read (yet)."""
    try:
        return Identity(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
