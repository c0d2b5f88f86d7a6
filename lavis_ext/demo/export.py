"""One world, many exports: each writes the scenes as one family of data sets publishes its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from lavis_ext.demo.coco import export_photos
from lavis_ext.demo.descriptions import export_minigpt4
from lavis_ext.demo.flickr import export_flickr30k, export_snli_ve
from lavis_ext.demo.flickr import images_by_request as flickr_by_request
from lavis_ext.demo.genome import export_vg
from lavis_ext.demo.gqa import export_gqa
from lavis_ext.demo.mirror import MirrorWriter, make_folder
from lavis_ext.demo.nlvr import export_nlvr
from lavis_ext.demo.nlvr import images_by_request as nlvr_by_request
from lavis_ext.demo.novel import export_nocaps
from lavis_ext.demo.scenes import photo_of
from lavis_ext.demo.vqa import export_aokvqa, export_okvqa, export_vqav2
from lavis_ext.demo.weblists import export_laion, export_sbu
from lavis_ext.demo.world import World
from lavis_ext.errors import UsageError, nearest
from lavis_ext.files import disk_errors, replacing


class Exporter(Protocol):
    """Writes all scenes of a world under the URLs of one family."""

    def __call__(self, world: World, mirror: MirrorWriter) -> None:
        """Add the family's files to the mirror."""


def export_coco(world: World, mirror: MirrorWriter) -> None:
    """COCO 2014 with the Karpathy split; hidden scenes become its test images."""
    export_photos([photo_of(scene) for scene in world], mirror)


def export_oscar(world: World, mirror: MirrorWriter) -> None:
    """Oscar's archives; features and models need numpy and torch, which are imported here."""
    from lavis_ext.demo.oscar import archives

    archives.export_oscar(world, mirror)


def export_vinvl(world: World, mirror: MirrorWriter) -> None:
    """VinVL's folders; they need numpy and torch too."""
    from lavis_ext.demo.oscar import folders

    folders.export_vinvl(world, mirror)


EXPORTS: dict[str, Exporter] = {
    "coco": export_coco,
    "vqav2": export_vqav2,
    "okvqa": export_okvqa,
    "aokvqa": export_aokvqa,
    "gqa": export_gqa,
    "vg": export_vg,
    "nocaps": export_nocaps,
    "sbu_caption": export_sbu,
    "laion": export_laion,
    "minigpt4": export_minigpt4,
    "nlvr": export_nlvr,
    "flickr30k": export_flickr30k,
    "snli_ve": export_snli_ve,
    "oscar": export_oscar,
    "vinvl": export_vinvl,
}
NEEDS = dict.fromkeys(("vqav2", "okvqa", "aokvqa"), "coco")
"""Families that are about the images of another one."""
BY_HAND: dict[str, Callable[[World], Iterator[tuple[str, bytes]]]] = {
    "nlvr": nlvr_by_request,
    "flickr30k": flickr_by_request,
    "snli_ve": flickr_by_request,
}
"""Families whose images no server gives out: what a person puts below the cache root, as (path, content)."""


def export_world(world: World, root: Path, families: Iterable[str] | None = None) -> Path:
    """Write a subset mirror of the families (default: all) into `root`; returns its manifest, which is written last.

    The images that a family takes from another one come along. Raises UsageError for an unknown name.
    """
    chosen = list(EXPORTS) if families is None else list(families)
    for name in chosen:
        if name not in EXPORTS:
            raise UsageError(f"export '{name}'", "not known", nearest(name, EXPORTS))
    mirror = MirrorWriter(root)
    for name in dict.fromkeys([*(NEEDS[name] for name in chosen if name in NEEDS), *chosen]):
        EXPORTS[name](world, mirror)
    return mirror.finish()


def place_by_hand(world: World, cache_root: Path, families: Iterable[str]) -> int:
    """Put the images that come on request where a person would; those that are there stay. Returns how many it wrote.

    Raises DiskError.
    """
    made = 0
    for family in BY_HAND.keys() & set(families):
        for name, content in BY_HAND[family](world):
            made += place(cache_root / name, content)
    return made


def place(path: Path, content: bytes) -> bool:
    """Write a file that is not there yet; whether it was not."""
    if path.is_file():
        return False
    make_folder(path.parent)
    with disk_errors(path), replacing(path, durable=False) as part:
        part.write_bytes(content)
    return True
