"""A published file of features becomes a store the first time that a data set needs it, and is only opened later."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from pathlib import Path

from lavis_ext.errors import DiskError, IntegrityError, OwnedError
from lavis_ext.features.files import disk_errors
from lavis_ext.features.imports import import_features, stamp_of
from lavis_ext.features.layout import ABOUT, INDEX, ROWS, About
from lavis_ext.features.row import ReadOptions
from lavis_ext.features.store import FeatureStore, open_store
from lavis_ext.wording import human

log = logging.getLogger(__name__)
FOLDER = ".lavis_ext/stores"
PAUSE = 2.0
"""Seconds between two looks at an import of another process."""


def store_of(source: Path, root: Path, family: str, options: ReadOptions | None = None) -> FeatureStore:
    """The store of a source: itself where it is one, else what was (or is now) imported of it.

    The import lies below `root`/<family>/.lavis_ext/stores, under the source's path in one word; the source is left as
    it is. One that was cut off goes on, one of another process is waited for. Raises DiskError where too little space
    is left, IntegrityError for a source that has changed since, and what `import_features` raises.
    """
    if (source / ABOUT).is_file():
        return open_store(source)
    place = place_of(source, root, family)
    told = False
    while not _is_done(place, source):
        try:
            _import(source, place, options, quiet=told)
        except OwnedError:
            if not told:
                log.info("%s: another process imports it; waiting", source)
            told = True
            time.sleep(PAUSE)
    return open_store(place)


def place_of(source: Path, root: Path, family: str, folder: str = FOLDER) -> Path:
    """Where what is made of a source lies: for `oscar/vqa/2k/train.pt` in `oscar/.lavis_ext/stores/vqa-2k-train`.

    A source that lies elsewhere is told apart by its whole path, in the family that is given.
    """
    path = source.absolute()
    try:
        owner, *parts = path.relative_to(root.absolute()).with_suffix("").parts
    except ValueError:
        owner, parts = family, [path.stem, hashlib.sha256(str(path).encode()).hexdigest()[:8]]
    return root / owner / folder / "-".join(parts)


def _is_done(place: Path, source: Path) -> bool:
    """Whether the whole of a source is in the store; raises IntegrityError where it has changed since."""
    if not (place / ABOUT).is_file():
        return False
    stamp = stamp_of(source)
    # by name, not by path: the folder of all data may have been moved
    known = [one for one in About.load(place).sources if Path(one["path"]).name == source.name]
    if any(one[key] != value for one in known for key, value in stamp.items()):
        what = f"has changed since it was imported into {place}"
        raise IntegrityError(str(source), what, f"remove {place}, which is then made again")
    return any(one.get("done") for one in known) and (place / INDEX).is_file()


def _import(source: Path, place: Path, options: ReadOptions | None, quiet: bool) -> None:
    _check_space(source, place)
    if not quiet:
        log.info("importing %s (%s) into %s once; later runs map it", source, human(stamp_of(source)["size"]), place)
    done = import_features([source], place, options=options)
    for fault in done.faults[:3]:
        log.warning("%s, line %d, image '%s': %s", source, fault.line, fault.image_id, fault.what)
    if done.faults:
        log.warning("%s: %d rows could not be taken; all are in %s/faults.jsonl", source, len(done.faults), place)


def _check_space(source: Path, place: Path) -> None:
    """Raise DiskError where what is left to write does not fit; base64 text shrinks by a quarter."""
    share = 0.75 if source.suffix == ".tsv" else 1.0
    there = (place / ROWS).stat().st_size if (place / ROWS).is_file() else 0
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free
    needed = int(stamp_of(source)["size"] * share) - there
    if needed > free:
        what = f"the store of {source} needs {human(needed)}, {human(free)} are free"
        raise DiskError(str(place), what, "free some space, or import it elsewhere and name that under args.features")
