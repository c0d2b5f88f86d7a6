"""Scenes as the exports share them: each drawn once, and each in the folder in which COCO's export puts it."""

from __future__ import annotations

from functools import lru_cache, partial

from lavis_ext.demo.coco import Photo, assign_folders, export_photos
from lavis_ext.demo.draw import draw_jpeg
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.world import Scene, World

KEPT = 256
"""Pictures that are kept for the next export, about 50 kB each: a world of the size of `demo --all`."""


@lru_cache(KEPT)
def picture_of(scene: Scene) -> bytes:
    """A scene as a JPEG."""
    return draw_jpeg(scene)


def photo_of(scene: Scene) -> Photo:
    """A scene as a photo: drawn when its bytes are asked for; hidden scenes keep their captions to themselves."""
    captions = () if scene.split == "hidden" else tuple(scene.captions())
    return Photo(scene.id, scene.split, captions, partial(picture_of, scene))


def export_coco(world: World, mirror: MirrorWriter) -> None:
    """COCO 2014 with the Karpathy split; hidden scenes become its test images."""
    export_photos([photo_of(scene) for scene in world], mirror)


def coco_folders(world: World) -> dict[str, list[Scene]]:
    """The scenes in each of COCO's folders."""
    known = {scene.id: scene for scene in world}
    return {
        folder: [known[photo.id] for photo in photos]
        for folder, photos in assign_folders(map(photo_of, known.values())).items()
    }
