"""COCO's form: pictures that show what a scene says, archives that open, and the records of the upstream files."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zipfile import ZipFile

import pytest
from PIL import Image

from lavis_ext.demo.coco import draw, draw_jpeg
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.things import COLOURS, HEIGHT, SHAPES, WIDTH, Thing
from lavis_ext.demo.world import Scene, World
from tests.world.export import export_photographs, export_world


def near(a: tuple[int, ...], b: tuple[int, ...], tolerance: int = 26) -> bool:
    """Whether two RGB colours are alike in every channel."""
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def test_the_same_scene_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from lavis_ext.demo.coco import draw_jpeg; from lavis_ext.demo.world import World;"
        "print(hashlib.sha256(draw_jpeg(World(seed=5).scene('val', 2))).hexdigest())"
    )
    seen = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert len(seen) == 1
    assert draw_jpeg(World(seed=5).scene("val", 2)) != draw_jpeg(World(seed=6).scene("val", 2))


def test_a_jpeg_has_the_size_and_weight_of_a_small_photograph() -> None:
    data = draw_jpeg(World(seed=5).scene("val", 0))
    with Image.open(BytesIO(data)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (WIDTH, HEIGHT))
    assert 10_000 < len(data) < 200_000


@pytest.mark.parametrize("shape", SHAPES)
def test_colour_fills_the_shape_and_not_its_surroundings(shape: str) -> None:
    for colour, rgb in COLOURS.items():
        thing = Thing(shape, colour, "big", 320, 240)
        picture = draw(Scene(1, "train", (thing,), "paper"))
        inside = (320 + 68, 240) if shape == "ring" else (320, 240)
        assert near(picture.getpixel(inside), rgb)
        x, y, *_ = thing.box()
        assert not near(picture.getpixel((x - 12, y - 12)), rgb)
        if shape == "ring":
            assert not near(picture.getpixel((320, 240)), rgb)


def test_boxes_are_tight_around_the_drawn_pixels() -> None:
    for shape in SHAPES:
        thing = Thing(shape, "blue", "big", 300, 200)
        picture = draw(Scene(1, "train", (thing,), "paper"))
        blue = picture.split()[2].point([0] * 256)  # a mask to fill in
        pixels = picture.load()
        for x in range(190, 410):
            for y in range(90, 310):
                r, g, b = pixels[x, y][:3]
                blue.putpixel((x, y), 255 if b > r + 60 and r < 90 and g < 130 else 0)
        left, top, right, bottom = blue.getbbox()
        x, y, w, h = thing.box()
        assert max(abs(left - x), abs(top - y), abs(right - x - w), abs(bottom - y - h)) <= 3, shape


def test_grounds_differ_and_every_picture_shows_another_part() -> None:
    plain = {
        ground: draw(Scene(1, "train", (), ground)).resize((1, 1)).getpixel((0, 0))
        for ground in ("paper", "wood", "stone")
    }
    assert len(set(plain.values())) == 3
    assert draw(Scene(1, "train", (), "wood")).tobytes() != draw(Scene(2, "train", (), "wood")).tobytes()


def test_the_world_needs_no_drawing_library() -> None:
    code = (
        "import sys, lavis_ext.demo.world as w; next(iter(w.World())).captions();"
        "import lavis_ext.demo.coco, lavis_ext.demo.mirror;"
        "sys.exit(any(m in sys.modules for m in ('PIL', 'numpy', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


WORLD = World(seed=11, train=12, val=4, test=3, hidden=2)
ZIPS = "images.cocodataset.org/zips"
JSONS = "storage.googleapis.com/sfr-vision-language-research/datasets"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirror")
    export_world(WORLD, root)
    return root


def load(root: Path, name: str) -> Any:
    """A JSON file of the mirror."""
    return json.loads((root / JSONS / name).read_text())


def names(root: Path, folder: str) -> list[str]:
    """The members of an image archive, folders left out."""
    with ZipFile(root / ZIPS / f"{folder}.zip") as archive:
        assert archive.testzip() is None
        return [name for name in archive.namelist() if not name.endswith("/")]


def test_manifest_lists_every_file_with_its_size_and_hash(mirror: Path) -> None:
    manifest = json.loads((mirror / "manifest.json").read_text())
    assert (manifest["format"], manifest["equivalence"]) == (1, "subset")
    on_disk = {p.relative_to(mirror).as_posix() for p in mirror.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(map(unquote, manifest["files"])) == on_disk
    assert {f"{ZIPS}/{folder}.zip" for folder in ("train2014", "val2014", "test2014", "test2015")} < on_disk
    for key, facts in manifest["files"].items():
        data = (mirror / unquote(key)).read_bytes()
        assert facts == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_archives_hold_jpegs_under_upstream_names(mirror: Path) -> None:
    for folder in ("train2014", "val2014", "test2014", "test2015"):
        found = names(mirror, folder)
        assert found and all(re.fullmatch(rf"{folder}/COCO_{folder}_\d{{12}}\.jpg", name) for name in found)
        with (
            ZipFile(mirror / ZIPS / f"{folder}.zip") as archive,
            Image.open(BytesIO(archive.read(found[0]))) as picture,
        ):
            assert picture.size == (640, 480)
            assert archive.namelist()[0] == f"{folder}/"


def test_train_has_one_record_a_caption_and_trains_on_part_of_val2014(mirror: Path) -> None:
    rows = load(mirror, "coco_karpathy_train.json")
    assert len(rows) == 12 * 5
    assert all(list(row) == ["caption", "image", "image_id"] for row in rows)
    for row in rows:
        digits = int(row["image"].rsplit("_", 1)[1].removesuffix(".jpg"))
        assert row["image_id"] == f"coco_{digits}"
    images = {row["image"] for row in rows}
    assert len(images) == 12
    assert sum(image.startswith("val2014/") for image in images) == 3
    assert images < set(names(mirror, "train2014")) | set(names(mirror, "val2014"))


def test_val_and_test_have_one_record_an_image_with_all_captions(mirror: Path) -> None:
    val, test = load(mirror, "coco_karpathy_val.json"), load(mirror, "coco_karpathy_test.json")
    assert (len(val), len(test)) == (4, 3)
    for row in val + test:
        assert list(row) == ["image", "caption"] and len(row["caption"]) == 5
        assert row["image"] in names(mirror, "val2014")
    trained = {row["image"] for row in load(mirror, "coco_karpathy_train.json")}
    assert not trained & {row["image"] for row in val + test}


def test_ground_truth_is_what_cocoevalcap_reads(mirror: Path) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO

    for split, number in (("val", 4), ("test", 3)):
        truth = COCO(str(mirror / JSONS / f"coco_karpathy_{split}_gt.json"))
        assert len(truth.getImgIds()) == number
        scenes = {scene.id: scene for scene in WORLD.scenes(split)}
        for image_id, said in truth.imgToAnns.items():
            assert [a["caption"] for a in said] == scenes[image_id].captions()
        assert len({a["id"] for a in truth.dataset["annotations"]}) == number * 5


def test_hidden_scenes_are_pictures_without_captions(mirror: Path) -> None:
    ids = {scene.id for scene in WORLD.scenes("hidden")}
    for folder in ("test2014", "test2015"):
        assert {int(name[-16:-4]) for name in names(mirror, folder)} == ids
    published = "".join((mirror / JSONS / f"coco_karpathy_{s}.json").read_text() for s in ("train", "val", "test"))
    assert not any(f"{i:012d}" in published for i in ids)


def test_the_same_world_makes_the_same_mirror(mirror: Path, tmp_path: Path) -> None:
    again = export_world(WORLD, tmp_path)
    assert again.read_bytes() == (mirror / "manifest.json").read_bytes()


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """Ten pictures in COCO form."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    images = [{"id": 100 + i, "file_name": f"{100 + i:012d}.jpg"} for i in range(10)]
    for image in images:
        (folder / "images" / str(image["file_name"])).write_bytes(f"jpeg {image['id']}".encode())
    notes = [{"id": k, "image_id": 100 + k % 10, "caption": f"caption {k}"} for k in range(50)]
    (folder / "captions.json").write_text(json.dumps({"images": images[::-1], "annotations": notes}))
    return folder


def test_a_folder_in_coco_form_becomes_a_karpathy_split(coco_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "m"
    writer = MirrorWriter(root)
    export_photographs(coco_folder, writer, (0.6, 0.2, 0.2))
    writer.finish()
    train, val, test = (load(root, f"coco_karpathy_{s}.json") for s in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (30, 2, 2)
    assert val[0] == {
        "image": "val2014/COCO_val2014_000000000106.jpg",
        "caption": [f"caption {k}" for k in (6, 16, 26, 36, 46)],
    }
    with ZipFile(root / ZIPS / "val2014.zip") as archive:
        assert archive.read(val[0]["image"]) == b"jpeg 106"
    assert len(names(root, "test2015")) == 2
