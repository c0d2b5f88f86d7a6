"""From an archive to files in their folder: from one on disk, or member by member from a remote one, by ranges.

Each member is written under a temporary name beside its target, then renamed. A right file that is there is kept, a
wrong one is set aside, and a run that is killed is continued by the next.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, cast

from lavis_ext.common.config.cards import Artifact
from lavis_ext.common.errors import IntegrityError
from lavis_ext.fetch.remote import RemoteFile
from lavis_ext.fetch.safety import is_loopback, split_url
from lavis_ext.fetch.session import Session, scheme_of
from lavis_ext.fetch.transfer import Policy, Progress, RangesUnsupported, Source, Transfer, disk_error
from lavis_ext.prepare.archive_formats import (
    HEADER,
    MIB,
    Limits,
    check_members,
    data_offset,
    inflate,
    list_tar,
    list_zip,
    read_tar,
)
from lavis_ext.prepare.records import Journal, Member, MemberTable, Origin, disk_errors, sizes_below

log = logging.getLogger(__name__)
BATCH_FILES = 64
BATCH_BYTES = 8 * MIB
UNPACK_THREADS = 8
Packed = Iterable[tuple[int, Iterable[bytes]]]
"""Numbers of members, each with its packed bytes."""
GAP = 0.05
"""Neighbours share a request while the bytes between them are at most this share of the wanted bytes."""
RUN_BYTES = 16 * MIB
TAIL = 4096
"""Bytes for a local header's extra field and a data descriptor, where no next member bounds them."""
Run = tuple[int, int, list[int]]
"""Start and stop in the archive, and the numbers of the members between them."""


def thread_count() -> int:
    """Threads for work that releases the interpreter lock (zlib, files): one per core, at most 8."""
    return min(UNPACK_THREADS, os.cpu_count() or 1)


class Placement:
    """Writes members of one table below `target` and reports them in the journal.

    `require` raises where another process has taken over, or where one of the paths that it is given is of another
    artifact: it is called before a file is set aside. Temporary names are of this placement alone, so that one which
    was taken over and wakes writes into nobody's file.
    """

    def __init__(
        self,
        target: Path,
        table: MemberTable,
        journal: Journal,
        progress: Progress,
        label: str,
        require: Callable[..., None] = lambda *_: None,
    ) -> None:
        self.target, self.table, self.journal = target, table, journal
        self.progress, self.label, self.require = progress, label, require
        self.set_aside: list[Path] = []
        self._mark = f".lavis_ext-{zlib.crc32(os.fsencode(journal.path)):08x}-"
        self._own = secrets.token_hex(4)
        self._prefix = f"{target}/"

    def pending_members(self, wanted: Iterable[int]) -> list[int]:
        """The wanted members that are not in place yet, in order.

        Files that the journal does not list, or that have another size by now, are compared by size and CRC: an equal
        one counts, another is renamed aside. Folders are made. Raises DiskError, and ConfigError where such a file is
        of another artifact.
        """
        with disk_errors(self.target):
            there = files_below(self.target, self.table.folders())
            for name in {name for name in there if name.rpartition("/")[2].startswith(self._mark)}:
                (self.target / name).unlink(missing_ok=True)  # of a run that was killed, or taken over
            numbers = list(wanted)
            present = [n for n in numbers if self.table.members[n].name in there]
            sizes, done = sizes_below(self.target, self.table.folders()), self.journal.done
            changed = {n for n in present if sizes.get(self.table.members[n].name) != self.table.members[n].size}
            doubtful = [n for n in present if n not in done or n in changed or not self.journal.trusted]
            with ThreadPoolExecutor(thread_count()) as pool:
                sound = {n for n, good in zip(doubtful, pool.map(self.is_sound, doubtful), strict=True) if good}
            wrong = [self.path_of(number) for number in doubtful if number not in sound]
            self.require(wrong)
            for path in wrong:
                self.require()
                self.set_aside.append(set_aside(path))
            self.require()
            self._update_journal(there, sound, set(doubtful) - sound)
            for folder in self.table.folders():
                (self.target / folder).mkdir(parents=True, exist_ok=True)
        return [n for n in numbers if n not in self.journal.done]

    def _update_journal(self, there: set[str], sound: set[int], lost: set[int]) -> None:
        members = self.table.members
        kept = {n for n in self.journal.done if members[n].name in there} | sound
        if kept - lost != self.journal.done or not self.journal.trusted:
            self.journal.rewrite(kept - lost)

    def is_sound(self, number: int) -> bool:
        """Whether the file in place has the size and the CRC of its member."""
        member = self.table.members[number]
        return member_fault(self._prefix + member.name, member) is None

    def path_of(self, number: int) -> Path:
        """Where a member belongs."""
        return self.target / self.table.members[number].name

    def write(self, batch: Packed) -> None:
        """Unpack members to their paths and report them; raises IntegrityError, UnsafeError, DiskError."""
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
        self.progress.advance(self.label, sum(self.table.members[n].size for n in written))

    def _write_one(self, number: int, packed: Iterable[bytes]) -> None:
        member = self.table.members[number]
        path = self._prefix + member.name  # texts: a Path of each of a hundred thousand costs as much as its file
        temporary = f"{path[: path.rindex('/') + 1]}{self._mark}{number}.{self._own}.part"
        try:
            with open(temporary, "wb", 4096) as file:  # noqa: PTH123
                for data in inflate(packed, member, self.label):
                    file.write(data)
            os.replace(temporary, path)  # noqa: PTH105
        except BaseException as error:
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            if isinstance(error, OSError):
                raise disk_error(error, Path(path)) from error
            raise


def member_fault(path: str, member: Member) -> str | None:
    """What is wrong with a file that should be this member, or None; raises OSError where it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))  # of a pipe nobody waits
    except OSError:
        if Path(path).is_file():
            raise
        return "missing"  # nothing, a link to itself, a socket
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            return "missing"
        if found.st_size != member.size:
            return f"expected {member.size} bytes, got {found.st_size}"
        crc, left = 0, member.size
        while left and (data := os.read(handle, min(MIB, left))):
            crc, left = zlib.crc32(data, crc), left - len(data)
    finally:
        os.close(handle)
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
    """Rename what is at `path` to `<name>.bad-<crc>` and return that; a link is renamed itself, not its target."""
    mark = f"{crc_of(path):08x}" if path.is_file() else "entry"
    base = path.name.encode()[:200].decode("utf-8", "ignore")
    aside, count = path.with_name(f"{base}.bad-{mark}"), 1
    while aside.is_symlink() or aside.exists():
        aside, count = path.with_name(f"{base}.bad-{mark}-{count}"), count + 1
    path.rename(aside)
    log.warning("%s: another content than expected, set aside as %s", path, aside.name)
    return aside


def batches(table: MemberTable, numbers: Iterable[int]) -> Iterator[list[int]]:
    """Members in the archive's order, in batches of bounded count and bytes."""
    members = table.members
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


def crc_of(path: Path) -> int:
    """CRC-32 of a file, read in blocks."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(MIB):
            crc = zlib.crc32(data, crc)
    return crc


# From an archive on disk


def limits_of(artifact: Artifact, archive_bytes: int) -> Limits:
    """The limits on what an artifact's archive unpacks to, by its card."""
    return Limits.declared(archive_bytes, artifact.unpacked_files, artifact.unpacked_bytes)


def list_archive(archive: Path, artifact: Artifact) -> MemberTable:
    """List and check a local archive; raises IntegrityError for a damaged one, UnsafeError for one that is refused."""
    size = archive.stat().st_size
    limits = limits_of(artifact, size)
    if artifact.unpack == "zip":
        with archive.open("rb") as file:
            members = list_zip(file, str(archive))
    else:
        members = list_tar(archive, artifact.unpack == "tar.gz", limits)
    check_members(members, limits, str(archive), archive.name)
    about = {"archive_bytes": size, "kind": artifact.unpack, "origin": asdict(Origin.of(artifact))}
    return MemberTable(members, about)


def unpack(
    archive: Path,
    artifact: Artifact,
    root: Path,
    table: MemberTable,
    progress: Progress,
    wanted: Sequence[int] | None = None,
    threads: int | None = None,
    require: Callable[..., None] = lambda *_: None,
) -> list[Path]:
    """Put every member (or the `wanted` numbers) in place below the artifact's storage; what is there already is kept.

    Returns what was set aside: files of the same name with other content. A killed run is continued by the next.
    Raises IntegrityError, UnsafeError, DiskError; the archive is not touched.
    """
    label = f"{artifact.name} unpacked"
    with Journal(root, artifact, table) as journal:
        placement = Placement(root / artifact.storage, table, journal, progress, label, require)
        todo = placement.pending_members(range(len(table.members)) if wanted is None else wanted)
        progress.begin(label, sum(table.members[n].size for n in todo))
        if artifact.unpack == "tar.gz":
            _unpack_stream(archive, placement, set(todo))
        else:
            _unpack_file(archive, placement, todo, artifact.unpack == "zip", threads or thread_count())
        progress.end(label, "fetched")
    return placement.set_aside


def _unpack_stream(archive: Path, placement: Placement, todo: set[int]) -> None:
    """A gzipped tar from front to end, in one thread."""

    def wanted() -> Iterator[tuple[int, Iterator[bytes]]]:
        for number, data in read_tar(archive, gzipped=True):
            if number >= len(placement.table.members):
                raise IntegrityError(str(archive), "the archive changed while it was read", "run `prepare` again")
            if number in todo:
                yield number, data

    if todo:
        placement.write(wanted())


def _unpack_file(archive: Path, placement: Placement, todo: list[int], zipped: bool, threads: int) -> None:
    """Batches of members in several threads: reading, zlib and writing release the interpreter lock."""
    handle = os.open(archive, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="unpack") as pool:

            def submit(numbers: list[int]) -> Future[None]:
                members = placement.table.members
                packed = [(n, packed_bytes(handle, members[n], str(archive), zipped)) for n in numbers]
                return pool.submit(placement.write, packed)

            run_bounded(pool, map(submit, batches(placement.table, todo)), 2 * threads)
    finally:
        os.close(handle)


def packed_bytes(handle: int, member: Member, where: str, zipped: bool) -> Iterator[bytes]:
    """The packed bytes of a member of an open archive, by position, so that threads may share the handle."""
    start, left = member.offset, member.packed
    if zipped:
        start += data_offset(os.pread(handle, HEADER, start), member, where)
    while left:
        data = os.pread(handle, min(MIB, left), start)
        if not data:
            raise IntegrityError(where, f"ends inside member {member.name!r}", "fetch the archive again")
        yield data
        start, left = start + len(data), left - len(data)


# From a remote archive, by ranges


def range_sources(transfer: Transfer) -> list[Source]:
    """Sources that members may be fetched from, https first.

    A member is verified by the CRC in the archive's own directory, which guards against damage, not against an
    attacker: plain http to a host that the user did not name is therefore left out.
    """
    first = transfer.sources[0]
    if not first.exact:
        return [first]
    safe = [source for source in transfer.sources if source.exact and _is_safe(source)]
    return sorted(safe, key=lambda source: scheme_of(source.url) == "http")


def _is_safe(source: Source) -> bool:
    return source.trusted or scheme_of(source.url) != "http" or is_loopback(split_url(source.url).hostname or "")


@contextmanager
def open_remote(transfer: Transfer, policy: Policy) -> Iterator[tuple[RemoteFile, Session]]:
    """The remote archive, seekable, and the session that can be halted; raises what `fetch` raises."""
    sources = range_sources(transfer)
    if not sources:
        raise RangesUnsupported(transfer.name, "no source of it answers ranges safely", "fetch the whole archive")
    with Session(policy) as session, RemoteFile(sources, size=transfer.size, session=session, ahead=1) as remote:
        yield remote, session


def list_remote(remote: RemoteFile, artifact: Artifact, transfer: Transfer) -> MemberTable:
    """The directory of a remote zip, checked; raises IntegrityError, UnsafeError, NetworkError."""
    where = remote.source
    members = list_zip(cast("IO[bytes]", remote), where)
    check_members(members, limits_of(artifact, remote.size), where, Path(artifact.file).name)
    about = {"archive_bytes": remote.size, "equivalence": transfer.sources[0].equivalence, "source": where}
    about |= {"validator": remote.validator, "origin": asdict(Origin.of(artifact))}
    return MemberTable(members, about)


def fetch_members(
    remote: RemoteFile, session: Session, placement: Placement, numbers: Sequence[int], zipped: bool
) -> None:
    """Put these members in place; each is reported as it comes, so that the next call continues an interrupted one."""
    members = placement.table.members
    placement.progress.begin(placement.label, sum(members[n].size for n in numbers))
    jobs = max(1, session.policy.jobs)
    with ThreadPoolExecutor(jobs, thread_name_prefix="ranges") as pool:
        loader = _Loader(remote, placement, zipped)
        runs = make_runs(members, numbers, remote.size, zipped)
        run_bounded(pool, (pool.submit(loader.load, run) for run in runs), 2 * jobs, session.halt)
    placement.progress.end(placement.label, "fetched")


def make_runs(members: Sequence[Member], numbers: Iterable[int], size: int, zipped: bool) -> Iterator[Run]:
    """Members in the archive's order, neighbours joined while that wastes at most 5 % and stays below 16 MiB."""
    offsets = sorted(member.offset for member in members)
    held: list[int] = []
    start = stop = useful = 0
    for number in sorted(numbers, key=lambda n: members[n].offset):
        begin, end = members[number].offset, _end(members[number], offsets, size, zipped)
        far = begin - stop > GAP * (useful + end - begin)
        if held and (far or end - start > RUN_BYTES):
            yield start, stop, held
            held = []
        if not held:
            start, stop, useful = begin, end, 0
        held.append(number)
        useful, stop = useful + end - begin, max(stop, end)
    if held:
        yield start, stop, held


def _end(member: Member, offsets: list[int], size: int, zipped: bool) -> int:
    """An upper bound of where the bytes of a member end: the next one, or the most that header and data can take."""
    if not zipped:
        return member.offset + member.packed
    following = bisect_right(offsets, member.offset)
    bound = member.offset + HEADER + len(member.name.encode()) + member.packed + TAIL
    return min(size, bound, offsets[following] if following < len(offsets) else bound)


class _Loader:
    """Fetches runs and puts their members in place; callable from several threads."""

    def __init__(self, remote: RemoteFile, placement: Placement, zipped: bool) -> None:
        self._remote, self._placement, self._zipped = remote, placement, zipped

    def load(self, run: Run) -> None:
        """Fetch a run and put its members in place; bytes that do not match are fetched once more."""
        start, stop, numbers = run
        try:
            self._placement.write(self._packed(start, stop, numbers))
        except IntegrityError:
            left = [n for n in numbers if n not in self._placement.journal.done]
            self._placement.write(self._packed(start, stop, left))

    def _packed(self, start: int, stop: int, numbers: list[int]) -> Iterator[tuple[int, Iterator[bytes]]]:
        members = self._placement.table.members
        if stop - start > RUN_BYTES:
            yield from ((number, self._pieces(members[number])) for number in numbers)
            return
        data = self._read(start, stop)
        for number in numbers:
            yield number, self._cut(data, start, members[number])

    def _cut(self, data: bytes, start: int, member: Member) -> Iterator[bytes]:
        begin = member.offset - start
        if self._zipped:
            begin += data_offset(data[begin : begin + HEADER], member, self._remote.source)
        packed = data[begin : begin + member.packed]
        yield packed
        if len(packed) < member.packed:
            # its local header is longer than `_end` allowed for
            yield self._read(start + begin + len(packed), start + begin + member.packed)

    def _pieces(self, member: Member) -> Iterator[bytes]:
        """A large member piece by piece, so that memory stays bounded."""
        begin = member.offset
        if self._zipped:
            begin += data_offset(self._read(begin, begin + HEADER), member, self._remote.source)
        end = begin + member.packed
        for at in range(begin, end, RUN_BYTES):
            yield self._read(at, min(end, at + RUN_BYTES))

    def _read(self, start: int, stop: int) -> bytes:
        stop = min(stop, self._remote.size)
        return self._remote.read_ranges([(min(start, stop), stop)], jobs=1)[0]
