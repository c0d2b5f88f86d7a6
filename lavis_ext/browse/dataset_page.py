"""The page of a data set: declaration, state on this disk, samples and figures, and the source of each file.

What `prepare` knows of the disk is asked for in `read_subject` and `read_chapter`, and nowhere else in this folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_ext.browse.html import Tile, write_document
from lavis_ext.browse.samples import charts, sample_grid, scope_note, survey
from lavis_ext.browse.views import View, view_of
from lavis_ext.common.config.cards import Artifact, Card, Cards, load_cards
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import UsageError
from lavis_ext.common.wording import human
from lavis_ext.datasets.builders import BuildContext, NotPreparedError, build_datasets
from lavis_ext.fetch.safety import redact_url, split_url
from lavis_ext.prepare import PrepareOptions, SplitState, status
from lavis_ext.prepare.records import OnDisk, inspect

SAMPLES = 24
MAX_MISSING = 200
STATES = {"verified": "good", "present": "", "partial": "warn", "missing": "bad"}
"""From the best to the worst, and how each is set off."""


@dataclass(frozen=True)
class Chapter:
    """One data set of a page; `views` are those of its splits that can be read, `fault` why there are none."""

    config: DatasetConfig
    title: str
    states: tuple[SplitState, ...] = ()
    views: dict[str, View] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    """Its other config types."""
    fault: str = ""

    @property
    def anchor(self) -> str:
        """The id of its heading."""
        return re.sub(r"[^A-Za-z0-9_-]+", "-", f"data-{self.title}")


@dataclass(frozen=True)
class File:
    """An artifact, and what is there of it by the record that `prepare` left."""

    artifact: Artifact
    disk: OnDisk

    @property
    def bytes(self) -> int:
        """How much it holds, unpacked where it is an archive."""
        record = self.disk.record
        return (record.bytes or record.size or 0) if record else 0


@dataclass(frozen=True)
class Subject:
    """Everything that the page of a family or a data set is about."""

    name: str
    card: Card
    root: Path
    chapters: tuple[Chapter, ...]
    files: tuple[File, ...]

    @property
    def states(self) -> list[SplitState]:
        """The splits of all chapters."""
        return [state for chapter in self.chapters for state in chapter.states]


def read_subject(name: str, cache_root: Path) -> Subject:
    """The declarations, states and opened splits of a family or a data set.

    Raises UsageError for an unknown name, or one that holds files only; NotPreparedError where nothing is there.
    """
    cards = load_cards()
    card, datasets = cards.resolve(name)
    kept: dict[str, DatasetConfig] = {}  # the default type of each, else its first
    for config in datasets:
        if config.builder and (config.name not in kept or config.type == "default"):
            kept[config.name] = config
    if not kept:
        raise UsageError(name, "holds files, and no data set to look at", f"see `lavis-ext show {name}`")
    chapters, errors = [], []
    for config in kept.values():
        types = tuple(d.type for d in datasets if d.name == config.name and d.type != config.type)
        chapter, error = read_chapter(config, types, cache_root, cards)
        chapters.append(chapter)
        errors += [error] if error else []
    if len(errors) == len(chapters):
        way_out = f"run `lavis-ext prepare {name}`"
        raise errors[0] if len(errors) == 1 else NotPreparedError(name, "no data set of it is prepared", way_out)
    used = {artifact.file: artifact for chapter in chapters for artifact in cards.artifacts_of(chapter.config)}
    files = tuple(File(artifact, inspect(cache_root, artifact)) for artifact in used.values())
    return Subject(name, card, cache_root, tuple(chapters), files)


def read_chapter(
    config: DatasetConfig, types: tuple[str, ...], root: Path, cards: Cards
) -> tuple[Chapter, NotPreparedError | None]:
    """One data set with its splits opened; without views, and the error, where nothing of it is there."""
    title = config.name if config.type == "default" else f"{config.name}[{config.type}]"
    states = tuple(s for s in status([title], PrepareOptions(cache_root=root), cards) if s.dataset == title)
    try:
        built = build_datasets(config, BuildContext(root))
    except NotPreparedError as error:
        return Chapter(config, title, states, types=types, fault=str(error.problems[0])), error
    views = {split: view for split, dataset in built.items() if (view := view_of(dataset))}
    fault = "" if views else "its shape keeps no rows that could be shown"
    return Chapter(config, title, states, views, types, fault), None


def write_dataset_page(
    name: str, out: Path | None, cache_root: Path, samples: int = SAMPLES, seed: int | None = None
) -> Path:
    """Write the page of a family, a data set or `name[type]` to `out` (default: `<name>.html` here); returns its path.

    `samples` of each split are shown, evenly chosen or drawn by `seed`. Raises UsageError for an unknown name,
    NotPreparedError (exit code 8) where nothing of it is on the disk, DiskError where the page cannot be written.
    """
    target = out or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')}.html")
    values = page_values(read_subject(name, cache_root), samples, seed)
    write_document(target, "dataset.html", **values)
    return target


def page_values(subject: Subject, samples: int, seed: int | None) -> dict[str, Any]:
    """The values for `dataset.html`."""
    card, several = subject.card, len(subject.chapters) > 1
    state = worst_state(subject)
    missing = [f"{one.split}  {name}" for one in subject.states for name in one.names]
    more = [f"and {len(missing) - MAX_MISSING:,} more"] if len(missing) > MAX_MISSING else []
    return {
        "name": subject.name,
        "card": card,
        "root": subject.root,
        "state": (state, STATES[state]),
        "shapes": list(dict.fromkeys(chapter.config.builder for chapter in subject.chapters)),
        "subset": any(one.subset for one in subject.states),
        # a link that a person may follow; nothing is loaded from it, and any other scheme stays text
        "linked": split_url(card.homepage).scheme in ("http", "https"),
        "tiles": tiles(subject),
        "chapters": subject.chapters,
        "splits": split_rows(subject),
        "missing": missing,
        "missing_lines": "\n".join([*missing[:MAX_MISSING], *more]),
        "looks": [look(chapter, samples, seed, several) for chapter in subject.chapters if chapter.views],
        "processors": processor_rows(subject),
        "files": [file_row(file) for file in subject.files],
        "details": "\n\n".join(file_details(file) for file in subject.files),
    }


def worst_state(subject: Subject) -> str:
    """The state of the least of the splits; partial where some are there and some are not."""
    words = [state.state.partition(" ")[0] for state in subject.states]
    there = [word for word in words if word != "missing"]
    if there and len(there) < len(words):
        return "partial"
    return max(there, key=list(STATES).index, default="missing")


def tiles(subject: Subject) -> list[Tile]:
    """Samples, images and what is missing of the splits that are here, and the bytes that `prepare` fetched."""
    here = [state for state in subject.states if state.samples is not None or state.verified]
    samples, expected, present, missing = (
        sum(getattr(state, name) or 0 for state in here) for name in ("samples", "expected", "present", "missing")
    )
    found = [Tile("samples", f"{samples:,}", f"{len(here)} of {len(subject.states)} splits are here")]
    if expected:
        found.append(Tile("images", f"{present:,}", f"of {expected:,}, each split for itself"))
        found.append(Tile("missing images", f"{missing:,}", f"{missing / expected:.2%}" if missing else "none"))
    fetched = [file for file in subject.files if file.disk.record]
    if fetched:
        size = human(sum(file.bytes for file in fetched))
        found.append(Tile("fetched", size, f"{len(fetched)} of {len(subject.files)} files"))
    return found


def split_rows(subject: Subject) -> list[list[str]]:
    """A row for each split: what is expected, what is here, and how it was proven."""
    return [
        [
            state.split if len(subject.chapters) == 1 else f"{state.dataset} / {state.split}",
            *("–" if n is None else f"{n:,}" for n in (state.samples, state.expected, state.present, state.missing)),
            state.state,
        ]
        for state in subject.states
    ]


def look(chapter: Chapter, samples: int, seed: int | None, several: bool) -> Mapping[str, Any]:
    """The figures and the samples of one data set, under its name where the page has several."""
    surveys = {split: survey(view) for split, view in chapter.views.items()}
    types = f" Config types beside this one: {', '.join(chapter.types)}." if chapter.types else ""
    grids = []
    for split, view in chapter.views.items():
        grid = sample_grid(view, samples, seed)
        chosen = f"drawn by seed {seed}" if seed is not None else view.chosen
        grids.append(
            {"split": split, "note": grid.note(len(view), chosen), "shots": grid.shots, "wide": hasattr(view, "edge")}
        )
    return {
        "anchor": chapter.anchor,
        "title": chapter.title,
        "of": f" of {chapter.title}" if several else "",
        "charts": charts(surveys),
        "note": scope_note(surveys) + types,
        "grids": grids,
    }


def processor_rows(subject: Subject) -> list[list[str]]:
    """What becomes of pictures and texts, per data set."""
    return [
        [
            chapter.title,
            f"{kind} {side}",
            processor.name,
            ", ".join(f"{key}: {value}" for key, value in processor.args.items()) or "–",
        ]
        for chapter in subject.chapters
        for kind, pair in (("vis", chapter.config.vis_processor), ("text", chapter.config.text_processor))
        for side, processor in (("train", pair.train), ("eval", pair.eval))
        if processor
    ]


def file_row(file: File) -> list[str]:
    """Size and hash of a file as its card declares them, and what `prepare` proved of it."""
    artifact, record = file.artifact, file.disk.record
    kind, value = declared_hash(artifact)
    size = artifact.size or artifact.about
    declared = [artifact.file, human(size) if size else "–", f"{kind} {value[:12]}…" if value else "–"]
    if record is None:  # lists of images are accounted for by their splits
        return [*declared, "–" if artifact.lists else "not prepared", "–"]
    word = record.state if file.disk.state == "recorded" else file.disk.word
    return [*declared, f"{word}{' (subset)' if record.subset else ''}", record.verified if file.disk.verified else "–"]


def declared_hash(artifact: Artifact) -> tuple[str, str]:
    """The strongest hash of the card and its kind; empty where it declares none."""
    return ("sha256", artifact.sha256) if artifact.sha256 else ("md5", artifact.md5) if artifact.md5 else ("", "")


def file_details(file: File) -> str:
    """Where a file comes from and what it hashes to, in lines; nothing that could be a token."""
    artifact, record = file.artifact, file.disk.record
    kind, value = declared_hash(artifact)
    lines = [artifact.file, f"  {redact_url(artifact.url)}"]
    lines += [f"  {redact_url(mirror.url)} ({mirror.equivalence})" for mirror in artifact.mirrors]
    lines += [f"  {kind} {value} (declared)"] if value else []
    if record:
        lines += [f"  sha256 {record.sha256} (here)"] if record.sha256 else []
        when = record.when[:19].replace("T", " ")
        lines.append(f"  prepared {when}, {record.equivalence}, {human(file.bytes)}")
    return "\n".join(lines)
