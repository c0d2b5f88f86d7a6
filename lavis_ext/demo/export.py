"""One world, many exports: each writes the scenes as one family of data sets publishes its files."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

from lavis_ext.demo.coco import Photo, export_photos
from lavis_ext.demo.draw import draw_jpeg
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.world import Scene, World
from lavis_ext.errors import UsageError, nearest


class Exporter(Protocol):
    """Writes all scenes of a world under the URLs of one family."""

    def __call__(self, world: World, mirror: MirrorWriter) -> None:
        """Add the family's files to the mirror."""


def export_coco(world: World, mirror: MirrorWriter) -> None:
    """COCO 2014 with the Karpathy split; hidden scenes become its test images."""
    export_photos([photo_of(scene) for scene in world], mirror)


def photo_of(scene: Scene) -> Photo:
    """A scene as a photo: drawn when its bytes are asked for; hidden scenes keep their captions to themselves."""
    captions = () if scene.split == "hidden" else tuple(scene.captions())
    return Photo(scene.id, scene.split, captions, partial(draw_jpeg, scene))


EXPORTS: dict[str, Exporter] = {"coco": export_coco}


def export_world(world: World, root: Path, families: Iterable[str] | None = None) -> Path:
    """Write a subset mirror of the families (default: all) into `root`; returns its manifest, which is written last."""
    chosen = list(EXPORTS) if families is None else list(families)
    for name in chosen:
        if name not in EXPORTS:
            raise UsageError(f"export '{name}'", "not known", nearest(name, EXPORTS))
    mirror = MirrorWriter(root)
    for name in chosen:
        EXPORTS[name](world, mirror)
    return mirror.finish()
