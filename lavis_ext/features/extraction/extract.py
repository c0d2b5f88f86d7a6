"""Run a detector over images and append its regions to a TSV or a store: resumable, divisible by id."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lavis_ext.common.config.cards import Artifact, load_cards
from lavis_ext.common.errors import Problem, UsageError
from lavis_ext.datasets.readers.decode import decode_rgb
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.images import SUFFIXES, ImageStore, ZipArchive
from lavis_ext.features.detectors.base import DetectedRegions, Detector
from lavis_ext.features.extraction.rows import ExtractionLog, RowFile
from lavis_ext.features.layout import Array, hash_of
from lavis_ext.features.store import LABELS, BadRow, FeatureRow
from lavis_ext.features.writer import StoreWriter
from lavis_ext.fetch.transfer import Progress, Silent
from lavis_ext.prepare.records import MemberTable, inspect

log = logging.getLogger(__name__)
READERS = 4
"""Threads that read and decode images while the detector is busy."""
STORE = "store"


@dataclass(frozen=True)
class Picture:
    """One picture: its id (the file's name without its suffix), and where it is read from."""

    image_id: str
    name: str
    store: ImageStore

    def read(self) -> bytes:
        """Its bytes; raises SampleError where it is missing or cannot be read."""
        return self.store.read(self.name)

    def size(self) -> int:
        """Bytes of the file, 0 where it cannot be found."""
        try:
            place, member = self.store.find(self.name)
            return (
                place.members[member].size
                if isinstance(place, ZipArchive)
                else Path(place.where(member)).stat().st_size
            )
        except (SampleError, OSError):
            return 0


Loaded = tuple[Picture, Array | SampleError, int]
"""A picture, its pixels or why it has none, and the bytes of its file."""


def find_pictures(sources: Sequence[str], root: Path) -> list[Picture]:
    """The pictures of all sources (folder, zip, image file or prepared family), sorted by id.

    `root` is the cache root of prepared families. Raises UsageError for another source, where there is no picture, or
    where two files would have the same id.
    """
    found: dict[str, Picture] = {}
    twice: list[Problem] = []
    for picture in (picture for source in sources for picture in _pictures(source, root)):
        known = found.setdefault(picture.image_id, picture)
        if known is not picture and known.store.where(known.name) != picture.store.where(picture.name):
            what = f"has the id of {known.store.where(known.name)}"
            twice.append(Problem(picture.store.where(picture.name), what, "extract them into two destinations"))
    if twice:
        raise UsageError.of(twice[:20])
    if not found:
        raise UsageError(
            ", ".join(sources), "holds no pictures", f"name a folder or a zip of {', '.join(sorted(SUFFIXES))}"
        )
    return [found[image_id] for image_id in sorted(found)]


def in_group(image_id: str, group: int, total: int) -> bool:
    """Whether an image belongs to a group: by a hash of its id, so that every host divides them in the same way."""
    return hash_of(image_id) % total == group


def _pictures(source: str, root: Path) -> Iterator[Picture]:
    path = Path(source)
    if path.is_dir():
        return _of_store(ImageStore(path))
    if path.suffix.lower() == ".zip" and path.is_file():
        return _of_store(ImageStore(path, [path]))
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return _named(ImageStore(path.parent, ()), [path.name])
    if path.exists():
        raise UsageError(source, "is neither a folder, a zip nor a picture", "unpack it, and name the folder")
    return _of_family(source, root)


def _of_store(store: ImageStore) -> Iterator[Picture]:
    return _named(store, store.names())


def _named(store: ImageStore, names: Iterable[str]) -> Iterator[Picture]:
    for name in names:
        base = PurePosixPath(name)
        if base.suffix.lower() in SUFFIXES and not base.name.startswith("."):
            yield Picture(base.stem, name, store)


def _of_family(name: str, root: Path) -> Iterator[Picture]:
    """The pictures of `coco`, `coco_caption` or `coco/val2014`."""
    cards = load_cards()
    way_out = f"run `lavis-ext prepare {name}`"
    if "/" not in name and name not in (*cards.families, *cards.names()):
        raise UsageError(name, "is no file, no folder and no family", "name pictures, or a family such as coco/val2014")
    artifacts = cards.named_artifacts(name) if "/" in name else []
    storages = [] if "/" in name else dict.fromkeys(d.build_info.images.storage for d in cards.resolve(name)[1])
    stores = [ImageStore(root / storage) for storage in storages if storage]
    ready = [store for store in stores if store.ready]
    packed = [pair for artifact in artifacts if (pair := _of_artifact(artifact, root)) is not None]
    if not ready and not packed:
        raise UsageError(name, f"none of its pictures are in {root}", way_out)
    for store in ready:
        yield from _of_store(store)
    for store, names in packed:
        yield from _named(store, names)


def _of_artifact(artifact: Artifact, root: Path) -> tuple[ImageStore, Iterable[str]] | None:
    """An archive that was kept, else its unpacked files by the list of its members, else the folder of its name."""
    archive = root / artifact.file
    if archive.suffix == ".zip" and archive.is_file():
        store = ImageStore(archive, [archive])
        return store, store.names()
    record = inspect(root, artifact).record
    table = MemberTable.read(root, artifact) if record is not None and record.state == "complete" else None
    if table is not None:
        return ImageStore(root / artifact.storage, ()), [member.name for member in table.members]
    folder = archive.with_suffix("") if artifact.unpack else archive
    if not folder.is_dir():
        return None
    store = ImageStore(folder, ())
    return store, store.names()


@dataclass(frozen=True)
class ExtractionRequest:
    """What is extracted, and where to.

    `sources` are pictures, `form` a kind of TSV or "store", `dtype` the precision of a new store. Of `total` groups
    that divide the images the one of number `group` is meant, and its rows go to `destination` + `.group`; None is all
    of them, to `destination` itself.
    """

    sources: Sequence[str]
    destination: Path
    root: Path
    form: str = STORE
    dtype: str | None = None
    group: int | None = None
    total: int = 1
    batch_size: int = 4

    def __post_init__(self) -> None:
        """Raises UsageError for groups that there are not."""
        if self.total < 1 or self.batch_size < 1:
            raise UsageError(f"{self.total} groups, batches of {self.batch_size}", "at least 1 of each", "")
        if self.group is None and self.total > 1:
            raise UsageError(f"--total_group {self.total}", "needs --group_id", f"0 to {self.total - 1}, a run each")
        if self.group is not None and not 0 <= self.group < self.total:
            raise UsageError(f"--group_id {self.group}", f"is none of {self.total} groups", f"0 to {self.total - 1}")
        if self.form != STORE and self.dtype == "float16":
            raise UsageError("--dtype float16", f"a {self.form} holds float32", "extract into a store")

    @property
    def path(self) -> Path:
        """Where the rows go."""
        path = self.destination
        return path if self.group is None else path.with_name(f"{path.name}.{self.group}")


@dataclass
class Extracted:
    """Images of the group, how many have a row, how many this run `added`, and why the `missing` ones have none."""

    path: Path
    images: int = 0
    present: int = 0
    added: int = 0
    missing: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "path": str(self.path)}


def extract(request: ExtractionRequest, make: Callable[[], Detector], progress: Progress | None = None) -> Extracted:
    """Append the rows of all images of the request that have none; images that failed before are tried again.

    `make` builds the detector, and is called only where something is to be done. Rows are in the order of the ids, so
    that a killed and resumed run ends in the same bytes. Raises UsageError, OwnedError, DiskError; pictures that cannot
    be read are in `missing` of the result.
    """
    chosen = find_pictures(request.sources, request.root)
    pictures = [p for p in chosen if request.group is None or in_group(p.image_id, request.group, request.total)]
    done = Extracted(request.path, len(pictures))
    with _opened(request) as there:
        account = ExtractionLog.read(request.path) or ExtractionLog()
        account.expected = [picture.image_id for picture in pictures]
        todo = [picture for picture in pictures if picture.image_id not in there]
        if len(todo) < len(pictures) and not account.made:
            # rows of one file must come from one detector with one set of settings
            what = "holds rows of which no log says how they were made"
            way_out = "name another destination; `lavis-ext features merge` joins files"
            raise UsageError(str(request.path), what, way_out)
        if todo:
            _Run(request, there, account, progress or Silent()).take(todo, make())
        account.faults = {name: why for name, why in account.faults.items() if name not in there}
        account.write(request.path)
        done.added = sum(picture.image_id in there for picture in todo)
        done.missing = account.missing(there)
    done.present = done.images - len(done.missing)
    return done


@contextmanager
def _opened(request: ExtractionRequest) -> Iterator[RowFile | StoreWriter]:
    if request.form != STORE:
        with RowFile(request.path, request.form) as rows:
            yield rows
    else:
        with StoreWriter(request.path, request.dtype) as writer:
            yield writer


class _Run:
    """One run over the pictures without a row: the next batch is read while the detector is busy."""

    def __init__(
        self, request: ExtractionRequest, there: RowFile | StoreWriter, account: ExtractionLog, progress: Progress
    ) -> None:
        self.request, self.there, self.account, self.progress = request, there, account, progress
        self.label = f"extract {request.path.name}"
        self.rows = len(there.entries) if isinstance(there, StoreWriter) else len(there)

    def take(self, pictures: Sequence[Picture], detector: Detector) -> None:
        """Detect and append the rows of all pictures; faults go to the log."""
        self.account.check_same_settings({**detector.identity, "form": self.request.form}, self.request.path)
        self.account.write(self.request.path)
        if isinstance(self.there, StoreWriter) and not self.there.about.sources:
            source = {"path": ", ".join(map(str, self.request.sources)), "format": f"detector:{detector.name}"}
            self.there.about.sources.append({**source, "made": self.account.made, "done": True})
            self.there.about.save(self.there.path)
        self.progress.begin(self.label, sum(picture.size() for picture in pictures))
        outcome = "failed"
        try:
            with ThreadPoolExecutor(READERS, thread_name_prefix="picture") as pool:
                for batch in _batches(pool, pictures, self.request.batch_size):
                    self._detect(batch, detector)
            outcome = "fetched"
        finally:
            self.progress.end(self.label, outcome)

    def _detect(self, batch: Sequence[Loaded], detector: Detector) -> None:
        images = [(picture, image) for picture, image, _ in batch if not isinstance(image, SampleError)]
        for picture, image, _ in batch:
            if isinstance(image, SampleError):
                self._note(picture, f"{image.why} ({image.path})")
        found = detector.detect([image for _, image in images]) if images else []
        for (picture, _), regions in zip(images, found, strict=True):
            row = regions.as_row(picture.image_id)
            if detector.classes and self.request.form == STORE:
                row.arrays[LABELS] = labels_of(regions, detector.classes)
            self._append(picture, row)
        if isinstance(self.there, RowFile):
            self.there.flush()
        self.progress.advance(self.label, sum(size for _, _, size in batch))

    def _append(self, picture: Picture, row: FeatureRow) -> None:
        try:
            row.features = np.ascontiguousarray(row.features, np.float32)
            row.line = row.next = self.rows + 1
            self.there.append(row)
            self.account.faults.pop(picture.image_id, None)
            self.rows += 1
        except (BadRow, UnicodeEncodeError) as error:
            self._note(picture, str(error))

    def _note(self, picture: Picture, why: str) -> None:
        log.warning("%s: %s", picture.image_id, why)
        self.account.faults[picture.image_id] = why


def labels_of(regions: DetectedRegions, classes: Sequence[str]) -> Array:
    """uint8: the JSON of `[{"class", "conf", "rect"}, …]`, one object a region, as in VinVL's label files."""
    rows = zip(regions.objects_id.tolist(), regions.objects_conf.tolist(), regions.boxes.tolist(), strict=True)
    labels = [{"class": classes[number], "conf": round(conf, 6), "rect": rect} for number, conf, rect in rows]
    return np.frombuffer(json.dumps(labels, ensure_ascii=False).encode(), np.uint8)


def _batches(pool: ThreadPoolExecutor, pictures: Sequence[Picture], size: int) -> Iterator[list[Loaded]]:
    """Batches of decoded pictures in their order; the next batch is being decoded while one is used."""
    rest = iter(pictures)
    waiting: list[Future[Loaded]] = []
    while True:
        following = [pool.submit(_load, picture) for picture in islice(rest, size)]
        if waiting:
            yield [future.result() for future in waiting]
        if not following:
            return
        waiting = following


def _load(picture: Picture) -> Loaded:
    """The pixels of a picture, or why there are none, and the bytes of its file."""
    try:
        data = picture.read()
    except SampleError as error:
        return picture, error, 0
    try:
        return picture, decode_rgb(data, picture.image_id, picture.store.where(picture.name)), len(data)
    except SampleError as error:
        return picture, error, len(data)
