"""Shards give every whole sample once, in an order that can be resumed anywhere, and name all that is not whole."""

import io
import json
import logging
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import IntegrityError, PartialError, UnsafeError
from lavis_ext.datasets.readers import shard_index
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.shard_index import PICKLED, Shard, read_index
from lavis_ext.datasets.readers.shards import RawSample, ShardOrder, ShardReader
from tests.support.pictures import encoded, pixels
from tests.support.shards import cut, ends, sample, write_manifest, write_shard, write_tar

NEEDS = ("image", "json")


def names(reader: ShardReader, rank: int = 0, world: int = 1, pass_index: int = 0, start: int = 0) -> list[str]:
    return [i.name if isinstance(i, RawSample) else i.sample_id for i in reader.iterate(rank, world, pass_index, start)]


def faults(reader: ShardReader) -> list[str]:
    return [item.why for item in reader.iterate(0, 1) if isinstance(item, SampleError)]


def make(tmp_path: Path, *counts: int, **options: int) -> ShardReader:
    return ShardReader([write_shard(tmp_path, n, count) for n, count in enumerate(counts)], **options)


def test_samples_in_the_order_of_the_file(tmp_path: Path) -> None:
    reader = make(tmp_path, 3, 2, buffer=0)
    items = list(reader.iterate(0, 1))
    assert [item.name for item in items] == [
        f"0000{s}.tar!{s * 10000 + i:09d}" for s, n in ((0, 3), (1, 2)) for i in range(n)
    ]
    assert items[4].record() == {"caption": "picture 10001", "key": "000010001"}
    assert items[4].text() == "text of it"
    assert items[4].pixels().shape == (12, 16, 3) and not np.array_equal(items[4].pixels(), items[3].pixels())


def test_names_and_grouping_are_those_of_webdataset(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    from webdataset.tariterators import group_by_keys, tar_file_expander

    picture = encoded(pixels(0, 8, 8), "PNG")
    odd = [
        ("a/b.c/k1.png", picture),
        ("a/b.c/k1.json", b"{}"),
        ("./k3.JPG", picture),
        ("./k3.json", b"{}"),
    ]
    path = write_tar(tmp_path / "0.tar", odd)
    with path.open("rb") as stream:
        theirs = [s["__key__"] for s in group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))]
    assert [entry.key for entry in read_index(path, NEEDS).entries] == theirs


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    world=st.integers(1, 9),
    buffer=st.sampled_from([0, 1, 2, 7, 1000]),
    pass_index=st.integers(0, 3),
    data=st.data(),
)
@pytest.mark.fault("W12")
def test_order_parts_and_resumes_exactly(
    counts: list[int], world: int, buffer: int, pass_index: int, data: st.DataObject
) -> None:
    order = ShardOrder(tuple(counts), seed=3, buffer=buffer, shuffle_shards=buffer > 1)
    parts = [[p for window in order.windows(pass_index, rank, world) for p in window] for rank in range(world)]
    every = [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
    assert sorted(place for part in parts for place in part) == every
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    rank = data.draw(st.integers(0, world - 1))
    start = data.draw(st.integers(0, len(parts[rank])))
    assert [p for w in order.windows(pass_index, rank, world, start) for p in w] == parts[rank][start:]
    if buffer < 2:
        assert [place for part in parts for place in part] == every


def test_laps_differ_and_seeds_decide(tmp_path: Path) -> None:
    reader = make(tmp_path, 20, 20, 20, seed=5)
    first, second = names(reader), names(reader, pass_index=1)
    assert sorted(first) == sorted(second) and first != second and first != sorted(first)
    assert names(ShardReader(reader.paths, seed=5)) == first != names(ShardReader(reader.paths, seed=6))
    assert names(pickle.loads(pickle.dumps(reader)), pass_index=1) == second


def test_fewer_shards_than_ranks(tmp_path: Path) -> None:
    reader = make(tmp_path, 10)
    parts = [names(reader, rank, 4) for rank in range(4)]
    assert [len(part) for part in parts] == [2, 3, 2, 3] and len({n for part in parts for n in part}) == 10


def test_first_samples_only(tmp_path: Path) -> None:
    reader = make(tmp_path, 4, 4, 4, buffer=0, limit=6)
    assert len(reader) == 6 and names(reader) == names(ShardReader(reader.paths, buffer=0))[:6]


@pytest.mark.fault("D07")
@pytest.mark.parametrize("suffix", [*sorted(PICKLED), "json.PKL"])
def test_pickles_are_refused(suffix: str, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "harm",)

    path = write_tar(tmp_path / "00000.tar", [*sample(1), (f"000000001.{suffix}", pickle.dumps(Harm()))])
    with pytest.raises(UnsafeError, match=rf"00000\.tar: member '000000001\.{suffix}'") as caught:
        list(ShardReader([path]).iterate(0, 1))
    assert caught.value.exit_code == 10 and not (tmp_path / "harm").exists()


def test_other_members_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = [("000000001.npy", b"x"), ("000000001.cls", b"1"), ("README", b"x")]
    reader = ShardReader(
        [write_tar(tmp_path / "0.tar", [*sample(1), *more]), write_tar(tmp_path / "1.tar", [*sample(2), *more])]
    )
    assert len(names(reader)) == len(names(reader, pass_index=1)) == 2
    assert reader.unknown == {"npy": 2, "cls": 2, "": 2}
    assert len([r for r in caplog.records if "left out" in r.message]) == 1


def test_links_are_no_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        link = tarfile.TarInfo("000000001.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        told = tarfile.TarInfo("000000001.json")
        told.size = 2
        archive.addfile(told, io.BytesIO(b"{}"))
    assert faults(ShardReader([tmp_path / "0.tar"])) == ["sample has no image"]


def test_half_samples_are_counted_never_given(tmp_path: Path) -> None:
    members = [*sample(1), *sample(2, image=False), ("000000003.jpg", b"x"), ("000000004.txt", b"x"), *sample(5)]
    reader = ShardReader([write_tar(tmp_path / "0.tar", members)], buffer=0)
    given_, bad = [], []
    for item in reader.iterate(0, 1):
        (bad if isinstance(item, SampleError) else given_).append(item)
    assert [item.entry.key for item in given_] == ["000000001", "000000005"]
    assert [(e.sample_id, e.why) for e in bad] == [
        ("0.tar!000000002", "sample has no image"),
        ("0.tar!000000003", "sample has no json"),
        ("0.tar!000000004", "sample has no image and no json"),
    ]


def test_two_members_of_one_kind(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample(1), ("000000001.png", b"x")])
    assert faults(ShardReader([path])) == ["sample has two members of one kind: image"]


CUTS = {"mid-data": -700, "at a boundary": 0, "mid-header": 100, "end mark": None}


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("manifest", [True, False])
def test_cut_shard_is_told(where: str, manifest: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """tarfile and webdataset say nothing of three of these four."""
    path = write_shard(tmp_path, 0, 6, manifest)
    whole = write_shard(tmp_path, 1, 2, manifest)
    places = ends(path)
    shift = CUTS[where]
    cut(path, places[-1][2] if shift is None else places[8][2] + shift)  # the last of the third sample
    reader = ShardReader([path, whole], buffer=0)
    bad = faults(reader)
    lost = 0 if shift is None else 3
    if where == "mid-data":
        assert len(read_index(path, NEEDS).entries) == 3
    if manifest:
        assert len(reader) == 8 and bad == [bad[0]] * lost if lost else bad == []
        assert "its manifest says" in caplog.text
    else:
        assert len(bad) == 1 and bad[0].startswith("it is cut off")
    assert len(names(reader)) - len(bad) == 8 - lost


def test_cut_between_picture_and_json(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, 3, manifest=True)
    cut(path, next(end for name, _, end in ends(path) if name == "000000001.jpg"))
    reader = ShardReader([path], buffer=0)
    assert [why.partition(":")[0] for why in faults(reader)] == ["sample has no json", "shard lost samples"]


def test_no_tar_at_all(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, 2)
    (tmp_path / "00001.tar").write_bytes(b"<html>" * 1000)
    (tmp_path / "00002.tar").write_bytes(b"")
    reader = ShardReader(sorted(tmp_path.glob("*.tar")), buffer=0)
    assert [why.partition("(")[0] for why in faults(reader)] == ["it is cut off or no tar "] * 2
    assert len(reader) == 4


def test_damaged_header_in_the_middle(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, 4, manifest=True)
    begin = ends(path)[6][1]
    data = bytearray(path.read_bytes())
    data[begin : begin + 512] = b"\xff" * 512
    path.write_bytes(data)
    assert faults(ShardReader([path])) == ["shard lost samples: it has a damaged header"] * 2


def test_statistics_of_img2dataset_count_where_no_manifest_does(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 3, 4)
    path.with_name("00003_stats.json").write_text(json.dumps({"count": 9, "successes": 6}))
    assert Shard.open(path).promised == 6
    assert len(faults(ShardReader([path]))) == 2
    write_manifest(path, 4)
    assert faults(ShardReader([path])) == []
    path.with_suffix(".manifest.json").write_text("{")
    assert Shard.open(path).promised == 6


def test_more_samples_than_promised(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, 4)
    write_manifest(path, 3)
    with pytest.raises(IntegrityError, match="holds 4 samples, 3 were written"):
        list(ShardReader([path]).iterate(0, 1))


def test_half_samples_that_a_manifest_does_not_count(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample(1), *sample(2, image=False)])
    write_manifest(path, 1)
    reader = ShardReader([path])
    assert len(reader) == 1 and faults(reader) == []


def test_empty_shard_is_told_and_nothing_but_empty_ones_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = write_shard(tmp_path, 0, 0)
    assert len(ShardReader([empty, write_shard(tmp_path, 1, 2)])) == 2
    assert "00000.tar holds no samples" in caplog.text
    with pytest.raises(PartialError, match="not one sample in 1 shards"):
        len(ShardReader([empty]))


@pytest.mark.parametrize(
    ("body", "why"), [(b"{", "json is damaged"), (b"[]", "json is no object"), (b"\xff", "json is damaged")]
)
def test_damaged_json(body: bytes, why: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("1.jpg", b"x"), ("1.json", body), ("1.txt", b"\xff")])
    (item,) = ShardReader([path]).iterate(0, 1)
    assert isinstance(item, RawSample)
    with pytest.raises(SampleError, match=rf"sample 0\.tar!1: {why}"):
        item.record()
    with pytest.raises(SampleError, match="not an image"):
        item.pixels()
    with pytest.raises(SampleError, match="not UTF-8"):
        item.text()


def test_what_a_sample_does_not_have_is_empty(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("1.jpg", b"x"), ("1.json", b"{}")])
    [entry] = read_index(path, ("image", "json")).entries
    sample = RawSample(Shard.open(path), entry)
    assert (sample.read("image"), sample.read("txt"), sample.text()) == (b"x", b"", "")


def test_replaced_or_lost_shard_is_not_read_through_an_old_handle(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, 1)
    (old,) = ShardReader([path]).iterate(0, 1)
    assert isinstance(old, RawSample) and old.record()["key"] == "000000000"
    path.rename(tmp_path / "away.tar")
    write_tar(path, sample(7))
    (new,) = ShardReader([path]).iterate(0, 1)
    assert isinstance(new, RawSample) and new.record()["key"] == "000000007"
    path.unlink()
    gone = RawSample(Shard(path, 0), new.entry)
    with pytest.raises(SampleError, match="shard cannot be read: No such file"):
        gone.read("image")


def test_a_shard_that_was_read_to_be_counted_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    walk = shard_index.walk
    monkeypatch.setattr(shard_index, "walk", lambda path, *rest: read.append(path) or walk(path, *rest))
    reader = make(tmp_path, 3, 2)
    first = [names(reader), names(pickle.loads(pickle.dumps(reader)))]
    assert first[0] == first[1] and len(first[0]) == 5
    assert sorted(read) == sorted([*reader.paths] * 2), "once by each"
    assert names(reader) == first[0] and len(read) == 6, "a later pass reads it again"


def test_large_shards_are_indexed_without_their_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(3):
            for kind, size in (("jpg", 1 << 30), ("json", 2)):
                info = tarfile.TarInfo(f"{number}.{kind}")
                info.size = size
                archive.fileobj.write(info.tobuf())  # type: ignore[union-attr]
                archive.fileobj.seek(-(-size // 512) * 512, 1)  # type: ignore[union-attr]
                archive.offset = archive.fileobj.tell()  # type: ignore[union-attr]
    entries = read_index(path, NEEDS).entries
    assert len(entries) == 3 and entries[2].members["image"].offset > 2 << 30
    with pytest.raises(SampleError, match="image is too large"):
        RawSample(Shard.open(path), entries[0]).read("image")
