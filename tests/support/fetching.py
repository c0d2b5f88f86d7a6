"""The world in which fetch tests inject faults: two servers, a folder, a declared file, and a policy."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lavis_ext.fetch import Policy, Result, Source, Transfer, fetch
from tests.support.server import Server, payload

SIZE = 300_000
CANARY = "c4n4rySECRET"
FAST = Policy(
    retries=3,
    backoff=0.01,
    backoff_cap=0.05,
    retry_after_cap=1.0,
    connect_timeout=20.0,
    stall_timeout=20.0,
    min_speed=1.0,
    speed_window=20.0,
    owner_stall=1.0,
    owner_watch=0.1,
    fsync=False,
    offline=False,
)
"""Waits for no attempt, and long for a server: on a busy machine this one's, too, says nothing for a second."""
IMPATIENT = replace(FAST, stall_timeout=0.5, min_speed=2000.0, speed_window=0.4)
"""For a server that is meant to be slow."""


@dataclass
class World:
    """`data` is declared with its hash and offered by both servers at /f.bin; `target` is where it shall go."""

    server: Server
    second: Server
    folder: Path
    patch: pytest.MonkeyPatch
    log: pytest.LogCaptureFixture
    data: bytes = field(default_factory=lambda: payload(SIZE))
    policy: Policy = FAST

    def __post_init__(self) -> None:
        self.first_url = self.server.put("/f.bin", self.data)
        self.second_url = self.second.put("/f.bin", self.data)
        self.target = self.folder / "data" / "f.bin"

    @property
    def part(self) -> Path:
        return self.target.with_name("f.bin.part")

    @property
    def sidecar(self) -> Path:
        return self.target.with_name("f.bin.part.json")

    @property
    def owner(self) -> Path:
        return self.target.with_name("f.bin.part.owner")

    def transfer(self, *sources: Source | str, **more: object) -> Transfer:
        """The declared file from these sources (default: the first server)."""
        given = sources or (self.first_url,)
        found = tuple(Source(source) if isinstance(source, str) else source for source in given)
        plain = Transfer(self.target, found, len(self.data), hashlib.sha256(self.data).hexdigest())
        return replace(plain, **more)  # type: ignore[arg-type]

    def bare(self, *sources: Source | str) -> Transfer:
        """The same with nothing declared."""
        return self.transfer(*sources, size=None, sha256=None)

    def get(self, *sources: Source | str, **more: object) -> Result:
        """Fetch under the world's policy, and look that the bytes are right."""
        result = fetch(self.transfer(*sources, **more), self.policy)
        assert self.target.read_bytes() == self.data
        return result

    def fails(self, kind: type[Exception], match: str, *sources: Source | str, **more: object) -> str:
        """Fetching raises this kind with this text, and leaves nothing at the final name; returns the message."""
        with pytest.raises(kind, match=match) as caught:
            fetch(self.transfer(*sources, **more), self.policy)
        assert not self.target.exists()
        return str(caught.value)

    def heals(self) -> Result:
        """After the faults are gone the same call delivers, and nothing is left beside the file."""
        self.server.faults.clear()
        self.second.faults.clear()
        result = self.get()
        left = {path.name for path in self.target.parent.iterdir()} - {".lavis_ext", "f.bin"}
        assert not {name for name in left if not name.startswith("f.bin.bad-")}
        return result

    def leave_partial(self, count: int = SIZE // 2, url: str = "") -> None:
        """As an earlier run that was cut leaves it: the first `count` bytes and their sidecar."""
        from lavis_ext.fetch.part import Part
        from lavis_ext.fetch.session import Validators

        self.target.parent.mkdir(parents=True, exist_ok=True)
        part = Part(self.target, 1 << 20)
        source = Source(url or self.first_url)
        part.record_validators(source, Validators(f'"{hashlib.md5(self.data).hexdigest()}"'), len(self.data))
        part.write(0, self.data[:count])
        part.close()

    def disk_full_at(self, offset: int, number: int = errno.ENOSPC) -> None:
        """Writes beyond `offset` fail as a full disk does."""
        real = os.pwrite

        def limited(fd: int, data: bytes, at: int) -> int:
            if at + len(data) > offset:
                raise OSError(number, os.strerror(number))
            return real(fd, data, at)

        self.patch.setattr(os, "pwrite", limited)


def certificate(folder: Path) -> Path:
    """A self-signed certificate for localhost with its key, made for this test."""
    both = folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run(
        [*command, *names, "-keyout", folder / "key.pem", "-out", folder / "crt.pem"], check=True, capture_output=True
    )
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "crt.pem").read_bytes())
    return both
