"""What a page of data sets is about: declarations, the state of each split on this disk, the opened splits, the files.

What `prepare` knows of the disk is asked for here, and nowhere else in this folder.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lavis_ext.browse.views import View, view_of
from lavis_ext.common.config.cards import Artifact, Card, Cards, load_cards
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import UsageError
from lavis_ext.common.files import expanded
from lavis_ext.common.wording import human
from lavis_ext.datasets.builders import BuildContext, NotPreparedError, build_datasets
from lavis_ext.fetch.safety import redact_url
from lavis_ext.prepare import PrepareOptions, SplitState, status
from lavis_ext.prepare.records import OnDisk, inspect

log = logging.getLogger(__name__)
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
    """Everything that the page of a family or a data set is about; `beside`: of several, side by side."""

    name: str
    cards: tuple[Card, ...]
    root: Path
    chapters: tuple[Chapter, ...]
    files: tuple[File, ...]
    beside: bool = False
    said: tuple[str, ...] = ()
    """What was guessed of one's own data, in sentences."""

    @property
    def views(self) -> dict[str, View]:
        """The splits that can be read, each under its name on the page."""
        several = len(self.chapters) > 1
        return {
            f"{chapter.title} {split}" if several else split: view
            for chapter in self.chapters
            for split, view in chapter.views.items()
        }

    @property
    def absent(self) -> list[str]:
        """What is declared and not on the page, in lines: a data set or a split, and the command that brings it."""
        lines = [f"{chapter.title}: {chapter.fault}" for chapter in self.chapters if chapter.fault]
        for chapter in self.chapters:
            for split in chapter.config.build_info.annotations if chapter.views else ():
                if split not in chapter.views:
                    way_out = chapter.config.manual or f"run `lavis-ext prepare {chapter.config.name} --split {split}`"
                    lines.append(f"{chapter.title}: split '{split}' is not here; {way_out}")
        return lines

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
    return Subject(name, (card,), cache_root, tuple(chapters), files)


def read_own(path: str, cache_root: Path) -> Subject:
    """Data that a person has, as it was guessed what a path holds.

    Raises UsageError for what is not there or of no known form, IntegrityError for files that cannot be read.
    """
    from lavis_ext.datasets.own import guess

    found = guess(path)
    chapter, error = read_chapter(found.config, (), cache_root, load_cards())
    if error:
        raise error
    place = expanded(path)
    name = place.resolve().name if place.exists() else path
    said = (f"from {path}", *found.sentences, found.otherwise)
    for sentence in said[1:]:
        log.info("%s: %s", path, sentence)
    return Subject(name or path, (), place.absolute(), (chapter,), (), said=said)


def joined(subjects: Sequence[Subject]) -> Subject:
    """Several subjects on one page, side by side."""
    chapters = [chapter for subject in subjects for chapter in subject.chapters]
    titles = Counter(chapter.title for chapter in chapters)
    seen: Counter[str] = Counter()
    for number, chapter in enumerate(chapters):
        if titles[chapter.title] > 1:
            seen[chapter.title] += 1
            chapters[number] = replace(chapter, title=f"{chapter.title} ({seen[chapter.title]})")
    cards = tuple({id(card): card for subject in subjects for card in subject.cards}.values())
    files = {file.artifact.file: file for subject in subjects for file in subject.files}
    name = " and ".join(subject.name for subject in subjects)
    said = tuple(f"{one.name}: {sentence}" for one in subjects for sentence in one.said)
    root = Path(os.path.commonpath([subject.root for subject in subjects]))
    return Subject(name, cards, root, tuple(chapters), tuple(files.values()), beside=True, said=said)


def read_chapter(
    config: DatasetConfig, types: tuple[str, ...], root: Path, cards: Cards
) -> tuple[Chapter, NotPreparedError | None]:
    """One data set with its splits opened; without views, and the error, where nothing of it is there."""
    title = config.name if config.type == "default" else f"{config.name}[{config.type}]"
    known = config.name in cards.names() and config.family in cards.families
    found = status([title], PrepareOptions(cache_root=root), cards) if known else []
    states = tuple(state for state in found if state.dataset == title)
    try:
        built = build_datasets(config, BuildContext(root))
    except NotPreparedError as error:
        return Chapter(config, title, states, types=types, fault=str(error.problems[0])), error
    views = {split: view for split, dataset in built.items() if (view := view_of(dataset))}
    fault = "" if views else "its shape keeps no rows that could be shown"
    return Chapter(config, title, states, views, types, fault), None


def worst_state(subject: Subject) -> str:
    """The state of the least of the splits; partial where some are there and some are not."""
    words = [state.state.partition(" ")[0] for state in subject.states]
    there = [word for word in words if word != "missing"]
    if there and len(there) < len(words):
        return "partial"
    return max(there, key=list(STATES).index, default="missing")


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
