"""HTML pages of data sets and runs: one offline file each, made from what a folder holds."""

from __future__ import annotations

from pathlib import Path

from lavis_ext.browse.run_report import write_run_report
from lavis_ext.browse.serve import serve_page
from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import UsageError

__all__ = ["serve_page", "write_dataset_page", "write_page", "write_run_report"]


def write_page(
    target: str, out: Path | None, cache_root: Path, seed: int | None = None, images: Path | None = None
) -> Path:
    """The page of a run or a feature store, where `target` is its folder, else of the data set or family of that name.

    `images` is where the pictures of a store are. Returns the path of the page.

    Raises UsageError for what is neither, NotPreparedError for a data set that is not on the disk, DiskError where the
    page cannot be written.
    """
    folder = Path(target)
    if (folder / "store.json").is_file():
        from lavis_ext.browse.regions import write_store_page

        return write_store_page(folder, out, cache_root, images, seed)
    if (folder / "log.jsonl").is_file() or (folder / "config.yaml").is_file():
        return write_run_report(folder, out=out)
    cards = load_cards()
    named = target in cards.families or target.partition("[")[0] in cards.names()
    if folder.exists() and not named:
        raise UsageError(target, "is not the folder of a run or of a feature store", "name one, or a data set")
    return write_dataset_page(target, out, cache_root, seed=seed)


def write_dataset_page(
    name: str, out: Path | None, cache_root: Path, samples: int = 24, seed: int | None = None
) -> Path:
    """See `dataset_page.write_dataset_page`: imported on first use, because it opens the data set with torch."""
    from lavis_ext.browse.dataset_page import write_dataset_page as write

    return write(name, out, cache_root, samples, seed)
