"""Members go to their places one by one: a temporary name beside the target, then a rename; no user's file is lost."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from lavis_ext.fetch import Progress
from lavis_ext.fetch.failures import disk_error
from lavis_ext.prepare.inventory import Inventory, Journal
from lavis_ext.prepare.members import MIB, Member
from lavis_ext.prepare.stamps import crc_of
from lavis_ext.prepare.zips import inflate

log = logging.getLogger(__name__)
BATCH_FILES = 64
BATCH_BYTES = 8 * MIB
UNPACK_THREADS = 8
Packed = Iterable[tuple[int, Iterable[bytes]]]
"""Numbers of members, each with its packed bytes."""


def thread_count() -> int:
    """Threads for work that leaves the interpreter lock (zlib, files): one a core, at most 8."""
    return min(UNPACK_THREADS, os.cpu_count() or 1)


class Placement:
    """Puts members of one inventory below `target` and notes them in the journal."""

    def __init__(self, target: Path, inventory: Inventory, journal: Journal, progress: Progress, label: str) -> None:
        self.target, self.inventory, self.journal = target, inventory, journal
        self.progress, self.label = progress, label
        self.set_aside: list[Path] = []
        self._mark = f"{zlib.crc32(os.fsencode(journal.path)):08x}"

    def settle(self, wanted: Iterable[int]) -> list[int]:
        """The wanted members that are not in place yet, in order.

        Files that the journal does not answer for are compared by size and CRC: an equal one counts, another is set
        aside by a rename. Folders are made. Raises DiskError.
        """
        with disk_errors(self.target):
            there = files_below(self.target, self.inventory.folders())
            numbers = list(wanted)
            present = [n for n in numbers if self.inventory.members[n].name in there]
            doubtful = [n for n in present if n not in self.journal.done or not self.journal.trusted]
            sound = self._sound(doubtful)
            for number in doubtful:
                if number not in sound:
                    self.set_aside.append(set_aside(self.path_of(number)))
            self._note(there, sound, set(doubtful) - sound)
            self._make_folders()
        return [n for n in numbers if n not in self.journal.done]

    def _note(self, there: set[str], sound: set[int], lost: set[int]) -> None:
        members = self.inventory.members
        kept = {n for n in self.journal.done if members[n].name in there} | sound
        if kept - lost != self.journal.done or not self.journal.trusted:
            self.journal.rewrite(kept - lost)

    def _sound(self, numbers: Sequence[int]) -> set[int]:
        if not numbers:
            return set()
        with ThreadPoolExecutor(thread_count()) as pool:
            return {n for n, good in zip(numbers, pool.map(self.is_sound, numbers), strict=True) if good}

    def is_sound(self, number: int) -> bool:
        """Whether the file in place has the size and the CRC of its member."""
        return member_fault(self.path_of(number), self.inventory.members[number]) is None

    def path_of(self, number: int) -> Path:
        """Where a member belongs."""
        return self.target / self.inventory.members[number].name

    def _make_folders(self) -> None:
        for folder in self.inventory.folders():
            (self.target / folder).mkdir(parents=True, exist_ok=True)

    def write(self, batch: Packed) -> None:
        """Unpack members to their places and note them; raises IntegrityError, UnsafeError, DiskError."""
        written: list[int] = []
        try:
            for number, packed in batch:
                self._write_one(number, packed)
                written.append(number)
                if len(written) == BATCH_FILES:
                    self._commit(written)
                    written = []
        finally:
            self._commit(written)

    def _commit(self, written: Sequence[int]) -> None:
        with disk_errors(self.target):
            self.journal.add(written)
        self.progress.advance(self.label, sum(self.inventory.members[n].size for n in written))

    def _write_one(self, number: int, packed: Iterable[bytes]) -> None:
        member, path = self.inventory.members[number], self.path_of(number)
        # One name for each member and try: what a kill leaves behind is overwritten by the next run.
        temporary = path.with_name(f".lavis_ext-{self._mark}-{number}.part")
        with disk_errors(path):
            try:
                with temporary.open("wb") as file:
                    for data in inflate(packed, member, self.label):
                        file.write(data)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def member_fault(path: Path, member: Member) -> str | None:
    """What is wrong with a file that should be this member, or None; raises OSError where it cannot be read."""
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != member.size:
        return f"expected {member.size} bytes, got {size}"
    crc = crc_of(path)
    return None if crc == member.crc else f"expected CRC {member.crc:08x}, got {crc:08x}"


def files_below(root: Path, folders: Iterable[str]) -> set[str]:
    """The names in some folders of `root`, relative to it; folders that are not there hold none."""
    found: set[str] = set()
    for folder in folders:
        try:
            names = os.listdir(root / folder)  # noqa: PTH208 - a hundred thousand names, no Path for each
        except FileNotFoundError:
            continue
        found.update(f"{folder}/{name}" if folder else name for name in names)
    return found


def set_aside(path: Path) -> Path:
    """Rename what lies at `path` to `<name>.bad-<crc>` and return that; a link is renamed itself, never followed."""
    mark = f"{crc_of(path):08x}" if path.is_file() else "entry"
    base = path.name.encode()[:200].decode("utf-8", "ignore")
    aside, count = path.with_name(f"{base}.bad-{mark}"), 1
    while aside.is_symlink() or aside.exists():
        aside, count = path.with_name(f"{base}.bad-{mark}-{count}"), count + 1
    path.rename(aside)
    log.warning("%s: another content than expected, set aside as %s", path, aside.name)
    return aside


def batches(inventory: Inventory, numbers: Iterable[int]) -> Iterator[list[int]]:
    """Members in the order in which they lie in the archive, in pieces of bounded count and bytes."""
    members = inventory.members
    batch: list[int] = []
    held = 0
    for number in sorted(numbers, key=lambda n: members[n].offset):
        batch.append(number)
        held += members[number].packed
        if len(batch) == BATCH_FILES or held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def run_bounded(
    pool: ThreadPoolExecutor, tasks: Iterator[Future[None]], limit: int, halt: Callable[[], None] | None = None
) -> None:
    """Wait for tasks as they are submitted, at most `limit` at a time; the first failure stops the rest and is raised.

    `halt` wakes tasks that wait for bytes.
    """
    running: set[Future[None]] = set()
    try:
        for task in tasks:
            running.add(task)
            if len(running) >= limit:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for finished in done:
                    finished.result()
        for finished in running:
            finished.result()
    except BaseException:
        if halt is not None:
            halt()
        pool.shutdown(wait=True, cancel_futures=True)
        raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """OSErrors inside it as DiskError (exit code 6)."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, Path(error.filename) if isinstance(error.filename, str) else path) from error
