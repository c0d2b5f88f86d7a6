"""The page of a data set: what it is, what of it lies here, how it looks, and where each byte came from."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from lavis_ext.browse.dataset import Chapter, File, Subject, read_subject
from lavis_ext.browse.page import badge, folded, page, section, table, tile
from lavis_ext.browse.samples import sample_grid
from lavis_ext.browse.survey import charts, scope_note, survey
from lavis_ext.cards import Artifact
from lavis_ext.fetch.safety import redact_url
from lavis_ext.files import disk_errors, write_atomic
from lavis_ext.prepare import SplitState
from lavis_ext.prepare.records import Record
from lavis_ext.schema import ProcessorConfig
from lavis_ext.wording import human

SAMPLES = 24
MAX_MISSING = 200
STATES = {"verified": "good", "present": "", "partial": "warn", "missing": "bad"}
"""From the best to the worst."""


def write_dataset_page(
    name: str, out: Path | None, cache_root: Path, samples: int = SAMPLES, seed: int | None = None
) -> Path:
    """Write the page of a family, a data set or `name[type]` to `out` (default: `<name>.html` here); returns its path.

    `samples` of each split are shown, evenly chosen or drawn by `seed`. Raises UsageError for an unknown name,
    NotPreparedError (exit code 8) where nothing of it is on the disk, DiskError where the page cannot be written.
    """
    target = out or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')}.html")
    text = render(read_subject(name, cache_root), samples, seed)
    with disk_errors(target, "name another file with --out"):
        write_atomic(target, text.encode("utf-8", "replace"))
    return target


def render(subject: Subject, samples: int = SAMPLES, seed: int | None = None) -> str:
    """The document."""
    several, card = len(subject.chapters) > 1, subject.card
    citation = folded("BibTeX", card.citation.strip()) if card.citation.strip() else ""
    parts = [
        header(subject),
        section("Splits", split_table(subject) + missing_names(subject)),
        *(part for chapter in subject.chapters for part in chapter_parts(chapter, samples, seed, several)),
        section("Processors", processor_table(subject)),
        section("Files", file_table(subject), f"Below {subject.root}; a hash is what the card declares."),
        section("Citation", citation),
        f"<footer>Made by lavis-ext from the card of {escape(card.family)} and {escape(str(subject.root))}.</footer>",
    ]
    return page(f"{subject.name} · data set", parts)


def header(subject: Subject) -> str:
    """State, name, title, licence, homepage, what stands in the way, and the numbers that matter."""
    card = subject.card
    state = worst_state(subject)
    badges = [badge(state, STATES[state])]
    badges += [badge(shape) for shape in dict.fromkeys(c.config.builder for c in subject.chapters)]
    if any(state.subset for state in subject.states):
        badges.append(badge("subset: not comparable with published figures", "warn"))
    facts = [f"<b>{escape(card.title)}</b>" if card.title else "", escape(card.licence or "licence not stated")]
    line = " &nbsp;·&nbsp; ".join(fact for fact in [*facts, _link(card.homepage)] if fact)
    numbers = f'<div class="tiles">{"".join(tiles(subject))}</div>'
    top = f'<div class="badges">{"".join(badges)}</div><h1>{escape(subject.name)}</h1><p class="sub">{line}</p>'
    return f"<header>{top}{numbers}{_contents(subject)}</header>"


def worst_state(subject: Subject) -> str:
    """The state of the least of the splits; partial where some are there and some are not."""
    words = [state.state.partition(" ")[0] for state in subject.states]
    there = [word for word in words if word != "missing"]
    if there and len(there) < len(words):
        return "partial"
    return max(there, key=list(STATES).index, default="missing")


def _link(address: str) -> str:
    """A link that a person may follow; nothing is loaded from it. Any other scheme stays text."""
    if urlsplit(address).scheme not in ("http", "https"):
        return escape(address)
    shown = escape(address.partition("://")[2].rstrip("/"))
    return f'<a href="{escape(address)}" rel="noreferrer noopener">{shown}</a>'


def _contents(subject: Subject) -> str:
    if len(subject.chapters) < 2:
        return ""
    links = (f'<a href="#{anchor(c)}">{escape(c.title)}</a>' for c in subject.chapters if c.views)
    return f'<p class="contents">{" ".join(links)}</p>'


def anchor(chapter: Chapter) -> str:
    """The id of a chapter's heading."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", f"data-{chapter.title}")


def tiles(subject: Subject) -> list[str]:
    """Samples, images and what is missing of the splits that are here, and the bytes that `prepare` fetched."""
    here = [state for state in subject.states if not absent(state)]
    samples, expected, present, missing = (total(here, name) for name in ("samples", "expected", "present", "missing"))
    found = [tile("samples", f"{samples:,}", f"{len(here)} of {len(subject.states)} splits are here")]
    if expected:
        found.append(tile("images", f"{present:,}", f"of {expected:,}, each split for itself"))
        found.append(tile("missing images", f"{missing:,}", f"{missing / expected:.2%}" if missing else "none"))
    sizes = [bytes_of(file.disk.record) for file in subject.files if file.disk.record]
    return (
        [*found, tile("fetched", human(sum(sizes)), f"{len(sizes)} of {len(subject.files)} files")] if sizes else found
    )


def total(states: list[SplitState], name: str) -> int:
    """The sum of one number of several splits; those that do not know it add nothing."""
    return sum(getattr(state, name) or 0 for state in states)


def bytes_of(record: Record) -> int:
    """How much a prepared file holds, unpacked where it is an archive."""
    return record.bytes or record.size or 0


def split_table(subject: Subject) -> str:
    """A row for each split: what is expected, what is here, and how it was proven."""
    alone = len(subject.chapters) == 1
    rows = [
        [
            s.split if alone else f"{s.dataset} / {s.split}",
            *(_count(n) for n in (s.samples, s.expected, s.present, s.missing)),
            s.state,
        ]
        for s in subject.states
    ]
    told = table(["split", "samples", "images expected", "present", "missing", "state"], rows)
    faults = [f'<p class="alert">{escape(c.title)}: {escape(c.fault)}</p>' for c in subject.chapters if c.fault]
    return told + "".join(faults)


def missing_names(subject: Subject) -> str:
    """The names of missing pictures, folded away; "" where none is missing."""
    names = [f"{state.split}  {name}" for state in subject.states for name in state.names]
    more = [f"and {len(names) - MAX_MISSING:,} more"] if len(names) > MAX_MISSING else []
    text = "\n".join([*names[:MAX_MISSING], *more]).encode("utf-8", "replace").decode()
    return f'<div class="gap">{folded(f"{len(names):,} missing images", text)}</div>' if names else ""


def absent(state: SplitState) -> bool:
    """Whether nothing of a split is on the disk."""
    return state.samples is None and not state.verified


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def chapter_parts(chapter: Chapter, samples: int, seed: int | None, several: bool) -> list[str]:
    """The figures and the samples of one data set, under its name where the page has several."""
    if not chapter.views:
        return []
    surveys = {split: survey(view) for split, view in chapter.views.items()}
    of = f" of {chapter.title}" if several else ""
    grids = "".join(split_samples(split, chapter, samples, seed) for split in chapter.views)
    types = f" Config types beside this one: {', '.join(chapter.types)}." if chapter.types else ""
    drawn, note = charts(surveys), scope_note(surveys) + types
    figures = section(f"Figures{of}", drawn or f'<p class="sub">{escape(note)}</p>', note if drawn else "")
    return [f'<div id="{anchor(chapter)}">{figures}</div>', section(f"Samples{of}", grids)]


def split_samples(split: str, chapter: Chapter, samples: int, seed: int | None) -> str:
    """A heading with the counts, and the grid."""
    view = chapter.views[split]
    grid = sample_grid(view, samples, seed)
    chosen = f"drawn by seed {seed}" if seed is not None else view.chosen
    return f"<h3>{escape(split)} &nbsp;·&nbsp; {escape(grid.note(len(view), chosen))}</h3>{grid.html}"


def processor_table(subject: Subject) -> str:
    """What becomes of pictures and texts, per data set."""
    rows = [
        [chapter.title, f"{kind} {side}", processor.name, _arguments(processor)]
        for chapter in subject.chapters
        for kind, pair in (("vis", chapter.config.vis_processor), ("text", chapter.config.text_processor))
        for side, processor in (("train", pair.train), ("eval", pair.eval))
        if processor
    ]
    return f'<div class="text">{table(["data set", "for", "processor", "arguments"], rows)}</div>' if rows else ""


def _arguments(processor: ProcessorConfig) -> str:
    return ", ".join(f"{key}: {value}" for key, value in processor.args.items()) or "–"


def file_table(subject: Subject) -> str:
    """A row for each file: size, hash, what `prepare` proved of it; addresses and whole hashes folded away."""
    head = ["file", "declared size", "declared hash", "state", "proven by"]
    details = "\n\n".join(file_details(file) for file in subject.files)
    rows = [file_row(file) for file in subject.files]
    return f'{table(head, rows)}<div class="gap">{folded("Addresses and whole hashes", details)}</div>' if rows else ""


def file_row(file: File) -> list[str]:
    """The cells of one file."""
    artifact = file.artifact
    kind, value = declared_hash(artifact)
    size = artifact.size or artifact.about
    return [artifact.file, human(size) if size else "–", f"{kind} {value[:12]}…" if value else "–", *proof(file)]


def proof(file: File) -> tuple[str, str]:
    """What is here of a file, and what proved it; lists of images are accounted for by their splits."""
    record = file.disk.record
    if record is None:
        return "–" if file.artifact.lists else "not prepared", "–"
    word = record.state if file.disk.state == "recorded" else file.disk.word
    by = record.verified if file.disk.verified else "–"
    return f"{word}{' (subset)' if record.subset else ''}", by


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
        lines.append(f"  prepared {when}, {record.equivalence}, {human(bytes_of(record))}")
    return "\n".join(lines)
