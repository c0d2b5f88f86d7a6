"""Folders as their files: each file of a folder is a need of its own, and patterns choose among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

from lavis_ext.cards import Artifact, Blob
from lavis_ext.errors import LavisExtError, UnsafeError, UsageError, nearest
from lavis_ext.fetch import MirrorMap
from lavis_ext.fetch.azure import blob_place, find_token, way_in
from lavis_ext.fetch.failures import Failure
from lavis_ext.prepare.contents import Contents, Finder
from lavis_ext.prepare.planning import Plan
from lavis_ext.prepare.report import ArtifactState
from lavis_ext.prepare.selection import Need, PrepareOptions, Selection
from lavis_ext.prepare.stamps import read_stamp
from lavis_ext.wording import human


def open_folders(root: Path, selection: Selection, options: PrepareOptions, mirrors: MirrorMap) -> Selection:
    """The selection with each folder as its files, less what `include` and `exclude` leave out.

    A folder of which nobody says what it holds stays, with the reason as its `refusal`. Opens no connection except for
    a listing: where it is asked for, or where nothing complete is declared and the token may list. Raises UsageError
    where the patterns leave nothing, UnsafeError for names that leave the folder.
    """
    finder = Finder(root, mirrors, options.policy, options.listing)
    needs: list[Need] = []
    lines = list(selection.passed_over)
    contents: list[tuple[Artifact, Contents]] = []
    for need in selection.needs:
        if need.artifact.folder is None:
            needs.append(need)
            continue
        found = _contents(finder, need.artifact)
        if isinstance(found, LavisExtError):
            needs.append(replace(need, refusal=found))
            continue
        contents.append((need.artifact, found))
        needs += as_files(need, found)
        lines += _lines(need, found)
    kept = tuple(_matching(needs, options))
    return replace(selection, needs=kept, passed_over=tuple(lines), contents=tuple(contents))


def _contents(finder: Finder, artifact: Artifact) -> Contents | LavisExtError:
    try:
        return finder.find(artifact)
    except UnsafeError:
        raise
    except LavisExtError as error:
        return error


def as_files(need: Need, contents: Contents) -> list[Need]:
    """One need for each file of a folder, with the folder's users."""
    folder = need.artifact
    files = _with_rest(contents.files, folder.about)
    return [replace(need, artifact=_file(folder, name, blob), folder=need.title) for name, blob in files.items()]


def _file(folder: Artifact, name: str, blob: Blob) -> Artifact:
    return replace(
        folder,
        name=f"{folder.name}/{name}",
        url=f"{folder.url.rstrip('/')}/{quote(name)}",
        storage=f"{folder.storage.rstrip('/')}/{name}",
        mirrors=[replace(mirror, url=f"{mirror.url.rstrip('/')}/{quote(name)}") for mirror in folder.mirrors],
        size=blob.size,
        sha256=blob.sha256,
        md5=blob.md5,
        about=blob.about,
        folder=None,
    )


def _with_rest(files: dict[str, Blob], about: int | None) -> dict[str, Blob]:
    """The first file of unknown size stands in the plan for what the round figure of the folder leaves over."""
    unknown = next((name for name, blob in files.items() if blob.size is None and blob.about is None), None)
    rest = (about or 0) - sum(blob.size or blob.about or 0 for blob in files.values())
    if unknown is None or rest <= 0:
        return files
    return {**files, unknown: replace(files[unknown], about=rest)}


def _lines(need: Need, contents: Contents) -> list[str]:
    """A line for each folder inside this one that is an artifact of its own, with what it would cost."""
    nested = need.artifact.folder.nested if need.artifact.folder else {}
    taken = f"{need.title}: the {len(contents.files)} files that lie there are taken; nobody says that they are all"
    told = [taken] if contents.origin == "disk" else []
    home = need.artifact.family or need.card.family
    for place, name in nested.items():
        inner = need.card.artifacts.get(name)
        size = f" (about {human(inner.about)})" if inner and inner.about else ""
        told.append(f"{need.title}: {place}/{size} lies in it and is left out; ask for {home}/{name}")
    return told


def _matching(needs: Sequence[Need], options: PrepareOptions) -> list[Need]:
    if not options.include and not options.exclude:
        return list(needs)
    kept = [need for need in needs if need.refusal is not None or _is_meant(need, options)]
    if not kept and needs:
        names = [need.artifact.name.partition("/")[2] or need.artifact.name for need in needs]
        asked = " ".join([*options.include, *options.exclude])
        raise UsageError(f"--include/--exclude {asked}", "leave nothing", nearest("", names[:20]))
    return kept


def _is_meant(need: Need, options: PrepareOptions) -> bool:
    """By the path inside the folder, or by that after the artifact's name."""
    names = {need.artifact.name, need.artifact.name.partition("/")[2] or need.artifact.name}

    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)

    return (not options.include or matches(options.include)) and not matches(options.exclude)


def with_tokens(made: Plan, offline: bool) -> Plan:
    """The plan with a line for each container of Azure whose token is missing, or says itself that it will not do."""
    sources = [item.source for item in made.items if item.action in ("fetch", "ranges")]
    places = [blob_place(source) for source in sources if source.startswith("azure:")]
    lines: list[str] = []
    for place in {place.container: place for place in places}.values() if not offline else ():
        try:
            told = "" if find_token(place) else f"no SAS is set; {way_in(place)}"
        except Failure as failure:
            told = failure.reason
        lines += [f"container '{place.container}' of Azure: {told}"] if told else []
    return replace(made, passed_over=(*made.passed_over, *lines))


def artifact_states(root: Path, selection: Selection) -> list[ArtifactState]:
    """The state of each artifact that was named itself, told by the stamps of its files."""
    states = []
    for title in selection.named:
        needs = [need for need in selection.needs if title in (need.title, need.folder)]
        stamps = [stamp for need in needs if (stamp := read_stamp(root, need.artifact)) is not None]
        known = not any(need.refusal for need in needs)
        states.append(
            ArtifactState(
                dataset=title,
                split="",
                expected=len(needs) if known else None,
                present=len(stamps),
                verified=known and len(stamps) == len(needs),
                subset=any(stamp.subset for stamp in stamps),
                bytes=sum(stamp.bytes for stamp in stamps),
            )
        )
    return states
