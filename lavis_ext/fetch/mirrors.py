"""The mirror that a user names: every source is fetched from there instead; what it lacks is an error that names it."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs

from lavis_ext.common.errors import ConfigError, LavisExtError, NetworkError
from lavis_ext.common.files import decode_json, expanded
from lavis_ext.fetch.safety import redact_url, safe_relative, split_url
from lavis_ext.fetch.transfer import Figures, Policy, Source, Transfer

VARIABLE = "LAVIS_EXT_MIRROR"
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 64 << 20

_HEX64 = re.compile(r"[0-9a-f]{64}")
_DRIVE_ID = re.compile(r"/file/d/([\w-]+)")


@dataclass(frozen=True)
class Manifest:
    """What a mirror holds: `<host>/<path>` → size and sha256, and how its bytes relate to the originals."""

    equivalence: str
    files: Mapping[str, Figures]


class MirrorMap:
    """Original URL → the same object below a base URL or folder; without a base it changes nothing and is false."""

    def __init__(self, base: str = "", policy: Policy | None = None) -> None:
        self.base = base.rstrip("/") if base != "/" else base
        self._policy = policy or Policy()
        self._lock = threading.Lock()
        self._manifest: Manifest | None = None
        self._loaded = not self.base

    @classmethod
    def from_environment(cls, option: str | None = None, policy: Policy | None = None) -> MirrorMap:
        """The mirror that `option` names, else `LAVIS_EXT_MIRROR`, else none.

        Raises ConfigError for another scheme, and for a folder that is not there.
        """
        base = option if option is not None else os.environ.get(VARIABLE, "")
        if base and "://" in base and split_url(base).scheme not in ("http", "https", "file"):
            raise ConfigError(
                VARIABLE, f"{redact_url(base)!r} is neither http(s) nor a folder", "name a base URL or folder"
            )
        if base and "://" not in base:
            base = str(expanded(base).absolute())
            if not os.path.isdir(base):  # noqa: PTH112 - of any text, without an error
                where = VARIABLE if option is None else f"--mirror {option}"
                raise ConfigError(
                    where, f"{base} is no folder", "name a folder that is there, or a URL with its https://"
                )
        return cls(base, policy)

    def __bool__(self) -> bool:
        return bool(self.base)

    @property
    def manifest(self) -> Manifest | None:
        """The mirror's `manifest.json`, read once; None where it has none."""
        with self._lock:
            if not self._loaded:
                self._manifest = self._load()
                self._loaded = True
            return self._manifest

    @property
    def is_subset(self) -> bool:
        """Whether the mirror says that it holds less than the originals."""
        return self.manifest is not None and self.manifest.equivalence == "subset"

    def lists(self, url: str) -> bool:
        """Whether the manifest lists this original; True where there is no manifest to ask."""
        return self.manifest is None or mirror_path(url) in self.manifest.files

    def locate(self, url: str) -> str:
        """Where the mirror keeps an original; a URL below the base stays as it is."""
        if not self.base or url == self.base or url.startswith(f"{self.base}/"):
            return url
        relative = safe_relative(mirror_path(url)) if self.is_folder else mirror_path(url)
        return f"{self.base}/{relative}"

    def digest(self, url: str) -> str | None:
        """The SHA-256 that the manifest gives of what the mirror keeps at its URL, None where it gives none."""
        manifest = self.manifest if self.base else None
        figures = manifest.files.get(url.removeprefix(f"{self.base}/")) if manifest else None
        return figures.sha256 if figures else None

    def apply(self, transfer: Transfer) -> Transfer:
        """The same transfer from the mirror alone, with its figures if it is a subset.

        Raises NetworkError, naming what the mirror lacks, where its manifest lists none of the sources.
        """
        if not self.base:
            return transfer
        kept = tuple(self._source(source) for source in transfer.sources if self.lists(source.url))
        if not kept:
            lacking = ", ".join(mirror_path(source.url) for source in transfer.sources) or "(no source)"
            raise NetworkError(
                transfer.name, f"the mirror {redact_url(self.base)} lacks {lacking}", "add it to the mirror"
            )
        if self.is_subset:
            first = kept[0]
            return replace(transfer, sources=kept, size=first.size, sha256=first.sha256, md5=first.md5)
        return replace(transfer, sources=kept)

    @property
    def is_folder(self) -> bool:
        """Whether it lies on a disk, so that no connection is opened for it."""
        return bool(self.base) and split_url(self.base).scheme not in ("http", "https")

    def _source(self, source: Source) -> Source:
        moved = replace(source, url=self.locate(source.url), trusted=True)
        figures = self.manifest.files.get(mirror_path(source.url)) if self.manifest else None
        if figures is None:
            return moved
        if self.is_subset:
            return replace(moved, equivalence="subset", size=figures.size, sha256=figures.sha256, md5=None)
        if source.exact:
            return moved if source.sha256 else replace(moved, size=figures.size, sha256=figures.sha256)
        return moved

    def _load(self) -> Manifest | None:
        where = f"{self.base}/{MANIFEST}"
        from lavis_ext.fetch.remote import fetch_bytes  # with the threads of remote files

        data = fetch_bytes(Source(where, trusted=True), self._policy, MANIFEST_LIMIT)
        return None if data is None else parse_manifest(data, redact_url(where))


def mirror_path(url: str) -> str:
    """`<host>/<path>` of an original, without query: the path below a mirror's base and the key in its manifest.

    `gdrive:ID` and links to Drive files → `drive.google.com/ID`; `hf:datasets/o/n/file` (revision as `n@rev`) →
    `huggingface.co/datasets/o/n/resolve/main/file`; `azure:ACCOUNT/container/blob` → the account's blob host.
    """
    parts = split_url(url)
    path = parts.path.lstrip("/")
    if parts.scheme == "gdrive":
        return f"drive.google.com/{parts.netloc or path}"
    if parts.scheme == "hf":
        return f"huggingface.co/{hub_path('/'.join(part for part in (parts.netloc, path) if part))}"
    if parts.scheme == "azure":
        account, _, blob = "/".join(part for part in (parts.netloc, path) if part).partition("/")
        return f"{account}.blob.core.windows.net/{blob}"
    host = parts.netloc.rpartition("@")[2]
    if host in ("drive.google.com", "docs.google.com", "drive.usercontent.google.com"):
        named = _DRIVE_ID.search(parts.path)
        found = named[1] if named else parse_qs(parts.query).get("id", [""])[0]
        return f"drive.google.com/{found}" if found else f"{host}/{path}"
    return f"{host}/{path}"


def hub_path(path: str) -> str:
    """`datasets/o/n[@rev]/file` → `datasets/o/n/resolve/rev/file`, the hub's download path (revision: main)."""
    kind = "datasets/" if path.startswith("datasets/") else ""
    owner, _, rest = path.removeprefix(kind).partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    return f"{kind}{owner}/{name}/resolve/{revision or 'main'}/{file}"


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Bytes of a `manifest.json` → Manifest; raises ConfigError that lists every wrong entry."""
    try:
        raw: Any = decode_json(data)
    except ValueError as error:
        raise ConfigError(where, f"not JSON: {error}", "write the manifest again") from error
    if not isinstance(raw, dict) or raw.get("format") != 1 or not isinstance(raw.get("files"), dict):
        raise ConfigError(where, "not a manifest of format 1", 'expected {"format": 1, "equivalence": …, "files": {…}}')
    equivalence = raw.get("equivalence")
    if equivalence not in ("byte_exact", "subset"):
        raise ConfigError(where, f"equivalence {equivalence!r}", "use byte_exact or subset")
    problems = [problem for name, entry in raw["files"].items() if (problem := _problem(where, name, entry))]
    if problems:
        raise ConfigError.of(found for error in problems for found in error.problems)
    files = {name: Figures(entry["size"], entry["sha256"]) for name, entry in raw["files"].items()}
    return Manifest(equivalence, files)


def _problem(where: str, name: str, entry: Any) -> LavisExtError | None:
    place = f"{where}: files.{name}"
    if ".." in name.split("/") or name.startswith("/") or "?" in name:
        return ConfigError(place, "not a <host>/<path>", "leave out leading slashes, '..' and queries")
    if not isinstance(entry, dict):
        return ConfigError(place, "not an object", 'expected {"size": n, "sha256": "…"}')
    size, sha256 = entry.get("size"), entry.get("sha256")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        return ConfigError(place, f"size {size!r}", "expected a number of bytes")
    if not isinstance(sha256, str) or not _HEX64.fullmatch(sha256):
        return ConfigError(place, f"sha256 {sha256!r}", "expected 64 hexadecimal digits, lower case")
    return None
