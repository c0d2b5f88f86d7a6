"""Exports: the record forms of the upstream files, archives that open, a manifest that is complete and true."""

from __future__ import annotations

import hashlib
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import urlopen
from zipfile import ZipFile

import pytest
from PIL import Image

from lavis_ext.demo.coco import export_coco_folder
from lavis_ext.demo.mirror import MirrorWriter, mirror_key
from lavis_ext.demo.server import serve
from lavis_ext.demo.world import World
from lavis_ext.errors import DiskError, IntegrityError, UnsafeError, UsageError
from lavis_ext.fetch.mirrors import MirrorMap
from tests.world.export import EXPORTS, export_world

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


def test_an_unknown_family_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'coco'"):
        export_world(WORLD, tmp_path / "m", ["coco", "cocoo"])
    assert not (tmp_path / "m").exists()
    assert "coco" in EXPORTS


def test_an_export_that_breaks_leaves_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    writer = MirrorWriter(tmp_path)

    def members() -> Any:
        yield "a.jpg", b"1"
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        writer.add_zip("http://host/a.zip", members())
    assert not (tmp_path / "manifest.json").exists()
    assert not (tmp_path / "host" / "a.zip").exists()
    assert not writer.files


def test_add_takes_bytes_and_files(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"x" * 3_000_000)
    writer = MirrorWriter(tmp_path / "m")
    writer.add("https://host/a/b.bin?token=secret", source)
    writer.add("https://host/a/c.bin", b"abc")
    assert (tmp_path / "m/host/a/b.bin").read_bytes() == source.read_bytes()
    assert writer.files["host/a/c.bin"] == {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert "secret" not in writer.finish().read_text()


@pytest.mark.parametrize(
    "url", ["ftp://host/a", "host/a", "https://host/", "https://host/a/../../b", "https://host/%2e%2e/b", ""]
)
def test_urls_that_no_mirror_can_hold_are_refused(url: str) -> None:
    with pytest.raises((UsageError, UnsafeError)):
        mirror_key(url)


def test_files_of_a_mirror_lie_where_fetching_looks_for_them(tmp_path: Path) -> None:
    """The writer and the reader share one rule: what was added is found through MirrorMap, from folder and server."""
    urls = ["https://host/a%20b/c.json?x=1", "hf:datasets/o/n/part.parquet", "gdrive:FILE_ID", "azure:acc/box/blob.zip"]
    writer = MirrorWriter(tmp_path)
    for url in urls:
        writer.add(url, url.encode())
    writer.finish()
    folder = MirrorMap(str(tmp_path))
    assert folder.is_subset
    with serve(tmp_path) as base:
        for url in urls:
            assert folder.lists(url) and Path(folder.locate(url)).read_bytes() == url.encode()
            with urlopen(MirrorMap(base).locate(url)) as response:
                assert response.read() == url.encode()


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="choose another folder"):
        MirrorWriter(tmp_path / "file" / "m").add("https://host/a", b"")


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
    export_coco_folder(coco_folder, writer, (0.6, 0.2, 0.2))
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


@pytest.mark.parametrize("splits", [(0.5, 0.5), (0.9, 0.2, 0.2), (-0.1, 0.5, 0.5), (0, 0, 0)])
def test_shares_that_are_none_are_refused(coco_folder: Path, tmp_path: Path, splits: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="shares"):
        export_coco_folder(coco_folder, MirrorWriter(tmp_path / "m"), splits)


def test_what_is_wrong_with_a_folder_is_named(coco_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"captions\.json"):
        export_coco_folder(tmp_path, MirrorWriter(tmp_path / "m"))
    (coco_folder / "images" / f"{103:012d}.jpg").unlink()
    with pytest.raises(IntegrityError, match="000000000103"):
        export_coco_folder(coco_folder, MirrorWriter(tmp_path / "m"))
    (coco_folder / "captions.json").write_text('{"images": [], "annotations": [{"image_id": 1}]}')
    with pytest.raises(IntegrityError, match="COCO's captions form"):
        export_coco_folder(coco_folder, MirrorWriter(tmp_path / "m"))
