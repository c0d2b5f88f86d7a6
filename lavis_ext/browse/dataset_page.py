"""The page of data sets: their samples, what is missing and what is there twice, figures, and the source of each file.

One file that holds a sample and says so. `explorer.py` serves all of it by the same templates.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.browse.html import write_document
from lavis_ext.browse.pictures import MISSING, PictureScan
from lavis_ext.browse.samples import Shot, charts, sample_grid, scope_note, shot_of, survey, thumbnail, vocabulary_rows
from lavis_ext.browse.search import SORTS
from lavis_ext.browse.search import STATES as FILTERS
from lavis_ext.browse.subject import (
    STATES,
    Chapter,
    Subject,
    file_details,
    file_row,
    processor_rows,
    read_subject,
    worst_state,
)
from lavis_ext.browse.views import Item, View, choose
from lavis_ext.common.wording import counted, human
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.fetch.safety import split_url

log = logging.getLogger(__name__)
SAMPLES, OF_MANY = 60, 24
"""Samples that a page shows of each split of one data set, and of a family's."""
SCANNED = 500
"""Pictures of a split that a page looks at, to find damaged ones and such as occur twice; `--serve` looks at all."""
AUGMENTED = 6
MAX_MISSING = 200
MAX_TWINS = 24


def write_dataset_page(
    name: str, out: Path | None, cache_root: Path, samples: int | None = None, seed: int | None = None
) -> Path:
    """The page of a data set or a family by its name, see `write_subject_page`.

    Raises UsageError for an unknown name, NotPreparedError (exit code 8) where nothing of it is on the disk.
    """
    return write_subject_page(read_subject(name, cache_root), out, samples, seed)


def write_subject_page(subject: Subject, out: Path | None, samples: int | None = None, seed: int | None = None) -> Path:
    """Write the page of data sets to `out` (default: `<name>.html` here); returns its path.

    `samples` of each split are shown, evenly chosen or drawn by `seed`. Raises DiskError where it cannot be written.
    """
    target = out or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', subject.name).strip('-.') or 'page'}.html")
    write_document(target, "dataset.html", **page_values(subject, samples, seed))
    return target


def page_values(subject: Subject, samples: int | None, seed: int | None) -> dict[str, Any]:
    """The values for `dataset.html`: a sample of each split, and what was found in some of its pictures."""
    wanted = samples if samples is not None else SAMPLES if len(subject.chapters) == 1 else OF_MANY
    scans = scans_of(subject)
    for scan in scans:
        scan.some(SCANNED)
        for split, one in ((split, scan.look(split)) for split in scan.views):
            if unread := one.why.total():
                log.warning("%s: %s", split, f"{unread:,} of {counted(one.known, 'picture')} looked at cannot be read")
    looks = [look(subject, chapter, wanted, seed, scans) for chapter in subject.chapters if chapter.views]
    answers = {answer for one in looks for grid in one["grids"] for shot in grid["shots"] for answer in shot.answers}
    return {
        **head_values(subject),
        **about_values(subject),
        **figure_values(subject),
        "looks": looks,
        "partly": any(len(grid["shots"]) < len(subject.views[grid["key"]]) for one in looks for grid in one["grids"]),
        "filters": {"splits": list(subject.views), "answers": sorted(answers)[:200], "states": FILTERS, "sorts": SORTS},
        "twins": twin_values(subject, scans),
        "gaps": gap_rows(subject, scans),
    }


def scans_of(subject: Subject) -> list[PictureScan]:
    """Pictures that are compared with each other: of each data set's splits; of all, where they stand side by side."""
    views = subject.views
    if subject.beside or len(subject.chapters) == 1:
        return [PictureScan(views)]
    several = [{f"{one.title} {split}": view for split, view in one.views.items()} for one in subject.chapters]
    return [PictureScan(one) for one in several if one]


def head_values(subject: Subject) -> dict[str, Any]:
    """Name, state, licence, and one line of figures: what stands before the pictures."""
    state = worst_state(subject) if subject.states else ""
    here = [one for one in subject.states if one.samples is not None or one.verified]
    samples = sum(one.samples or 0 for one in here) or sum(map(len, subject.views.values()))
    expected, missing = (sum(getattr(one, name) or 0 for one in here) for name in ("expected", "missing"))
    shown, known = len(subject.views), max(len(subject.states), len(subject.views))
    splits = f"{shown} of {known} splits" if shown < known else "1 split" if known == 1 else f"{known} splits"
    facts = [counted(samples, "sample"), splits]
    facts += [f"{expected:,} images", f"{missing:,} missing" if missing else "none missing"] if expected else []
    fetched = [file for file in subject.files if file.disk.record]
    facts += [f"{human(sum(file.bytes for file in fetched))} fetched"] if fetched else []
    return {
        "name": subject.name,
        "beside": subject.beside,
        "root": subject.root,
        "state": (state, STATES[state]) if state else ("your own data", ""),
        "shapes": list(dict.fromkeys(chapter.config.builder for chapter in subject.chapters)),
        "subset": any(one.subset for one in subject.states),
        "facts": facts,
        # a link that a person may follow; nothing is loaded from it, and any other scheme stays text
        "cards": [(card, split_url(card.homepage).scheme in ("http", "https")) for card in subject.cards],
        "chapters": subject.chapters,
        "absent": subject.absent,
        "guessed": subject.said,
    }


def about_values(subject: Subject) -> dict[str, Any]:
    """Splits, processors and files."""
    missing = [f"{one.split}  {name}" for one in subject.states for name in one.names]
    more = [f"and {len(missing) - MAX_MISSING:,} more"] if len(missing) > MAX_MISSING else []
    several = len(subject.chapters) > 1
    return {
        "own": [own_row(one, split, several) for one in subject.chapters if not one.states for split in one.views],
        "splits": [
            [
                f"{state.dataset} / {state.split}" if several else state.split,
                *(
                    "–" if n is None else f"{n:,}"
                    for n in (state.samples, state.expected, state.present, state.missing)
                ),
                state.state,
            ]
            for state in subject.states
        ],
        "missing": missing,
        "missing_lines": "\n".join([*missing[:MAX_MISSING], *more]),
        "processors": processor_rows(subject),
        "files": [file_row(file) for file in subject.files],
        "details": "\n\n".join(file_details(file) for file in subject.files),
        "citations": [card.citation.strip() for card in subject.cards if card.citation.strip()],
    }


def own_row(chapter: Chapter, split: str, several: bool) -> list[str]:
    """A split of data that no card declares: its samples, and the files and the folder that they are read from."""
    info = chapter.config.build_info
    rows = info.annotations[split].storage if split in info.annotations else info.storage
    name = f"{chapter.title} {split}" if several else split
    return [
        name,
        f"{len(chapter.views[split]):,}",
        ", ".join(rows),
        str(info.images.storage or "–"),
    ]


def figure_values(subject: Subject) -> dict[str, Any]:
    """Charts and vocabulary of each data set; of several side by side in the same charts."""
    parts = [(f" of {one.title}", one, one.views) for one in subject.chapters if one.views]
    if subject.beside or len(parts) == 1:
        parts = [("", one, subject.views) for _, one, _ in parts[:1]]
    found = []
    for of, chapter, views in parts:
        surveys = {split: survey(view) for split, view in views.items()}
        types = f" Config types beside this one: {', '.join(chapter.types)}." if chapter.types else ""
        found.append(
            {
                "of": of,
                "charts": charts(surveys),
                "note": scope_note(surveys) + types,
                "vocabulary": vocabulary_rows(surveys),
            }
        )
    return {"figures": found}


def look(
    subject: Subject, chapter: Chapter, samples: int, seed: int | None, scans: Sequence[PictureScan]
) -> Mapping[str, Any]:
    """The samples of one data set, under its name where the page has several, and some as training draws them."""
    several = len(subject.chapters) > 1
    grids: list[dict[str, Any]] = []
    drawn: list[Shot] = []
    for split, view in chapter.views.items():
        key = f"{chapter.title} {split}" if several else split
        scan = next(scan for scan in scans if key in scan.views)
        items = view.items(samples, seed) if seed is not None else spread(view, scan, key, samples)
        grid = sample_grid(view, items)
        shots = [marked(shot, scan, key, item.index) for shot, item in zip(grid.shots, items, strict=True)]
        chosen = f"drawn by seed {seed}" if seed is not None else view.chosen
        grids.append(
            {"split": split, "key": key, "note": grid.note(len(view), chosen), "shots": shots, "wide": view.edge}
        )
        drawn += augmented(view, seed or 0)[: AUGMENTED - len(drawn)]
    of = f" of {chapter.title}" if several else ""
    return {"anchor": chapter.anchor, "title": chapter.title, "of": of, "grids": grids, "drawn": drawn}


def spread(view: View, scan: PictureScan, split: str, wanted: int) -> list[Item]:
    """Samples evenly over the pictures, where several share one: each picture once before any comes again."""
    look = scan.look(split)
    if len(look) in (0, view.reach) or wanted >= view.reach:
        return view.items(wanted, None)
    firsts = np.sort(look.first // look.codes.shape[1])
    chosen = firsts[choose(len(firsts), wanted)]
    others = np.setdiff1d(np.arange(view.reach), chosen)
    more = others[choose(len(others), wanted - len(chosen))]
    return [view.at(int(index)) for index in np.sort(np.concatenate([chosen, more]))]


def augmented(view: View, seed: int) -> list[Shot]:
    """Some samples beside what training makes of them."""
    if not view.draws:
        return []
    shots = [shot_of(view, item, Counter(), seed) for item in view.items(AUGMENTED, None)]
    return [shot for shot in shots if shot.drawn]


def marked(shot: Shot, scan: PictureScan, split: str, index: int) -> Shot:
    """A sample with what is known of its pictures: whether they occur again."""
    if not scan.ready:
        return shot
    look = scan.look(split)
    pictures = [number for number in look.codes[index] if number >= 0]
    found = [
        name for leaks, name in enumerate(("duplicate", "leak")) if scan.repeated(split, bool(leaks))[pictures].any()
    ]
    return replace(shot, marks=(*shot.marks, *found)) if found else shot


def twin_values(subject: Subject, scans: Sequence[PictureScan], most: int = MAX_TWINS) -> dict[str, Any]:
    """Pictures that occur more than once: how many were compared, and the first groups of them."""
    known, total = (sum(getattr(scan, name) for scan in scans) for name in ("known", "total"))
    found = [(scan, group) for scan in scans for group in scan.twins()]
    groups = []
    for scan, group in found[:most]:
        shots = []
        for split, number in group.members[:4]:
            look = scan.look(split)
            item, which = look.item(number)
            try:
                sources = [thumbnail(look.view.pictures(item)[which])]
            except (SampleError, IndexError):
                sources = []
            shots.append({"split": split, "file": look.name(number), "sources": sources})
        groups.append({"leak": group.leak, "shots": shots, "more": max(len(group.members) - 4, 0)})
    return {
        "compared": known,
        "total": total,
        "groups": groups,
        "found": len(found),
        "leaks": sum(group.leak for _, group in found),
        "places": "data sets and splits" if subject.beside else "splits",
    }


def gap_rows(subject: Subject, scans: Sequence[PictureScan]) -> list[list[str]]:
    """What is missing and why: split, how many, the reason, and what can be done."""
    rows = []
    several = len(subject.chapters) > 1
    told = set()
    for chapter in subject.chapters:
        for state in chapter.states:
            key = f"{chapter.title} {state.split}" if several else state.split
            way_out = chapter.config.manual or f"lavis-ext prepare {chapter.config.name} --split {state.split}"
            if chapter.views and state.split not in chapter.views:
                rows.append([key, "the split", "its annotations or pictures are not here", way_out])
            elif state.missing:
                told.add(key)
                folder = chapter.config.build_info.images.storage
                rows.append([key, pictures_of(state.missing), f"no such file below {folder}", way_out])
    for scan in scans:
        for split in scan.views:
            look = scan.look(split)
            part = f" of {look.known:,} looked at" if look.known < len(look) else ""
            for why, count in look.why.most_common():
                gone = [n for n, one in look.reasons.items() if one.startswith(why)]
                if split in told and gone and look.state[gone[0]] == MISSING:
                    continue
                first = f"first: {look.name(gone[0])}" if gone else ""
                rows.append([split, f"{pictures_of(count)}{part}", why, first])
    return rows


def pictures_of(count: int) -> str:
    """`1 picture`, `1,200 pictures`."""
    return f"{count:,} picture{'s' if count != 1 else ''}"
