"""Which pictures are meant: those of a folder, a zip, a file or a prepared family, each under the id of its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lavis_ext.cards import Artifact, load_cards
from lavis_ext.errors import Problem, UsageError
from lavis_ext.features.ids import hash_of
from lavis_ext.prepare.on_disk import inspect
from lavis_ext.prepare.records import MemberTable
from lavis_ext.readers.archive import ZipArchive
from lavis_ext.readers.faults import SampleError
from lavis_ext.readers.images import SUFFIXES, ImageStore


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


def find_pictures(sources: Sequence[str], root: Path) -> list[Picture]:
    """The pictures of all sources, sorted by id; `root` is where prepared families lie.

    Raises UsageError where a source is none, where there is no picture, or where two files would have the same id.
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
        raise UsageError(name, f"none of its pictures lie in {root}", way_out)
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
