"""SBU and LAION-COCO: lists of web addresses of which some are dead, lead to a page, or to a stand-in for the image."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from lavis_ext.demo.coco import draw_jpeg
from lavis_ext.demo.mirror import MirrorWriter, url_of
from lavis_ext.demo.world import Scene, World

FLICKR = "http://static.flickr.com"
STAND_IN = "photo_unavailable.jpg"
WEB = "http://pictures.example.org/laion"
PAGE = b"<!doctype html><html><head><title>Not here</title></head><body>This photo is private.</body></html>\n"
Row = dict[str, Any]
Fate = Literal["image", "dead", "page", "stand-in"]


@dataclass(frozen=True)
class Link:
    """An address in a list and what became of it."""

    scene: Scene
    url: str
    fate: Fate

    @property
    def name(self) -> str:
        """The last part of the photo's own address."""
        return f"{photo_name(self.scene)}.jpg"


FATES: dict[int, Fate] = {3: "dead", 7: "page", 13: "dead", 17: "stand-in"}
"""Of twenty addresses two are dead, one leads to a page, and one to a stand-in; the others to their image."""


def links(scenes: Iterable[Scene], base: str) -> list[Link]:
    """An address below `base` for each scene."""
    found = []
    for i, scene in enumerate(scenes):
        fate = FATES.get(i % 20, "image")
        name = STAND_IN if fate == "stand-in" else f"{scene.id % 9000 + 1000}/{photo_name(scene)}.jpg"
        found.append(Link(scene, f"{base}/{name}", fate))
    return found


def photo_name(scene: Scene) -> str:
    """`4385058960_b0f291553e`: a number and ten letters of a hash, as Flickr names photos."""
    return f"{4_000_000_000 + scene.id}_{hashlib.sha256(str(scene.id).encode()).hexdigest()[:10]}"


def add_bodies(mirror: MirrorWriter, found: Sequence[Link]) -> None:
    """What the addresses answer with; the mirror lacks the dead ones."""
    for link in found:
        if link.fate != "dead":
            mirror.add(link.url, body_of(link))


def body_of(link: Link) -> bytes:
    """The image, or what a host sends in its place."""
    return draw_jpeg(link.scene) if link.fate == "image" else PAGE if link.fate == "page" else stand_in()


def export_sbu(world: World, mirror: MirrorWriter) -> None:
    """The list, the photos that are still there one by one, and the archive of them that VPGTrans' authors made."""
    found = links(world.scenes("train"), FLICKR)
    rows = [{"image": link.name, "caption": owner_caption(link.scene), "url": link.url} for link in found]
    mirror.add_json(url_of("sbu_caption/captions"), rows)
    add_bodies(mirror, found)
    alive = [(link.name, draw_jpeg(link.scene)) for link in found if link.fate == "image"]
    mirror.add_tar_gz(url_of("sbu_caption/images_tar"), alive)


def owner_caption(scene: Scene) -> str:
    """One caption, in lower case as often as not: these were written by the photos' owners."""
    caption = scene.captions()[0]
    return caption.lower() if scene.id % 2 else caption


def stand_in() -> bytes:
    """The grey picture that a host shows in place of one that is gone."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (200, 150), (221, 221, 221)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def export_laion(world: World, mirror: MirrorWriter) -> None:
    """The first part of the metadata as Parquet, and the images that it names."""
    import pyarrow as pa
    from pyarrow import parquet

    found = links(world.scenes("train"), WEB)
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([metadata_row(link) for link in found]), buffer, compression="snappy")
    mirror.add(url_of("laion/metadata"), buffer.getvalue())
    add_bodies(mirror, found)


def metadata_row(link: Link) -> Row:
    """A record of the metadata: the page's own text, and five machine captions with their scores."""
    scores = similarities(link.scene)
    captions = link.scene.captions()
    best = scores.index(max(scores))
    return {
        "URL": link.url,
        "TEXT": f"photo {link.scene.id}",
        "top_caption": captions[best],
        "all_captions": captions,
        "all_similarities": scores,
        "punsafe": 0.0,
        "pwatermark": 0.0,
    }


def similarities(scene: Scene) -> list[float]:
    """A score between 0.2 and 0.4 for each caption."""
    rng = Random(f"similarity/{scene.id}")
    return [round(0.2 + 0.2 * rng.random(), 4) for _ in scene.captions()]
