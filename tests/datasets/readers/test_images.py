"""Pictures are found under the names that annotations use, in folders and in archives, and nowhere else."""

import pickle
import threading
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from lavis_ext.common.errors import IntegrityError
from lavis_ext.datasets.readers import ImageStore, SampleError
from lavis_ext.datasets.readers.images import ZipArchive
from lavis_ext.datasets.readers.packed import PackedImages, packed_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in ("val2014/a.jpg", "VG_100K/1.jpg", "VG_100K_2/2.jpg", "flat.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "notes.txt").write_text("not a picture")
    (tmp_path / "secret.jpg").write_bytes(b"outside")
    return root


def pack(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("empty")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("val2014/a.jpg", "val2014/a.jpg"),
        ("./val2014//a.jpg", "val2014/a.jpg"),
        ("val2014\\a.jpg", "val2014/a.jpg"),
        ("/export/share/datasets/vision/visual-genome/image/1.jpg", "VG_100K/1.jpg"),
        ("image/2.jpg", "VG_100K_2/2.jpg"),
        ("2.jpg", "VG_100K_2/2.jpg"),
        ("/home/me/val2014/a.jpg", "val2014/a.jpg"),
        ("deep/er/flat.png", "flat.png"),
    ],
)
def test_names_are_resolved(folder: Path, name: str, found: str) -> None:
    store = ImageStore(folder, layouts=["VG_100K", "VG_100K_2"])
    assert store.read(name) == found.encode()
    assert store.exists(name)
    assert store.where(name) == str(folder / found)


@pytest.mark.parametrize("name", ["../secret.jpg", "val2014/../../secret.jpg", "/../secret.jpg", "..\\secret.jpg"])
def test_names_do_not_leave_the_root(folder: Path, name: str) -> None:
    with pytest.raises(SampleError, match="out of its folder"):
        ImageStore(folder).read(name)


def test_an_absolute_name_outside_is_not_opened(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="image is missing"):
        ImageStore(folder).read(str(tmp_path / "secret.jpg"))


@pytest.mark.parametrize("name", ["", "/", "a\0b.jpg", None, 5])
def test_what_is_no_name(folder: Path, name: str) -> None:
    assert not ImageStore(folder).exists(name)
    with pytest.raises(SampleError, match="not a name"):
        ImageStore(folder).read(name)


def test_a_missing_picture_names_the_path(folder: Path) -> None:
    with pytest.raises(SampleError) as error:
        ImageStore(folder).read("val2014/b.jpg")
    assert error.value.path == f"{folder}/val2014/b.jpg"
    assert error.value.why == "image is missing"
    assert ImageStore(folder).where("val2014/b.jpg") == f"{folder}/val2014/b.jpg"


def test_layouts_can_be_declared(folder: Path) -> None:
    store = ImageStore(folder, layouts=["VG_100K"])
    assert store.exists("image/1.jpg")
    assert not store.exists("image/2.jpg")


@pytest.mark.parametrize("name", ["VG/1.jpg", "/elsewhere/dog/1.jpg", "dog/deep/1.jpg"])
def test_no_picture_of_another_folder_stands_for_a_missing_one(folder: Path, name: str) -> None:
    with pytest.raises(SampleError, match="image is missing"):
        ImageStore(folder).read(name)


def test_a_name_that_stands_in_two_folders_is_a_fault(folder: Path) -> None:
    (folder / "VG_100K_2" / "1.jpg").write_bytes(b"another")
    with pytest.raises(SampleError, match="several files"):
        ImageStore(folder).read("1.jpg")
    assert ImageStore(folder, layouts=["VG_100K_2"]).read("1.jpg") == b"another"
    assert ImageStore(folder).read(f"{folder}/VG_100K/1.jpg") == b"VG_100K/1.jpg"


def test_names_lists_pictures_once(folder: Path) -> None:
    pack(folder / "more.zip", {"val2014/a.jpg": b"x", "val2014/z.JPG": b"z", "readme.txt": b"t"})
    assert list(ImageStore(folder).names()) == [
        "flat.png",
        "VG_100K/1.jpg",
        "VG_100K_2/2.jpg",
        "val2014/a.jpg",
        "val2014/z.JPG",
    ]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_are_read_in_place(tmp_path: Path, method: int) -> None:
    files = {f"train2014/{i}.jpg": bytes([i]) * 5000 for i in range(8)}
    pack(tmp_path / "coco" / "images" / "train2014.zip", files, method)
    store = pickle.loads(pickle.dumps(ImageStore(tmp_path / "coco" / "images")))
    assert store.ready
    assert store.read("7.jpg") == files["train2014/7.jpg"]
    assert store.read("/elsewhere/train2014/7.jpg") == files["train2014/7.jpg"]
    wrong: list[str] = []

    def read_all() -> None:
        wrong.extend(name for name in files if store.read(name) != files[name])

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sorted(p.name for p in (tmp_path / "coco" / "images").iterdir()) == ["train2014.zip"]


def test_the_folder_comes_before_the_archive(folder: Path) -> None:
    pack(folder / "val2014.zip", {"val2014/a.jpg": b"packed", "val2014/b.jpg": b"only packed"})
    store = ImageStore(folder)
    assert store.read("val2014/a.jpg") == b"val2014/a.jpg"
    assert store.read("val2014/b.jpg") == b"only packed"
    assert store.where("val2014/b.jpg").endswith("val2014.zip!val2014/b.jpg")


def test_an_archive_beside_a_folder_that_is_not_there(tmp_path: Path) -> None:
    pack(tmp_path / "gqa" / "images.zip", {"images/n1.jpg": b"n1"})
    assert ImageStore(tmp_path / "gqa" / "images").read("n1.jpg") == b"n1"
    assert not ImageStore(tmp_path / "nothing" / "images").ready


def test_damaged_archives(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"1.jpg": b"A" * 400, "2.jpg": b"B" * 400}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    data[data.index(b"1.jpg") + 7] ^= 0xFF
    path.write_bytes(data)
    archive = ZipArchive(path)
    with pytest.raises(SampleError, match="damaged"):
        archive.read("1.jpg")
    assert archive.read("2.jpg") == b"B" * 400
    path.write_bytes(data[:100])
    with pytest.raises(IntegrityError, match="not a whole zip"):
        ZipArchive(path).has("1.jpg")
    secret = pack(tmp_path / "b.zip", {"1.jpg": b"x"}, zipfile.ZIP_LZMA)
    with pytest.raises(SampleError, match="method 14"):
        ZipArchive(secret).read("1.jpg")


def test_a_wrong_crc_is_seen(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"1.jpg": b"A" * 400})
    path.write_bytes(path.read_bytes().replace(b"A" * 400, b"A" * 399 + b"B"))
    with pytest.raises(SampleError, match="CRC"):
        ZipArchive(path).read("1.jpg")


def test_a_folder_in_the_place_of_a_picture(folder: Path) -> None:
    (folder / "val2014" / "c.jpg").mkdir()
    assert not ImageStore(folder).exists("val2014/c.jpg")


def test_a_picture_that_a_packed_file_does_not_have_is_a_fault_of_its_sample(tmp_path: Path) -> None:
    jpeg = b"\xff\xd8\xff\xe0" + bytes(20)
    pictures = {"image": [jpeg, None], "several": [[jpeg], []]}
    parquet.write_table(pa.table(pictures), tmp_path / "a.parquet")
    assert packed_rows(tmp_path / "a.parquet")[0] == {
        "image": "a.parquet!image/0",
        "several": ["a.parquet!several/0/0"],
    }
    packed = PackedImages(tmp_path / "a.parquet")
    assert packed.read("image/0") == packed.read("several/0/0") == jpeg
    for name in ("image/1", "image/2", "nowhere/0", "several/0/1"):
        with pytest.raises(SampleError) as caught:
            packed.read(name)
        assert caught.value.path.endswith(f"a.parquet!{name}")


def test_bytes_that_are_no_pictures_are_no_column_of_them(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": [None, b"plain text"]}), tmp_path / "a.parquet")
    with pytest.raises(IntegrityError):
        packed_rows(tmp_path / "a.parquet")
