"""HTML pages of data sets, runs and feature stores, made from what a folder holds: offline files, or on loopback."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.browse.run_report import write_run_report
from lavis_ext.browse.runs_page import find_runs, is_run, write_runs_page
from lavis_ext.common.errors import DATASETS, UsageError
from lavis_ext.common.files import expanded, is_pathlike, not_there

if TYPE_CHECKING:
    from collections.abc import Sequence

DEPTH = 3
"""How far below a folder runs are looked for, before it is taken for something else: it may be a disk."""
__all__ = ["Pages", "find_pages", "write_page", "write_run_report"]


@dataclass(frozen=True)
class Pages:
    """What `browse` was asked for: `kind` is `runs`, `store` or `data`, and `targets` what of it."""

    kind: str
    targets: tuple[str, ...]
    cache_root: Path
    seed: int | None = None
    images: Path | None = None

    def write(self, out: Path | None) -> tuple[Path, list[str]]:
        """Write one file (see each kind for its default name); returns its path, and what is declared and not on it.

        Raises UsageError, NotPreparedError for a data set that is not on the disk, DiskError where the page cannot be
        written.
        """
        if self.kind == "runs":
            folders = [expanded(target) for target in self.targets]
            if len(folders) == 1 and is_run(folders[0]):
                return write_run_report(folders[0], out=out), []
            return write_runs_page(folders, out), []
        if self.kind == "store":
            from lavis_ext.browse.regions import write_store_page

            return write_store_page(expanded(self.targets[0]), out, self.cache_root, self.images, self.seed), []
        from lavis_ext.browse.dataset_page import write_subject_page

        subject = self._subject()
        return write_subject_page(subject, out, seed=self.seed), subject.absent

    def app(self) -> Any:
        """What `serve` answers with; None for a feature store, whose page is a file."""
        if self.kind == "runs":
            from lavis_ext.browse.runs_page import RunsApp

            return RunsApp([expanded(target) for target in self.targets])
        if self.kind == "store":
            return None
        from lavis_ext.browse.explorer import DatasetApp

        return DatasetApp(self._subject(), self.seed)

    def _subject(self) -> Any:
        from lavis_ext.browse.subject import joined, read_own, read_subject

        subjects = [(read_subject if is_named(one) else read_own)(one, self.cache_root) for one in self.targets]
        return subjects[0] if len(subjects) == 1 else joined(subjects)


def write_page(
    target: str, out: Path | None, cache_root: Path, seed: int | None = None, images: Path | None = None
) -> Path:
    """The page of one target, see `Pages.write`; returns its path."""
    return find_pages([target], cache_root, seed, images).write(out)[0]


def find_pages(targets: Sequence[str], cache_root: Path, seed: int | None = None, images: Path | None = None) -> Pages:
    """What the targets are: folders of runs, or that hold runs; the folder of a feature store; names of data sets.

    Raises UsageError for what is none of these, and for kinds that do not go together.
    """
    kinds = [kind_of(target) for target in targets]
    if len(set(kinds)) > 1:
        what = f"are not of one kind: {', '.join(f'{t} ({k})' for t, k in zip(targets, kinds, strict=True))}"
        raise UsageError("browse", what, "show runs beside runs, and data beside data")
    if kinds[0] == "store" and len(targets) > 1:
        raise UsageError("browse", "shows one feature store at a time", "name one")
    return Pages(kinds[0], tuple(targets), cache_root, seed, images)


def kind_of(target: str) -> str:
    """`runs`, `store` or `data`: a name, or one's own; raises UsageError for what is none of them."""
    path = expanded(target)
    if target and (path / "store.json").is_file():
        return "store"
    if target and is_run(path):
        return "runs"
    if is_named(target):
        return "data"
    if target and path.is_dir() and find_runs(path, DEPTH):
        return "runs"
    if not target or not (path.exists() or "/" in target):
        from lavis_ext.common.config.cards import load_cards

        cards = load_cards()
        if not target:
            raise UsageError("''", "is neither a data set nor a family, nor a path", DATASETS)
        if is_pathlike(target):
            raise UsageError(target, *not_there(target))
        what, way_out = not_there(target, names=[*cards.families, *cards.names()], otherwise=DATASETS)
        raise UsageError(target, f"{what}, and neither a data set nor a family", way_out)
    return "data"


def is_named(target: str) -> bool:
    """Whether a card declares it: a data set, a family, or one of its files."""
    from lavis_ext.common.config.cards import load_cards

    cards = load_cards()
    family, slash, _ = target.partition("/")
    known = target in cards.families or target.partition("[")[0] in cards.names()
    there = os.path.exists(expanded(target))  # noqa: PTH110 - of any text, without an error
    return known or bool(slash and family in cards.families and not there)
