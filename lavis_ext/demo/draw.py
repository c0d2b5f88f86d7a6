"""A scene as a JPEG of a photograph's size: textured ground, soft shadows, rimmed shapes; same scene, same bytes."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING

from lavis_ext.demo.things import COLOURS, HEIGHT, HOLES, WIDTH, Point, Thing

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from lavis_ext.demo.world import Scene

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


def draw(scene: Scene) -> Picture:
    """The scene as an RGB picture of 640×480."""
    picture = take_ground(scene.background, Random(f"ground/{scene.id}"))
    for thing in scene.things:
        put(picture, thing)
    return picture


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
