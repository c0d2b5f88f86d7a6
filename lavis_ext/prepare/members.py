"""What an archive holds, as plain records, and the rules by which it is refused before a byte is written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lavis_ext.errors import Problem, UnsafeError

STORED, DEFLATED = 0, 8
MIB = 1 << 20
SHOWN = 5
BOOKKEEPING = ".lavis_ext"
# absolute, drive letter, backslash, control character (a tab or newline would break our lists), `.`, `..` or empty part
_BAD_NAME = re.compile(r"^/|^[A-Za-z]:|\\|[\x00-\x1f\x7f]|(?:^|/)\.{0,2}(?:/|$)")
_WAY_OUT = "the archive is refused as a whole; name another mirror, or unpack it yourself where it can do no harm"


class Member(NamedTuple):
    """One regular file of an archive.

    `offset` is where its local header (zip) or its data (tar) begins, -1 where there is no random access (tar.gz);
    `packed` bytes lie there, compressed by `method` (0 stored, 8 deflate); unpacked they are `size` bytes of that CRC.
    """

    name: str
    size: int
    crc: int
    offset: int
    packed: int
    method: int


@dataclass(frozen=True)
class Limits:
    """What an archive may become: files, bytes in all, and how many folders deep."""

    files: int = 5_000_000
    total: int = 1 << 42
    depth: int = 32

    @classmethod
    def declared(cls, archive_bytes: int, files: int | None = None, total: int | None = None) -> Limits:
        """The declared figures with 5 % slack; without them 5,000,000 files and 100 times the archive + 64 MiB."""
        bound = 100 * archive_bytes + 64 * MIB if total is None else total + total // 20
        return cls(cls.files if files is None else files + files // 20 + 1, bound)


def clean_name(name: str) -> str:
    """The name without leading `./`, as some tars write it."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def check_members(members: Sequence[Member], limits: Limits, where: str, reserved: str = "") -> None:
    """Raise UnsafeError that tells the first reasons not to unpack this archive; `reserved` is its own name."""
    found = []
    for problem in _problems(members, limits, reserved):
        found.append(Problem(where, problem, _WAY_OUT))
        if len(found) == SHOWN:
            break
    if found:
        raise UnsafeError.of(found)


def name_fault(name: str, depth: int = Limits.depth) -> str | None:
    """Why a member's name is refused, or None."""
    if _BAD_NAME.search(name):
        return f"member {name!r} has a name that could leave the folder"
    if name.count("/") >= depth:
        return f"member {name[:80]!r}… lies more than {depth} folders deep"
    if not name.isascii() and not _is_unicode(name):
        return f"member {name!r} has a name that is not UTF-8"
    if len(name) > 63 and any(len(part.encode()) > 255 for part in name.split("/")):
        return f"member {name[:80]!r}… has a name of more than 255 bytes"
    if BOOKKEEPING in name and BOOKKEEPING in name.split("/"):
        return f"member {name!r} would write into {BOOKKEEPING}"
    return None


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def folded(name: str) -> str:
    """What two names share that some file system takes for the same file: NFC, case folded."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _problems(members: Sequence[Member], limits: Limits, reserved: str) -> Iterator[str]:
    if len(members) > limits.files:
        yield f"holds {len(members):,} files where {limits.files:,} are allowed"
        return
    total = sum(member.size for member in members)
    if total > limits.total:
        yield f"would unpack to {total:,} bytes where {limits.total:,} are allowed"
        return
    yield from _name_problems(members, limits.depth, reserved)
    yield from _overlaps(members)


def _name_problems(members: Sequence[Member], depth: int, reserved: str) -> Iterator[str]:
    seen: set[str] = set()
    folders: set[str] = set()
    for member in members:
        fault = name_fault(member.name, depth)
        if fault:
            yield fault
        key = folded(member.name)
        if key in seen:
            yield f"member {member.name!r} stands twice (or differs only in case or accents from another)"
        seen.add(key)
        folders.add(key.rpartition("/")[0])
    if reserved and folded(reserved) in seen:
        yield f"member {reserved!r} has the name of the archive itself"
    for folder in folders:
        if any(parent in seen for parent in _ancestors(folder)):
            yield f"{folder!r} is a file and a folder at once"


def _ancestors(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def _overlaps(members: Sequence[Member]) -> Iterator[str]:
    """Members that share bytes: how a small archive names the same data a thousand times."""
    end = 0
    for member in sorted(members, key=_by_offset):
        if 0 <= member.offset < end and member.packed:
            yield f"member {member.name!r} shares bytes with another"
        end = max(end, member.offset + member.packed)


def _by_offset(member: Member) -> int:
    return member.offset
