"""What a remote folder holds: by a mirror, a kept listing, the card, the host where its token may list, or the disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from lavis_ext.cards import Artifact, Blob, Folder
from lavis_ext.errors import AccessError, LavisExtError, NetworkError, UnsafeError
from lavis_ext.fetch import MirrorMap, Policy
from lavis_ext.fetch.azure import blob_place
from lavis_ext.fetch.bloblist import list_blobs
from lavis_ext.fetch.mirrors import mirror_path
from lavis_ext.fetch.sas import TOKENS, Sas
from lavis_ext.files import write_atomic
from lavis_ext.prepare.members import name_fault
from lavis_ext.prepare.placing import disk_errors
from lavis_ext.prepare.stamps import record_path
from lavis_ext.wording import human

log = logging.getLogger(__name__)
FORMAT = 1
Origin = Literal["mirror", "listing", "card", "disk"]
UNFINISHED = (".part", ".part.json", ".part.owner")


@dataclass(frozen=True)
class Contents:
    """The files of a folder by relative name, and who said so."""

    files: dict[str, Blob]
    origin: Origin


Teller = Callable[[], Contents | None]


@dataclass(frozen=True)
class Finder:
    """Finds what folders hold, under one run's circumstances; `listing`: hosts are asked first."""

    root: Path
    mirrors: MirrorMap
    policy: Policy
    listing: bool = False

    def find(self, artifact: Artifact) -> Contents:
        """From the first that says so; raises AccessError, NetworkError, UnsafeError."""
        folder = artifact.folder or Folder()
        for teller in self._tellers(artifact, folder):
            contents = teller()
            if contents is not None and contents.files:
                return checked(artifact, folder, contents)
        raise self._unknown(artifact)

    def _tellers(self, artifact: Artifact, folder: Folder) -> Iterator[Teller]:
        """Whom to ask, best first."""
        direct = not self.policy.offline and not self.mirrors
        if self.mirrors:
            yield partial(from_mirror, artifact, folder, self.mirrors)
        if direct and self.listing:
            yield partial(from_host, artifact, self.policy)
        yield partial(read_contents, self.root, artifact, None if self.policy.offline else "listing")
        if direct and not folder.complete and may_list(artifact):
            yield partial(_from_host_if_it_tells, artifact, self.policy)
        if direct and not folder.complete and self._is_users(artifact):
            yield partial(from_disk, self.root, artifact)
        if folder.files and not self.mirrors.manifest:
            yield partial(Contents, folder.files, "card")
        if not self.mirrors:
            yield partial(from_disk, self.root, artifact)

    def _is_users(self, artifact: Artifact) -> bool:
        """Whether what lies there can only be the user's: nothing opens the container, and no run of ours began."""
        kept = read_contents(self.root, artifact)
        began = kept is not None and kept.origin != "disk"
        return urlsplit(artifact.url).scheme == "azure" and token_of(artifact) is None and not began

    def _unknown(self, artifact: Artifact) -> LavisExtError:
        where = f"{artifact.family}/{artifact.name}"
        size = f" (about {human(artifact.about)})" if artifact.about else ""
        what = f"nobody says which files this folder holds{size}"
        if self.mirrors:
            return NetworkError(where, f"{what}, not even the mirror", "add its files and their names to the mirror")
        if self.policy.offline:
            return NetworkError(where, f"{what}, and offline", "run `lavis-ext prepare` with a network first")
        way_out = "use a SAS that may list (sp=rl), a mirror, or name its files under `folder.files` in your own card"
        return AccessError(where, what, f"{way_out}; files that you have may be put into {artifact.storage}")


def from_mirror(artifact: Artifact, folder: Folder, mirrors: MirrorMap) -> Contents | None:
    """By the mirror's manifest, or by looking into it where it is a folder; None where it does not tell."""
    prefix = f"{mirror_path(artifact.url).rstrip('/')}/"
    if mirrors.manifest is not None:
        names = [unquote(name[len(prefix) :]) for name in mirrors.manifest.files if name.startswith(prefix)]
    elif urlsplit(mirrors.base).scheme not in ("http", "https"):
        names = files_in(Path(unquote(mirrors.locate(artifact.url).removeprefix("file://"))))
    else:
        return None
    return Contents({name: folder.files.get(name, Blob()) for name in names}, "mirror")


def from_host(artifact: Artifact, policy: Policy) -> Contents:
    """By a listing; raises AccessError where the token may not list, NetworkError, IntegrityError."""
    if urlsplit(artifact.url).scheme != "azure":
        raise NetworkError(artifact.name, "its host cannot be asked what it holds", "leave out --list")
    declared = artifact.folder.files if artifact.folder else {}
    blobs = {
        blob.name: Blob(size=blob.size, md5=blob.md5, sha256=declared.get(blob.name, Blob()).sha256)
        for blob in list_blobs(artifact.url, policy)
    }
    return Contents(blobs, "listing")


def _from_host_if_it_tells(artifact: Artifact, policy: Policy) -> Contents | None:
    try:
        return from_host(artifact, policy)
    except LavisExtError as error:
        log.warning("%s: not listed: %s", artifact.name, error)
        return None


def may_list(artifact: Artifact) -> bool:
    """Whether the token of the folder's container says that it lists; False without one."""
    sas = token_of(artifact)
    return sas is not None and sas.may_list


def token_of(artifact: Artifact) -> Sas | None:
    """The token of a folder's container, None without one; raises AccessError, ConfigError."""
    if urlsplit(artifact.url).scheme != "azure":
        return None
    return TOKENS.find(blob_place(f"{artifact.url.rstrip('/')}/x").container)


def from_disk(root: Path, artifact: Artifact) -> Contents:
    """What the user put there already."""
    names = [name for name in files_in(root / artifact.storage) if not name.endswith(UNFINISHED)]
    return Contents({name: Blob() for name in names}, "disk")


def files_in(folder: Path) -> list[str]:
    """Relative names of all files below a folder, sorted; hidden ones and our bookkeeping left out."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def checked(artifact: Artifact, folder: Folder, contents: Contents) -> Contents:
    """Without what is an artifact of its own; raises UnsafeError for a name that could leave the folder."""
    inner = tuple(f"{place.strip('/')}/" for place in folder.nested)
    files = {name: blob for name, blob in contents.files.items() if not name.startswith(inner)}
    for name in files:
        fault = name_fault(name)
        if fault:
            raise UnsafeError(artifact.name, fault.replace("member", "file"), "name another mirror")
    return replace(contents, files=files)


def keep_contents(root: Path, found: Sequence[tuple[Artifact, Contents]]) -> None:
    """Remember what folders were found to hold: what `status` and `verify` go by, and later runs after a listing.

    Raises DiskError.
    """
    for artifact, contents in found:
        tree: dict[str, Any] = {"format": FORMAT, "url": artifact.url, "origin": contents.origin}
        tree["files"] = {name: _known(blob) for name, blob in contents.files.items()}
        path = contents_path(root, artifact)
        with disk_errors(path):
            write_atomic(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def _known(blob: Blob) -> dict[str, Any]:
    return {name: value for name, value in asdict(blob).items() if value is not None}


def contents_path(root: Path, artifact: Artifact) -> Path:
    """Where a folder's manifest is kept: `<family>/.lavis_ext/blobs/<folder>.json`."""
    return record_path(root, artifact, "blobs", ".json")


def read_contents(root: Path, artifact: Artifact, origin: Origin | None = None) -> Contents | None:
    """The manifest that is kept of a folder (of this origin); None without one, or where it cannot be read."""
    path = contents_path(root, artifact)
    try:
        tree = json.loads(path.read_text("utf-8"))
        contents = Contents({str(name): Blob(**blob) for name, blob in tree["files"].items()}, tree["origin"])
        same = (tree["format"], tree["url"]) == (FORMAT, artifact.url)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s: cannot be read and is passed over (%s)", path, error)
        return None
    return contents if same and origin in (None, contents.origin) else None
