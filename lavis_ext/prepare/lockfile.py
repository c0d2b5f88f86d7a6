"""`lavis-ext.lock`: which bytes of each artifact a project uses, as its users accepted them by hand.

`family/artifact` → size and SHA-256. `checksum` compares it with the cards, the disk and the sources, and writes it
only with `--accept`; `prepare --locked` fetches nothing else than what stands in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lavis_ext.common.config.cards import Artifact, Blob, Cards, RemoteFolder
from lavis_ext.common.errors import ConfigError, LavisExtError, Problem
from lavis_ext.common.files import decode_json, disk_errors, read_errors, read_file, write_atomic
from lavis_ext.common.secrets import identity
from lavis_ext.fetch.engine import fetch
from lavis_ext.fetch.objects import pinned
from lavis_ext.fetch.transfer import Policy, Progress, Source, Transfer
from lavis_ext.prepare.records import ArtifactRecord, bookkeeping
from lavis_ext.prepare.selection import ArtifactRequest

NAME = "lavis-ext.lock"
FORMAT = 1


@dataclass(frozen=True)
class Pin:
    """What was accepted of one artifact; `accepted` is the day."""

    size: int
    sha256: str
    url: str = ""
    accepted: str = ""


@dataclass
class Lock:
    """The pins of a project, by `family/artifact` (a folder's files: `family/folder/file`)."""

    path: Path
    pins: dict[str, Pin] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None = None, must: bool = False) -> Lock:
        """The lock of the working directory; empty where there is none. Raises ConfigError with every wrong entry."""
        path = path or Path(NAME)
        with read_errors(path):
            if not path.exists():
                if must:
                    raise ConfigError(str(path), "is not there", "write it: `lavis-ext checksum NAME --accept`")
                return cls(path)
            data = read_file(path)
        try:
            tree = decode_json(data)
            known, entries = tree["format"] == FORMAT, dict(tree["artifacts"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                str(path), f"is no lock file ({error})", "write it again with `checksum --accept`"
            ) from error
        if not known:
            raise ConfigError(str(path), "is of another version of lavis_ext", "use that version")
        pins = {name: _pin(entry) for name, entry in entries.items()}
        wrong = [
            Problem(f"{path}: {name}", "has no size and sha256", "accept it again")
            for name, pin in pins.items()
            if pin is None
        ]
        if wrong:
            raise ConfigError.of(wrong)
        return cls(path, {name: pin for name, pin in pins.items() if pin is not None})

    def write(self) -> None:
        """Replace the file, sorted by name, so that a comparison of two versions shows what was accepted."""
        entries = {name: vars(pin) for name, pin in sorted(self.pins.items())}
        with disk_errors(self.path):
            write_atomic(self.path, json.dumps({"format": FORMAT, "artifacts": entries}, indent=1) + "\n")

    def applied(self, cards: Cards) -> Cards:
        """The cards with the pinned figures in the place of the declared ones."""
        families = {}
        for family, card in cards.families.items():
            artifacts = {name: self._applied(f"{family}/{name}", one) for name, one in card.artifacts.items()}
            families[family] = replace(card, artifacts=artifacts)
        return replace(cards, families=families)

    def _applied(self, key: str, artifact: Artifact) -> Artifact:
        if artifact.folder is not None:
            files = {
                name[len(key) + 1 :]: Blob(size=pin.size, sha256=pin.sha256)
                for name, pin in self.pins.items()
                if name.startswith(f"{key}/")
            }
            return replace(artifact, folder=RemoteFolder(files=files, complete=True, nested=artifact.folder.nested))
        pin = self.pins.get(key)
        if pin is None:
            return artifact
        exact = [mirror for mirror in artifact.mirrors if mirror.equivalence == "byte_exact"]
        return replace(artifact, size=pin.size, sha256=pin.sha256, md5=None, mirrors=exact)

    def require(self, requests: Iterable[ArtifactRequest]) -> None:
        """Raise ConfigError for every artifact that no pin names."""
        lacking = [key for request in requests if (key := key_of(request.artifact)) not in self.pins]
        if lacking:
            way_out = "`lavis-ext checksum NAME --accept`, or leave out --locked"
            raise ConfigError.of([Problem(str(self.path), f"does not pin {key}", way_out) for key in lacking])


def _pin(entry: Any) -> Pin | None:
    if not isinstance(entry, dict):
        return None
    size, sha256 = entry.get("size"), entry.get("sha256")
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return None
    return Pin(size, sha256, str(entry.get("url", "")), str(entry.get("accepted", "")))


def key_of(artifact: Artifact) -> str:
    """What a lock calls an artifact; a file that no card names goes by its path."""
    return f"{artifact.family}/{artifact.name}" if artifact.family and artifact.name else artifact.file


@dataclass(frozen=True)
class Comparison:
    """One artifact: what is declared, pinned, on the disk and at its source now."""

    key: str
    artifact: Artifact
    declared: Mapping[str, Any]
    pin: Pin | None = None
    disk: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    error: LavisExtError | None = None
    """Why the source could not be asked."""

    @property
    def changed(self) -> bool:
        """Whether the source offers something else than what was accepted, else declared, else fetched."""
        sizes = [self.pin.size if self.pin else None, self.declared.get("size"), self.disk.get("size")]
        then, now = next((size for size in sizes if size is not None), None), self.source.get("size")
        if None not in (then, now) and then != now:
            return True
        versions = self.disk.get("validator"), self.source.get("version")
        fresh = self.pin is None or self.pin.sha256 == self.disk.get("sha256")
        return bool(fresh and all(versions) and versions[0] != versions[1])

    @property
    def state(self) -> str:
        """One word: same, changed, or unreachable; `unpinned` where it is the same and in no lock."""
        if self.error is not None:
            return "unreachable"
        return "changed" if self.changed else "same" if self.pin else "unpinned"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        pin = vars(self.pin) if self.pin else None
        told = {"declared": dict(self.declared), "locked": pin, "disk": dict(self.disk), "source": dict(self.source)}
        return {"artifact": self.key, "state": self.state, **told, "error": str(self.error or "")}


def compare(artifact: Artifact, record: ArtifactRecord | None, lock: Lock, policy: Policy) -> Comparison:
    """Ask the source of an artifact for what it offers now: one request, no body."""
    declared = {name: value for name in ("size", "sha256", "md5") if (value := getattr(artifact, name))}
    whole = record is not None and not record.subset and record.size is not None and bool(record.sha256)
    disk = {name: getattr(record, name) for name in ("size", "sha256", "validator")} if whole else {}
    known = Comparison(key_of(artifact), artifact, declared, lock.pins.get(key_of(artifact)), disk)
    try:
        now = pinned(artifact.url, policy)
    except LavisExtError as error:
        return replace(known, error=error)
    return replace(known, source={"size": now.size, "version": now.version})


def accepted(one: Comparison, root: Path, policy: Policy, progress: Progress | None = None) -> Pin:
    """The pin of what the source offers now: of the disk or the card where it is still that, else of a fetched copy.

    What is fetched for that is put aside again: `prepare --locked` fetches it to its place. Raises as `fetch` does.
    """
    if not one.changed:
        for known in (one.disk, one.declared):
            if known.get("size") is not None and known.get("sha256"):
                return _new(one.artifact, known["size"], known["sha256"])
    if one.error is not None:
        raise one.error
    path = bookkeeping(root, one.artifact) / "checksum" / Path(one.artifact.file).name
    path.unlink(missing_ok=True)
    size = one.source.get("size")
    try:
        result = fetch(Transfer(path, (Source(one.artifact.url, trusted=True),), size, label=one.key), policy, progress)
        return _new(one.artifact, path.stat().st_size, str(result.sha256))
    finally:
        path.unlink(missing_ok=True)


def _new(artifact: Artifact, size: int, sha256: str) -> Pin:
    return Pin(size, sha256.lower(), identity(artifact.url), datetime.now(timezone.utc).strftime("%Y-%m-%d"))
