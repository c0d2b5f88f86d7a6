"""The list of an archive's members and the journal of those that are in place: text files below `.lavis_ext/`."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lavis_ext.cards import Artifact
from lavis_ext.fetch.part import boot_id
from lavis_ext.files import write_atomic
from lavis_ext.prepare.members import Member
from lavis_ext.prepare.stamps import record_path

log = logging.getLogger(__name__)


class Inventory:
    """Members of one archive, in order, with what the archive was (`about`: size, sha256, equivalence …).

    `members/<file>.tsv`: a JSON line, then `name size crc offset packed method` a line. It stays when the archive goes,
    so that single files can be checked and repaired.
    """

    def __init__(self, members: Sequence[Member], about: Mapping[str, Any]) -> None:
        self.members, self.about = list(members), dict(about)
        self._digest: str | None = None

    @classmethod
    def read(cls, root: Path, artifact: Artifact) -> Inventory | None:
        """The inventory on disk, or None where there is none that can be read."""
        path = record_path(root, artifact, "members", ".tsv")
        try:
            head, _, body = path.read_text("utf-8").partition("\n")
            about = json.loads(head)
            inventory = cls([_parse(line) for line in body.splitlines()], about)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s: cannot be read and is made anew (%s)", path, error)
            return None
        return inventory if about.get("members") == len(inventory.members) else None

    def write(self, root: Path, artifact: Artifact) -> None:
        """Keep it on disk; raises OSError."""
        head = json.dumps({**self.about, "members": len(self.members)}, sort_keys=True)
        write_atomic(record_path(root, artifact, "members", ".tsv"), f"{head}\n{self._body()}")

    @property
    def digest(self) -> str:
        """What names this list of members: a journal of another list does not count."""
        if self._digest is None:
            self._digest = f"{len(self.members)}-{zlib.crc32(self._body().encode()):08x}"
        return self._digest

    @property
    def bytes(self) -> int:
        """Bytes of all members, unpacked."""
        return sum(member.size for member in self.members)

    def folders(self) -> list[str]:
        """The folders that hold members, relative to the storage; "" is the storage itself."""
        return sorted({member.name.rpartition("/")[0] for member in self.members})

    def _body(self) -> str:
        return "".join(f"{m.name}\t{m.size}\t{m.crc:x}\t{m.offset}\t{m.packed}\t{m.method}\n" for m in self.members)


def _parse(line: str) -> Member:
    name, size, crc, offset, packed, method = line.split("\t")
    return Member(name, int(size), int(crc, 16), int(offset), int(packed), int(method))


class Journal:
    """Which members are in place: an append-only file of their numbers, one a line, under a line that names the list.

    Lines come after the renames that they tell of; what a crash kept from being noted is found by its CRC. After a
    restart of the machine (`trusted` is False) the noted files are checked too, since renames may outlive their bytes.
    """

    def __init__(self, root: Path, artifact: Artifact, inventory: Inventory) -> None:
        self.path = record_path(root, artifact, "journal", ".log")
        self.done: set[int] = set()
        self.trusted = True
        self._head = {"inventory": inventory.digest, "boot": boot_id()}
        self._count = len(inventory.members)
        self._lock = threading.Lock()
        self._load()
        self._file = self._opened()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.close(self._file)

    def add(self, numbers: Iterable[int]) -> None:
        """These members are in place; raises OSError."""
        new = list(numbers)
        if new:
            with self._lock:
                text = "".join(f"{number}\n" for number in new).encode()
                if os.write(self._file, text) < len(text):
                    raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
                self.done.update(new)

    def rewrite(self, numbers: Iterable[int]) -> None:
        """Only these members are in place, and they were checked on this boot."""
        self.done, self.trusted = set(numbers), True
        write_atomic(self.path, self._text())
        os.close(self._file)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def _load(self) -> None:
        try:
            head, *lines = self.path.read_bytes().split(b"\n")
            noted = json.loads(head)
        except (OSError, ValueError):
            return
        if not isinstance(noted, dict) or noted.get("inventory") != self._head["inventory"]:
            return
        self.trusted = bool(noted.get("boot")) and noted.get("boot") == self._head["boot"]
        # the last piece has no newline: it is empty, or torn by a crash
        self.done = {int(line) for line in lines[:-1] if line.isdigit() and int(line) < self._count}

    def _opened(self) -> int:
        # Rewritten whole at each start: a torn last line would swallow the first new one.
        write_atomic(self.path, self._text())
        return os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def _text(self) -> str:
        head = json.dumps(self._head if self.trusted else {**self._head, "boot": ""})
        return "".join([head, "\n", *(f"{number}\n" for number in sorted(self.done))])
