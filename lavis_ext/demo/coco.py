"""Scenes as photographs with captions, in the forms in which COCO 2014 and the Karpathy split are published."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from io import BytesIO
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

from lavis_ext.demo.mirror import MirrorWriter, url_of
from lavis_ext.demo.things import COLOURS, HEIGHT, HOLES, WIDTH, Point, Thing
from lavis_ext.demo.world import Scene, World

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

QUALITY = 85
SMOOTH = 3
"""Shapes are drawn this many times larger and scaled down, for smooth edges."""
SPARE = 160
"""Pixels by which a ground is larger than a picture, so that each picture shows another part of it."""
GROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int], int]] = {
    # colour, size of the noise before it is stretched over the ground, strength of the noise
    "paper": ((243, 240, 232), (400, 320), 6),
    "wood": ((216, 188, 150), (10, 210), 26),
    "stone": ((176, 182, 188), (100, 78), 34),
}
SHADOW = (6, 8)
RIM = 7
"""Side in pixels of the window that wears the rim off: 3 pixels all round."""
KEPT = 256
"""Pictures that are kept for the next export, about 50 kB each: a world of the size of `demo --all`."""
FOLDERS = ("train2014", "val2014", "test2014", "test2015")
RESTVAL_EVERY = 4
"""Every n-th training photo is in val2014: Karpathy's split trains on what it does not test on there."""


def draw(scene: Scene) -> Picture:
    """The scene as an RGB picture of 640×480."""
    picture = take_ground(scene.background, Random(f"ground/{scene.id}"))
    for thing in scene.things:
        put(picture, thing)
    return picture


@lru_cache(KEPT)
def draw_jpeg(scene: Scene) -> bytes:
    """The scene as a JPEG file."""
    buffer = BytesIO()
    draw(scene).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def take_ground(name: str, rng: Random) -> Picture:
    """A part of the ground that depends on the random numbers."""
    left, top = (int(rng.random() * SPARE) for _ in range(2))
    return make_ground(name).crop((left, top, left + WIDTH, top + HEIGHT))


@cache
def make_ground(name: str) -> Picture:
    """The whole ground: its colour, made lighter and darker by stretched noise and by fine grain."""
    from PIL import Image, ImageChops

    colour, coarse, strength = GROUNDS[name]
    size = (WIDTH + SPARE, HEIGHT + SPARE)
    rng = Random(f"ground/{name}")
    waves = Image.frombytes("L", coarse, rng.randbytes(coarse[0] * coarse[1])).resize(size, Image.Resampling.BICUBIC)
    grain = Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))
    noise = Image.blend(waves, grain, 0.25).point([round((v - 128) * strength / 128) + 128 for v in range(256)])
    plain = Image.new("RGB", size, colour)
    return ImageChops.add(plain, Image.merge("RGB", (noise, noise, noise)), scale=1, offset=-128)


def put(picture: Picture, thing: Thing) -> None:
    """Draw one thing with its shadow and a darker rim."""
    from PIL import ImageFilter

    colour = COLOURS[thing.colour]
    rim = tuple(value * 11 // 20 for value in colour)
    corner = (thing.x - patch_side(thing) // 2, thing.y - patch_side(thing) // 2)
    mask = cut(thing)
    shadow = mask.filter(ImageFilter.BoxBlur(5)).point([value * 2 // 5 for value in range(256)])
    picture.paste((40, 36, 32), (corner[0] + SHADOW[0], corner[1] + SHADOW[1]), shadow)
    picture.paste(rim, corner, mask)
    picture.paste(colour, corner, mask.filter(ImageFilter.MinFilter(RIM)))


def patch_side(thing: Thing) -> int:
    """Side in pixels of the square around a thing that has room for its shadow's blur."""
    return thing.width + 24


def cut(thing: Thing) -> Picture:
    """The thing as a mask of its patch, holes left out."""
    from PIL import Image, ImageDraw

    side = patch_side(thing)
    mask = Image.new("L", (side * SMOOTH, side * SMOOTH))
    pen = ImageDraw.Draw(mask)
    pen.polygon(on_patch(thing, thing.outline()), fill=255)
    if thing.shape in HOLES:
        pen.polygon(on_patch(thing, thing.outline(HOLES[thing.shape])), fill=0)
    return mask.resize((side, side), Image.Resampling.BOX)


def on_patch(thing: Thing, curve: list[Point]) -> list[Point]:
    """A curve of the picture in the coordinates of the thing's enlarged patch."""
    middle = patch_side(thing) * SMOOTH / 2
    return [(middle + (x - thing.x) * SMOOTH, middle + (y - thing.y) * SMOOTH) for x, y in curve]


@dataclass(frozen=True)
class Photo:
    """One picture: its COCO id, its split (train, val, test, or hidden for one without captions) and its JPEG bytes."""

    id: int
    split: str
    captions: tuple[str, ...]
    read: Callable[[], bytes]


def photo_of(scene: Scene) -> Photo:
    """A scene as a photo: drawn when its bytes are asked for; hidden scenes keep their captions to themselves."""
    captions = () if scene.split == "hidden" else tuple(scene.captions())
    return Photo(scene.id, scene.split, captions, partial(draw_jpeg, scene))


def export_coco(world: World, mirror: MirrorWriter) -> None:
    """COCO 2014 with the Karpathy split; hidden scenes become its test images."""
    export_photos([photo_of(scene) for scene in world], mirror)


def export_photos(photos: Sequence[Photo], mirror: MirrorWriter) -> None:
    """Write the four image archives, the three Karpathy files and the two ground-truth files of COCOEvalCap."""
    folders = assign_folders(photos)
    for folder in FOLDERS:
        mirror.add_zip(url_of(f"coco/{folder}"), zip_members(folder, folders[folder]))
    home = {photo.id: folder for folder in ("train2014", "val2014") for photo in folders[folder]}
    for split in ("train", "val", "test"):
        url = url_of(f"coco/karpathy_{split}")
        mirror.add_json(url, karpathy_records(photos, split, home))
        if split != "train":
            mirror.add_json(url.replace(".json", "_gt.json"), ground_truth(photos, split))


def assign_folders(photos: Iterable[Photo]) -> dict[str, list[Photo]]:
    """COCO's folder → its photos; test2015 holds the photos of test2014 again, as upstream."""
    folders: dict[str, list[Photo]] = defaultdict(list)
    trained = count(1)
    for photo in photos:
        if photo.split == "hidden":
            folders["test2014"].append(photo)
            folders["test2015"].append(photo)
        elif photo.split == "train" and next(trained) % RESTVAL_EVERY:
            folders["train2014"].append(photo)
        else:
            folders["val2014"].append(photo)
    return folders


def coco_folders(world: World) -> dict[str, list[Scene]]:
    """The scenes in each of COCO's folders."""
    known = {scene.id: scene for scene in world}
    return {
        folder: [known[photo.id] for photo in photos]
        for folder, photos in assign_folders(map(photo_of, known.values())).items()
    }


def image_path(folder: str, photo_id: int) -> str:
    """`val2014/COCO_val2014_000000522418.jpg`."""
    return f"{folder}/COCO_{folder}_{photo_id:012d}.jpg"


def zip_members(folder: str, photos: Iterable[Photo]) -> Iterator[tuple[str, bytes]]:
    """The folder's own entry, then its photos, each read when its turn comes."""
    yield f"{folder}/", b""
    for photo in photos:
        yield image_path(folder, photo.id), photo.read()


def karpathy_records(photos: Iterable[Photo], split: str, home: dict[int, str]) -> list[dict[str, Any]]:
    """For train one record a caption (caption, image, image_id); else one an image with all its captions."""
    chosen = [photo for photo in photos if photo.split == split]
    if split == "train":
        return [
            {"caption": caption, "image": image_path(home[photo.id], photo.id), "image_id": f"coco_{photo.id}"}
            for photo in chosen
            for caption in photo.captions
        ]
    return [{"image": image_path(home[photo.id], photo.id), "caption": list(photo.captions)} for photo in chosen]


def ground_truth(photos: Iterable[Photo], split: str) -> dict[str, list[dict[str, Any]]]:
    """The form that COCOEvalCap reads: `annotations` (image_id, caption, id) and `images` (id)."""
    chosen = [photo for photo in photos if photo.split == split]
    pairs = [(photo.id, caption) for photo in chosen for caption in photo.captions]
    annotations = [{"image_id": owner, "caption": caption, "id": i} for i, (owner, caption) in enumerate(pairs, 1)]
    return {"annotations": annotations, "images": [{"id": photo.id} for photo in chosen]}
