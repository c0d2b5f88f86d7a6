"""Single members of an archive that stays where it is: its directory and their bytes come by ranges."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast
from urllib.parse import urlsplit

from lavis_ext.cards import Artifact
from lavis_ext.errors import IntegrityError, NetworkError
from lavis_ext.fetch import Policy, RemoteFile, Source, Transfer
from lavis_ext.fetch.openers import scheme_of
from lavis_ext.fetch.safety import is_loopback
from lavis_ext.fetch.session import Session
from lavis_ext.prepare.inventory import Inventory
from lavis_ext.prepare.members import MIB, Member, check_members
from lavis_ext.prepare.placing import Placement, run_bounded
from lavis_ext.prepare.unpack import limits_of
from lavis_ext.prepare.zips import HEADER, data_offset, list_zip

GAP = 0.05
"""Neighbours share a request while the bytes between them are at most this share of what is wanted."""
RUN_BYTES = 16 * MIB
TAIL = 4096
"""Room for a local header's extra field and a data descriptor, where no next member bounds them."""
Run = tuple[int, int, list[int]]
"""Start and stop in the archive, and the numbers of the members between them."""


def range_sources(transfer: Transfer) -> list[Source]:
    """Sources that members may be taken from, https first.

    A member is proven by the CRC in the archive's own directory, which guards against damage only: over plain http from
    a host that the user did not name, nothing else would vouch for it, so such sources are left out.
    """
    first = transfer.sources[0]
    if not first.exact:
        return [first]
    safe = [source for source in transfer.sources if source.exact and _is_safe(source)]
    return sorted(safe, key=_is_plain_http)


def _is_safe(source: Source) -> bool:
    return source.trusted or scheme_of(source.url) != "http" or is_loopback(urlsplit(source.url).hostname or "")


def _is_plain_http(source: Source) -> bool:
    return scheme_of(source.url) == "http"


@contextmanager
def open_remote(transfer: Transfer, policy: Policy) -> Iterator[tuple[RemoteFile, Session]]:
    """The remote archive, seekable, and the session that can be halted; raises what `fetch` raises."""
    sources = range_sources(transfer)
    if not sources:
        raise NetworkError(transfer.name, "no source of it answers ranges safely", "fetch the whole archive")
    with Session(policy) as session, RemoteFile(sources, size=transfer.size, session=session, ahead=1) as remote:
        yield remote, session


def list_remote(remote: RemoteFile, artifact: Artifact, transfer: Transfer) -> Inventory:
    """The directory of a remote zip, judged; raises IntegrityError, UnsafeError, NetworkError."""
    where = remote.source
    members = list_zip(cast("IO[bytes]", remote), where)
    check_members(members, limits_of(artifact, remote.size), where, Path(artifact.file).name)
    about = {"archive_bytes": remote.size, "equivalence": transfer.sources[0].equivalence, "source": where}
    return Inventory(members, about)


def fetch_members(
    remote: RemoteFile, session: Session, placement: Placement, numbers: Sequence[int], zipped: bool
) -> None:
    """Put these members in place; each is noted as it comes, so that an interrupted call is continued by the next."""
    members = placement.inventory.members
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
    """Where the bytes of a member surely end: at the next one, or where header and data can reach."""
    if not zipped:
        return member.offset + member.packed
    following = bisect_right(offsets, member.offset)
    bound = member.offset + HEADER + len(member.name.encode()) + member.packed + TAIL
    return min(size, bound, offsets[following] if following < len(offsets) else bound)


class _Loader:
    """Fetches one run and hands its members on; callable from several threads."""

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
        members = self._placement.inventory.members
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
            # its local header is longer than the directory made believe
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
