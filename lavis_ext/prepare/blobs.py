"""Artifacts that are remote folders: which files they hold, and which of these are asked for.

The files are known from a mirror, a kept listing, the card, the host where its token may list, or the disk.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from lavis_ext.common.config.cards import Artifact, Blob, RemoteFolder
from lavis_ext.common.errors import AccessError, LavisExtError, NetworkError, UnsafeError, UsageError, nearest
from lavis_ext.common.files import decode_json, read_file, write_atomic
from lavis_ext.common.secrets import identity, split_url
from lavis_ext.common.wording import human
from lavis_ext.fetch.mirrors import MirrorMap, mirror_path
from lavis_ext.fetch.transfer import Policy
from lavis_ext.prepare.plan import Plan
from lavis_ext.prepare.records import UNREADABLE, disk_errors, record_path
from lavis_ext.prepare.selection import (
    ArtifactRequest,
    Contents,
    ContentsOrigin,
    PrepareOptions,
    Selection,
    name_fault,
    refuse_places,
)

if TYPE_CHECKING:
    from lavis_ext.fetch.azure import Sas

log = logging.getLogger(__name__)
FORMAT = 1
UNFINISHED = (".part", ".part.json", ".part.owner")


Lookup = Callable[[], Contents | None]


@dataclass(frozen=True)
class Finder:
    """Finds which files folders hold; with `listing`, hosts are asked first."""

    root: Path
    mirrors: MirrorMap
    policy: Policy
    listing: bool = False
    locked: bool = False
    """Whether the cards have the files of a lock, which nothing else may replace."""

    def find(self, artifact: Artifact) -> Contents:
        """The files, from the first place that knows them; raises AccessError, NetworkError, UnsafeError."""
        folder = artifact.folder or RemoteFolder()
        for lookup in self._lookups(artifact, folder):
            contents = lookup()
            if contents is not None and contents.files:
                return checked(artifact, folder, contents)
        raise self._unknown(artifact)

    def _lookups(self, artifact: Artifact, folder: RemoteFolder) -> Iterator[Lookup]:
        """The places to ask, best first. The SAS that Oscar publishes may read, but not list."""
        if self.locked:
            yield partial(Contents, folder.files, "card")
            return
        direct = not self.policy.offline and not self.mirrors
        if self.mirrors:
            yield partial(from_mirror, artifact, folder, self.mirrors)
        if direct and self.listing:
            yield partial(from_host, artifact, self.policy)
        yield partial(read_contents, self.root, artifact, None if self.policy.offline else "listing")
        if direct and not folder.complete and may_list(artifact):
            yield partial(_try_host, artifact, self.policy)
        if direct and not folder.complete and self._is_users(artifact):
            yield partial(from_disk, self.root, artifact)
        if folder.files and not self.mirrors.manifest:
            yield partial(Contents, folder.files, "card")
        if not self.mirrors:
            yield partial(from_disk, self.root, artifact)

    def _is_users(self, artifact: Artifact) -> bool:
        """Whether what is on disk can only be the user's: there is no token, and no run has found other contents."""
        kept = read_contents(self.root, artifact)
        known = kept is not None and kept.origin != "disk"
        return split_url(artifact.url).scheme == "azure" and token_of(artifact) is None and not known

    def _unknown(self, artifact: Artifact) -> LavisExtError:
        where = f"{artifact.family}/{artifact.name}"
        size = f" (about {human(artifact.about)})" if artifact.about else ""
        what = f"it is not known which files this folder holds{size}"
        if self.mirrors:
            return NetworkError(where, f"{what}, not even the mirror", "add its files and their names to the mirror")
        if self.policy.offline:
            return NetworkError(where, f"{what}, and offline", "run `lavis-ext prepare` with a network first")
        way_out = "use a SAS that may list (sp=rl), a mirror, or name its files under `folder.files` in your own card"
        return AccessError(where, what, f"{way_out}; files that you have may be put into {artifact.storage}")


def from_mirror(artifact: Artifact, folder: RemoteFolder, mirrors: MirrorMap) -> Contents | None:
    """By the mirror's manifest, or its listing where it is a local folder; None where it has neither."""
    prefix = f"{mirror_path(artifact.url).rstrip('/')}/"
    if mirrors.manifest is not None:
        names = [unquote(name[len(prefix) :]) for name in mirrors.manifest.files if name.startswith(prefix)]
    elif split_url(mirrors.base).scheme not in ("http", "https"):
        names = files_in(Path(unquote(mirrors.locate(artifact.url).removeprefix("file://"))))
    else:
        return None
    return Contents({name: folder.files.get(name, Blob()) for name in names}, "mirror")


def from_host(artifact: Artifact, policy: Policy) -> Contents:
    """By a listing of its host; raises AccessError where the token may not list, NetworkError, IntegrityError."""
    from lavis_ext.fetch.azure import list_blobs
    from lavis_ext.fetch.objects import BUCKETS, listed

    scheme = split_url(artifact.url).scheme
    if scheme in ("hf", *BUCKETS):
        base = artifact.url.rstrip("/") + "/"
        found = listed(base, policy)
        prefix = len(_in_commit(base, found[0].url if found else base))
        return Contents({unquote(one.url[prefix:]): Blob(size=one.size, sha256=one.sha256) for one in found}, "listing")
    if scheme != "azure":
        raise NetworkError(artifact.name, "its host cannot be asked what it holds", "leave out --list")
    declared = artifact.folder.files if artifact.folder else {}
    blobs = {
        blob.name: Blob(size=blob.size, md5=blob.md5, sha256=declared.get(blob.name, Blob()).sha256)
        for blob in list_blobs(artifact.url, policy)
    }
    return Contents(blobs, "listing")


def _in_commit(base: str, first: str) -> str:
    """The address of a folder as the hub's listing writes it: with the commit that the revision meant."""
    from lavis_ext.fetch.hub import repository_of

    if not base.startswith("hf:"):
        return base
    folder = repository_of(base)[-1]
    root = re.match(r"hf:(?:datasets/)?[^/]+/[^/]+/", first)
    return f"{root[0] if root else base}{quote(folder)}{'/' if folder else ''}"


def _try_host(artifact: Artifact, policy: Policy) -> Contents | None:
    try:
        return from_host(artifact, policy)
    except LavisExtError as error:
        log.warning("%s: not listed: %s", artifact.name, error)
        return None


def may_list(artifact: Artifact) -> bool:
    """Whether the hub is asked, or the token of the folder's container says that it lists; False without one."""
    if split_url(artifact.url).scheme in ("hf", "s3", "gs", "az"):
        return True
    sas = token_of(artifact)
    return sas is not None and sas.may_list


def token_of(artifact: Artifact) -> Sas | None:
    """The token of a folder's container, None without one; raises AccessError, ConfigError."""
    if split_url(artifact.url).scheme != "azure":
        return None
    from lavis_ext.fetch.azure import TOKENS, blob_place

    return TOKENS.find(blob_place(f"{artifact.url.rstrip('/')}/x").container)


def from_disk(root: Path, artifact: Artifact) -> Contents:
    """The files that the user put below the artifact's storage."""
    names = [name for name in files_in(root / artifact.storage) if not name.endswith(UNFINISHED)]
    return Contents({name: Blob() for name in names}, "disk")


def files_in(folder: Path) -> list[str]:
    """Relative names of all files below a folder, sorted; hidden ones, and the bookkeeping with them, left out."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def checked(artifact: Artifact, folder: RemoteFolder, contents: Contents) -> Contents:
    """The contents without nested artifacts; raises UnsafeError for a name that could leave the folder."""
    inner = tuple(f"{place.strip('/')}/" for place in folder.nested)
    files = {name: blob for name, blob in contents.files.items() if not name.startswith(inner)}
    if folder.only:
        files = {name: blob for name, blob in files.items() if any(fnmatchcase(name, one) for one in folder.only)}
    for name in files:
        fault = name_fault(name)
        if fault:
            raise UnsafeError(artifact.name, fault.replace("member", "file"), "name another mirror")
    return replace(contents, files=files)


def keep_contents(root: Path, found: Sequence[tuple[Artifact, Contents]]) -> None:
    """Keep which files folders hold, for `status`, `verify`, and later runs after a listing. Raises DiskError."""
    for artifact, contents in found:
        tree: dict[str, Any] = {"format": FORMAT, "url": identity(artifact.url), "origin": contents.origin}
        tree["files"] = {name: _known(blob) for name, blob in contents.files.items()}
        path = contents_path(root, artifact)
        with disk_errors(path):
            write_atomic(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def _known(blob: Blob) -> dict[str, Any]:
    return {name: value for name, value in asdict(blob).items() if value is not None}


def contents_path(root: Path, artifact: Artifact) -> Path:
    """Where a folder's manifest is kept: `<family>/.lavis_ext/blobs/<folder>.json`."""
    return record_path(root, artifact, "blobs", ".json")


def read_contents(root: Path, artifact: Artifact, origin: ContentsOrigin | None = None) -> Contents | None:
    """The manifest that is kept of a folder (of this origin); None without one, or where it cannot be read."""
    path = contents_path(root, artifact)
    try:
        tree = decode_json(read_file(path))
        contents = Contents({str(name): Blob(**blob) for name, blob in tree["files"].items()}, tree["origin"])
        same = tree["format"] == FORMAT and tree["url"] in (identity(artifact.url), artifact.url)
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        log.warning("%s: cannot be read and is ignored (%s)", path, error)
        return None
    return contents if same and origin in (None, contents.origin) else None


def open_folders(root: Path, selection: Selection, options: PrepareOptions, mirrors: MirrorMap) -> Selection:
    """The selection with each folder replaced by its files, without those that `include` and `exclude` leave out.

    A folder whose files are not known stays, with the reason as its `refusal`. Opens no connection except for a
    listing: where it is asked for, or where the card declares no complete one and the token may list. Raises UsageError
    where the patterns leave nothing, UnsafeError for names that leave the folder, ConfigError for those that differ
    only in case.
    """
    finder = Finder(root, mirrors, options.policy, options.listing, options.locked)
    requests: list[ArtifactRequest] = []
    lines = list(selection.passed_over)
    contents: list[tuple[Artifact, Contents]] = []
    for request in selection.requests:
        if request.artifact.folder is None:
            requests.append(request)
            continue
        try:
            found = finder.find(request.artifact)
        except UnsafeError:
            raise
        except LavisExtError as error:
            requests.append(replace(request, refusal=error))
            continue
        contents.append((request.artifact, found))
        requests += as_files(request, found)
        lines += _lines(request, found)
    kept = tuple(_matching(requests, options))
    refuse_places(kept)
    return replace(selection, requests=kept, passed_over=tuple(lines), contents=tuple(contents))


def as_files(request: ArtifactRequest, contents: Contents) -> list[ArtifactRequest]:
    """One request for each file of a folder, with the folder's users."""
    folder = request.artifact
    files = _with_rest(contents.files, folder.about)
    return [replace(request, artifact=_file(folder, name, blob), folder=request.title) for name, blob in files.items()]


def _file(folder: Artifact, name: str, blob: Blob) -> Artifact:
    """A file of a folder; an archive among them is unpacked beside where it lies, where the folder says `unpack`."""
    place = PurePosixPath(folder.storage, name)
    unpack = folder.unpack if folder.unpack and name.endswith(f".{folder.unpack}") else None
    return replace(
        folder,
        name=f"{folder.name}/{name}",
        url=f"{folder.url.rstrip('/')}/{quote(name)}",
        storage=str(place.parent if unpack else place),
        unpack=unpack,
        mirrors=[replace(mirror, url=f"{mirror.url.rstrip('/')}/{quote(name)}") for mirror in folder.mirrors],
        size=blob.size,
        sha256=blob.sha256,
        md5=blob.md5,
        about=blob.about,
        folder=None,
    )


def _with_rest(files: dict[str, Blob], about: int | None) -> dict[str, Blob]:
    """The files, where the first of unknown size counts as what is left of the folder's declared size (`about`)."""
    unknown = next((name for name, blob in files.items() if blob.size is None and blob.about is None), None)
    rest = (about or 0) - sum(blob.size or blob.about or 0 for blob in files.values())
    if unknown is None or rest <= 0:
        return files
    return {**files, unknown: replace(files[unknown], about=rest)}


def _lines(request: ArtifactRequest, contents: Contents) -> list[str]:
    """A line for each nested folder that is an artifact of its own, with its size."""
    nested = request.artifact.folder.nested if request.artifact.folder else {}
    local = f"{request.title}: the {len(contents.files)} files on disk are used; it is not known whether they are all"
    lines = [local] if contents.origin == "disk" else []
    home = request.artifact.family or request.card.family
    for place, name in nested.items():
        inner = request.card.artifacts.get(name)
        size = f" (about {human(inner.about)})" if inner and inner.about else ""
        lines.append(f"{request.title}: {place}/{size} in it is left out; ask for {home}/{name}")
    return lines


def _matching(requests: Sequence[ArtifactRequest], options: PrepareOptions) -> list[ArtifactRequest]:
    if not options.include and not options.exclude:
        return list(requests)
    kept = [request for request in requests if request.refusal is not None or _is_meant(request, options)]
    if not kept and requests:
        names = [request.artifact.name.partition("/")[2] or request.artifact.name for request in requests]
        asked = " ".join([*options.include, *options.exclude])
        raise UsageError(f"--include/--exclude {asked}", "leave nothing", nearest("", names[:20]))
    return kept


def _is_meant(request: ArtifactRequest, options: PrepareOptions) -> bool:
    """Whether the patterns select it, by its path inside the folder or with the artifact's name before it."""
    names = {request.artifact.name, request.artifact.name.partition("/")[2] or request.artifact.name}

    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)

    return (not options.include or matches(options.include)) and not matches(options.exclude)


def with_tokens(made: Plan, offline: bool) -> Plan:
    """The plan with a line for each Azure container whose token is missing or does not allow what is planned."""
    sources = [item.source for item in made.items if item.action in ("fetch", "ranges")]
    sources = [source for source in sources if source.startswith("azure:")]
    if offline or not sources:
        return made
    from lavis_ext.fetch.azure import blob_place, find_token, way_in
    from lavis_ext.fetch.transfer import Failure

    places = [blob_place(source) for source in sources]
    lines: list[str] = []
    for place in {place.container: place for place in places}.values():
        try:
            reason = "" if find_token(place) else f"no SAS is set; {way_in(place)}"
        except Failure as failure:
            reason = failure.reason
        lines += [f"container '{place.container}' of Azure: {reason}"] if reason else []
    return replace(made, passed_over=(*made.passed_over, *lines))
