"""The store: what goes in comes out, by any id that fits, from any process, after any kill, and damage is named."""

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import IntegrityError, OwnedError, UsageError
from lavis_ext.features import NO_BOXES, FeatureRow, FeatureStore, UnknownImage, create_store, open_store, tools
from lavis_ext.features.layout import ALIGN, INDEX, ROWS, hash_of, key_of
from lavis_ext.features.store import BadRow
from tests.support.features import Image, make_image, make_images, same


def fill(path: Path, images: list[Image], dtype: str = "float32") -> FeatureStore:
    with create_store(path, dtype) as writer:
        for line, image in enumerate(images, 1):
            writer.append(image.row(line))
    return open_store(path)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    images = make_images(12)
    store = fill(tmp_path / "s", images)
    assert list(store) == [image.image_id for image in images]
    for image in images:
        record = store[image.image_id]
        assert same(record, image)
        assert np.array_equal(record.boxes, image.boxes)
        assert (record.height, record.width, record.box_unit) == (480, 640, "pixel")
        assert all(np.array_equal(record.arrays[name], value) for name, value in image.more.items())
    assert tools.verify(store) == []


def test_half_precision_is_the_nearest_half(tmp_path: Path) -> None:
    images = make_images(5)
    store = fill(tmp_path / "s", images, "float16")
    assert store.dtype == np.float16
    assert all(same(store[image.image_id], image, half=True) for image in images)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_read_into_a_batch_pads_and_cuts(tmp_path: Path, dtype: str) -> None:
    images = [make_image("a", 5), make_image("b", 0), make_image("c", 1)]
    store = fill(tmp_path / "s", images, dtype)
    out = np.full((3, 3, 2048), 9, np.float32)
    assert [store.read_into(i.image_id, out[k]) for k, i in enumerate(images)] == [3, 0, 1]
    assert np.array_equal(out[0], images[0].features[:3].astype(dtype).astype(np.float32))
    assert not out[1].any() and not out[2, 1:].any()


def test_a_record_that_says_more_than_it_holds_is_damage(tmp_path: Path) -> None:
    images = make_images(3)
    fill(tmp_path / "s", images)
    rows = tmp_path / "s" / ROWS
    data = bytearray(rows.read_bytes())
    data[16:20] = (1 << 20).to_bytes(4, "little")  # the count in the first header, behind magic, CRC and length
    rows.write_bytes(data)
    store = open_store(tmp_path / "s")
    with pytest.raises(IntegrityError):
        store.at(0)
    assert store.at(1).image_id == images[1].image_id


def test_records_are_views_that_cannot_be_written(tmp_path: Path) -> None:
    record = fill(tmp_path / "s", make_images(2))["COCO_val2014_000000000001"]
    assert not record.features.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        record.features[0, 0] = 1


@pytest.mark.parametrize("asked", ["8", 8, "000000000008", "COCO_val2014_000000000008.jpg", "val2014/000000000008.jpg"])
def test_numeric_ids_are_found_by_their_number(tmp_path: Path, asked: str | int) -> None:
    store = fill(tmp_path / "s", make_images(3))
    assert store[asked].image_id == "COCO_val2014_000000000008"
    assert asked in store


def test_an_id_that_is_there_wins_over_its_number(tmp_path: Path) -> None:
    store = fill(tmp_path / "s", [make_image("COCO_train2014_000000000009", 1), make_image("9", 2)])
    assert len(store["9"]) == 2
    assert len(store["COCO_train2014_000000000009"]) == 1


def test_a_number_that_fits_two_images_is_refused(tmp_path: Path) -> None:
    store = fill(tmp_path / "s", [make_image("COCO_train2014_000000000009", 1), make_image("val2017/9.jpg", 2)])
    with pytest.raises(UsageError, match=r"'COCO_train2014_000000000009', 'val2017/9.jpg'"):
        store["9"]


def test_a_number_is_no_name_but_coco_s(tmp_path: Path) -> None:
    """`cam2_42` is not `cam1_42`, and 42 is neither: features of another picture are worse than none."""
    store = fill(tmp_path / "s", [make_image("cam1_42", 1), make_image("train/7.jpg", 2)])
    for asked in ("cam2_42", "42", 42, "7", "val/7.jpg"):
        assert asked not in store
    assert len(store["cam1_42"]) == 1


def test_an_unknown_image_is_a_key_error_with_a_name(tmp_path: Path) -> None:
    store = fill(tmp_path / "s", make_images(2))
    with pytest.raises(UnknownImage, match="no image 'x' among 2"):
        store["x"]
    with pytest.raises(KeyError):
        store[12345]
    assert "x" not in store


@pytest.mark.parametrize(
    ("image_id", "key"),
    [
        ("nlvr2_train-10171-0-img0", "nlvr2_train-10171-0-img0"),
        ("n123456", "n123456"),
        ("COCO_val2014_000000000042", "42"),
        ("0", "0"),
        ("000", "0"),
        ("a_12.png", "a_12.png"),
        ("cam2_42", "cam2_42"),
        ("train/42.jpg", "train/42.jpg"),
        ("VG_100K/42.jpg", "VG_100K/42.jpg"),
        ("12.png", "12"),
        ("coco/images/val2017/000000000139.jpg", "139"),
        ("COCO_test-dev2015_000000000016", "16"),
        ("12a", "12a"),
        ("", ""),
    ],
)
def test_the_rule_of_keys(image_id: str, key: str) -> None:
    assert key_of(image_id) == key


def test_hashes_do_not_change() -> None:
    assert hash_of("9") == int.from_bytes(__import__("hashlib").blake2b(b"9", digest_size=8).digest(), "little")


def read_features(store: FeatureStore, image_id: str) -> float:
    return float(store[image_id].features.sum())


def test_a_store_is_pickled_by_its_path(tmp_path: Path) -> None:
    images = make_images(8)
    store = fill(tmp_path / "s", images)
    assert len(pickle.dumps(store)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.starmap(read_features, [(store, image.image_id) for image in images[:2]])
    assert found == [float(image.features.sum()) for image in images[:2]]


def test_threads_share_a_store(tmp_path: Path) -> None:
    images = make_images(16)
    store = fill(tmp_path / "s", images, "float16")

    def good(image: Image) -> bool:
        out = np.empty((9, 2048), np.float32)
        return store.read_into(image.image_id, out) == len(image.features) and same(store[image.image_id], image, True)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(good, images * 4))


def test_appending_is_seen_by_who_opens_afterwards(tmp_path: Path) -> None:
    images = make_images(6)
    before = fill(tmp_path / "s", images[:3])
    with create_store(tmp_path / "s") as writer:
        for image in images[3:]:
            writer.append(image.row())
    after = open_store(tmp_path / "s")
    assert (len(before), len(after)) == (3, 6)
    assert same(before[images[0].image_id], images[0]) and same(after[images[5].image_id], images[5])


def test_an_import_that_failed_is_no_store_yet_and_goes_on(tmp_path: Path) -> None:
    images = make_images(4)
    with pytest.raises(RuntimeError), create_store(tmp_path / "s") as writer:
        writer.append(images[0].row())
        raise RuntimeError
    with pytest.raises(IntegrityError, match="not finished"):
        open_store(tmp_path / "s")
    with create_store(tmp_path / "s") as writer:
        assert images[0].image_id in writer
        writer.append(images[1].row())
    assert len(open_store(tmp_path / "s")) == 2


@pytest.mark.parametrize("cut", [1, ALIGN - 1, ALIGN, ALIGN + 1, 5000])
def test_a_torn_record_is_dropped_and_those_before_it_are_kept(tmp_path: Path, cut: int) -> None:
    images = make_images(4)
    fill(tmp_path / "s", images)
    (tmp_path / "s" / INDEX).unlink()
    rows = tmp_path / "s" / ROWS
    rows.write_bytes(rows.read_bytes()[:-cut])
    with create_store(tmp_path / "s") as writer:
        assert len(writer.entries) == 3
        writer.append(images[3].row())
    store = open_store(tmp_path / "s")
    assert all(same(store[image.image_id], image) for image in images)


def test_damage_is_named_by_image(tmp_path: Path) -> None:
    images = make_images(6)
    store = fill(tmp_path / "s", images)
    rows = tmp_path / "s" / ROWS
    data = bytearray(rows.read_bytes())
    data[int(store.index.offset[4]) + ALIGN + 17] ^= 1
    rows.write_bytes(data)
    damaged = open_store(tmp_path / "s")
    assert [fault.image_id for fault in tools.verify(damaged)] == [images[4].image_id]
    with pytest.raises(IntegrityError, match=images[4].image_id):
        tools.raise_damaged(tools.verify(damaged), damaged)


def test_a_data_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "s", make_images(3))
    rows = tmp_path / "s" / ROWS
    rows.write_bytes(rows.read_bytes()[:-64])
    with pytest.raises(IntegrityError, match="truncated"):
        open_store(tmp_path / "s")
    with pytest.raises(IntegrityError, match="no whole record"), create_store(tmp_path / "s"):
        pass


def test_a_lost_index_is_written_again(tmp_path: Path) -> None:
    images = make_images(5)
    fill(tmp_path / "s", images)
    before = (tmp_path / "s" / INDEX).read_bytes()
    (tmp_path / "s" / INDEX).write_bytes(b"no arrow")
    with pytest.raises(IntegrityError, match="features index"):
        open_store(tmp_path / "s")
    (tmp_path / "s" / INDEX).unlink()
    assert tools.rebuild_index(tmp_path / "s") == 5
    assert (tmp_path / "s" / INDEX).read_bytes() == before


def test_an_empty_store_opens(tmp_path: Path) -> None:
    with create_store(tmp_path / "s"):
        pass
    store = open_store(tmp_path / "s")
    assert (len(store), list(store), "9" in store) == (0, [], False)
    assert tools.info(store)["images"] == 0


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (FeatureRow("a", np.zeros((2, 10), np.float32)), "expected 2048 columns"),
        (FeatureRow("a", np.zeros(2048, np.float32)), "expected features"),
        (FeatureRow("a", np.zeros((2, 2048), np.float32), np.zeros((3, 4), np.float32), 1), "expected features"),
        (FeatureRow("a", np.zeros((2, 2048), np.float32), np.zeros((2, 4), np.float32), NO_BOXES), "boxes need a unit"),
        (FeatureRow("", np.zeros((2, 2048), np.float32)), "needs an id"),
        (FeatureRow("COCO_val2014_000000000001", np.zeros((2, 2048), np.float32)), "in the store already"),
        (FeatureRow("a", np.full((1, 2048), 70000, np.float32)), "does not fit float16"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, row: FeatureRow, what: str) -> None:
    with create_store(tmp_path / "s", "float16") as writer:
        writer.append(make_images(1)[0].row())
        with pytest.raises(BadRow, match=what):
            writer.append(row)
    assert len(open_store(tmp_path / "s")) == 1


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with create_store(tmp_path / "s"), pytest.raises(OwnedError), create_store(tmp_path / "s"):
        pass
    assert not (tmp_path / "s" / ".owner").exists()


def test_precisions_are_not_mixed_and_other_folders_not_touched(tmp_path: Path) -> None:
    fill(tmp_path / "s", make_images(1), "float16")
    with pytest.raises(UsageError, match="holds float16"), create_store(tmp_path / "s", "float32"):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="not a feature store"), create_store(tmp_path / "mine"):
        pass
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="precision"), create_store(tmp_path / "t", "int8"):
        pass


def test_stores_are_merged_and_disagreements_named(tmp_path: Path) -> None:
    images = make_images(6)
    fill(tmp_path / "a", images[:4])
    fill(tmp_path / "b", [*images[3:], make_image(images[0].image_id, 4, seed=99)])
    added, faults = tools.merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    store = open_store(tmp_path / "c")
    assert (added, len(store), [f.image_id for f in faults]) == (6, 6, [images[0].image_id])
    assert all(same(store[image.image_id], image) for image in images)
    again, _ = tools.merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert len(open_store(tmp_path / "c")) == 6 and again == 0


IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(IDS, st.sampled_from([0, 1, 2, 100]), max_size=6), st.sampled_from(["float16", "float32"]))
def test_any_ids_and_counts(tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int], dtype: str) -> None:
    images = [make_image(image_id, n, 12, seed=k) for k, (image_id, n) in enumerate(counts.items())]
    store = fill(tmp_path_factory.mktemp("any") / "s", images, dtype)
    assert list(store) == list(counts)
    assert all(same(store[image.image_id], image, dtype == "float16") for image in images)
    assert tools.verify(store) == []
