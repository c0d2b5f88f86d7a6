"""`--max-samples N`: the pictures of the first N samples of each split, by ranges out of the archive where it lies."""

from __future__ import annotations

import io
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.config.cards import Mirror
from lavis_ext.common.errors import UsageError
from lavis_ext.fetch import Source, Transfer
from lavis_ext.prepare.archive_formats import list_zip
from lavis_ext.prepare.extract import GAP, make_runs, range_sources
from lavis_ext.prepare.plan import covers
from lavis_ext.prepare.records import Member, read_record
from lavis_ext.prepare.samples import ImageNames
from lavis_ext.prepare.selection import select
from tests.support.server import Fault, Server
from tests.support.toyfamily import Family, pictures, rows_of, tree, zip_bytes

DIRECTORY = 60 * (46 + 2 * 17) + 200
"""Bytes of the directory of 60 members, and what finding it takes."""


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Family:
    """60 pictures to train on, of 30 kB each."""
    return Family(server, tmp_path / "root", train=pictures("train", 60, 30_000))


def names(count: int, folder: str = "train") -> list[str]:
    return [f"{folder}/{n:06d}.jpg" for n in range(count)]


def test_u06_exactly_the_pictures_of_the_first_samples(toy: Family) -> None:
    report = toy.prepare(max_samples=5)
    assert report.exit_code == 0
    assert tree(toy.images) == {n: d for n, d in {**toy.train, **toy.val}.items() if n in names(5) + names(3, "val")}
    assert [(s.samples, s.expected, s.present) for s in report.splits] == [(5, 5, 5), (5, 3, 3)]
    sent = toy.server.sent(toy.path("train.zip"))
    assert sent <= 1.1 * sum(len(toy.train[n]) for n in names(5)) + DIRECTORY
    assert toy.prepare(max_samples=5).bytes_moved == 0
    assert toy.prepare(max_samples=3).bytes_moved == 0


def test_a_larger_number_fetches_the_difference_and_everything_completes(toy: Family) -> None:
    toy.prepare(max_samples=5, splits=["train"])
    before, kept = toy.server.sent(), {p: p.stat().st_ino for p in toy.images.rglob("*.jpg")}
    toy.prepare(max_samples=20, splits=["train"])
    assert sorted(tree(toy.images)) == names(20)
    assert toy.server.sent() - before <= 1.1 * 15 * 30_060
    toy.prepare(max_samples=50, splits=["train"])
    before = toy.server.sent(toy.path("train.zip"))
    report = toy.prepare(splits=["train"])
    assert report.exit_code == 0 and tree(toy.images) == toy.train
    assert toy.server.sent(toy.path("train.zip")) - before < len(toy.blobs["train.zip"]) / 3
    assert {p: p.stat().st_ino for p in kept} == kept
    assert toy.prepare(splits=["train"]).bytes_moved == 0
    assert toy.prepare(splits=["train"], max_samples=7).bytes_moved == 0


def test_when_most_is_missing_the_whole_archive_comes(toy: Family) -> None:
    toy.prepare(max_samples=5, splits=["train"])
    before = toy.server.sent(toy.path("train.zip"))
    assert toy.prepare(splits=["train"]).exit_code == 0
    assert toy.server.sent(toy.path("train.zip")) - before == len(toy.blobs["train.zip"])
    assert tree(toy.images) == toy.train


def test_an_interrupted_choice_is_continued(toy: Family) -> None:
    toy.server.script(toy.path("train.zip"), Fault(times=4), Fault(status=404))
    policy = replace(toy.policy, jobs=1)
    first = toy.prepare(max_samples=30, splits=["train"], policy=policy)
    toy.server.script(toy.path("train.zip"))
    have = len(tree(toy.images)) if toy.images.exists() else 0
    before = toy.server.sent(toy.path("train.zip"))
    assert first.exit_code == 4
    assert toy.prepare(max_samples=30, splits=["train"]).exit_code == 0
    assert sorted(tree(toy.images)) == names(30)
    assert toy.server.sent(toy.path("train.zip")) - before <= (30 - have) * 31_000 + DIRECTORY


def test_r02_a_bit_flipped_on_the_way_is_fetched_again(toy: Family) -> None:
    position = 30_000 * 2
    toy.server.script(toy.path("train.zip"), Fault(times=2), Fault(times=6, flip_at=position, only_range=True))
    report = toy.prepare(max_samples=6, splits=["train"])
    if report.exit_code:
        assert report.exit_code == 5
        toy.server.script(toy.path("train.zip"))
        assert toy.prepare(max_samples=6, splits=["train"]).exit_code == 0
    assert tree(toy.images) == {n: toy.train[n] for n in names(6)}


def test_a_server_without_ranges_gives_the_whole_archive(toy: Family) -> None:
    toy.server.script(toy.path("train.zip"), Fault(ignore_range=True))
    lines: list[str] = []
    from lavis_ext.prepare import prepare

    report = prepare(["toy"], toy.options(max_samples=5, splits=["train"]), notice=lines.append, cards=toy.cards())
    assert report.exit_code == 0 and set(names(5)) <= set(tree(toy.images))
    assert any("whole archive" in line for line in lines)


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_is_fetched_whole_and_the_plan_says_so(server: Server, tmp_path: Path, kind: str) -> None:
    toy = Family(server, tmp_path / "root", kind=kind)
    planned = toy.prepare(max_samples=2, dry_run=True).plan
    assert any("whole archive" in item.note for item in planned.items)
    report = toy.prepare(max_samples=2)
    assert report.exit_code == 0 and len(tree(toy.images)) == 20


def test_an_archive_that_is_there_is_read_instead_of_the_network(toy: Family) -> None:
    toy.images.mkdir(parents=True)
    (toy.images / "train.zip").write_bytes(toy.blobs["train.zip"])
    assert toy.prepare(max_samples=4, splits=["train"]).exit_code == 0
    assert toy.server.sent(toy.path("train.zip")) == 0
    assert sorted(tree(toy.images)) == ["train.zip", *names(4)] or set(names(4)) < set(tree(toy.images))


def test_names_with_foreign_prefixes_are_found_by_their_tails(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    toy.offer("train.json", rows_of([f"/export/share/{name}" for name in sorted(toy.train)]))
    report = toy.prepare(max_samples=3, splits=["train"])
    assert report.exit_code == 0 and sorted(tree(toy.images)) == names(3)


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_below_one_is_a_usage_error(toy: Family, count: int) -> None:
    with pytest.raises(UsageError):
        toy.prepare(max_samples=count)
    assert toy.server.log == []


def test_new_annotations_are_looked_at_again(toy: Family) -> None:
    toy.prepare(max_samples=2, splits=["train"])
    toy.offer("train.json", rows_of(sorted(toy.train, reverse=True)))
    assert toy.prepare(max_samples=2, splits=["train"]).exit_code == 0
    assert {"train/000059.jpg", "train/000058.jpg"} <= set(tree(toy.images))


def test_samples_are_chosen_again_where_annotations_were_wrong(toy: Family) -> None:
    toy.prepare(max_samples=2, splits=["train"])
    path = toy.root / "toy/annotations/train.json"
    right = path.read_bytes()
    toy.offer("train.json", rows_of(sorted(toy.train, reverse=True)))
    path.write_bytes(right)  # as large as the new one, and not it
    assert len(right) == len(toy.blobs["train.json"])
    planned = toy.prepare(max_samples=2, splits=["train"], dry_run=True).plan
    assert [item.action for item in planned.items] == ["check", "keep"]
    assert toy.prepare(max_samples=2, splits=["train"]).exit_code == 0
    assert {"train/000059.jpg", "train/000058.jpg"} <= set(tree(toy.images))


def test_samples_of_a_copy_are_kept_offline(toy: Family, tmp_path: Path) -> None:
    toy.prepare(max_samples=3)
    shutil.copytree(toy.root, tmp_path / "copy", copy_function=shutil.copyfile)
    moved = replace(toy, root=tmp_path / "copy")
    assert moved.prepare(max_samples=3, offline=True).exit_code == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4000), min_size=1, max_size=40), st.data())
def test_runs_hold_what_is_wanted_and_little_else(sizes: list[int], data: st.DataObject) -> None:
    blob = zip_bytes({f"{n}.jpg": bytes(size) for n, size in enumerate(sizes)})
    members = list_zip(io.BytesIO(blob), "zip")
    wanted = data.draw(st.lists(st.integers(0, len(members) - 1), unique=True))
    seen: list[int] = []
    for start, stop, numbers in make_runs(members, wanted, len(blob), zipped=True):
        assert 0 <= start < stop <= len(blob)
        useful = 0
        for number in numbers:
            member = members[number]
            assert start <= member.offset and member.offset + 30 + len(member.name) + member.packed <= stop
            useful += 30 + len(member.name) + member.packed
        assert stop - start <= (1 + GAP) * useful + 4096
        seen += numbers
    assert sorted(seen) == sorted(wanted)


def test_members_come_only_from_sources_that_can_be_trusted() -> None:
    http, https = Source("http://images.example.org/a.zip"), Source("https://s3.example.org/a.zip")
    other = Source("https://x.example.org/b.zip", equivalence="reencoded")
    assert range_sources(Transfer(Path("a"), (http, other, https))) == [https]
    assert range_sources(Transfer(Path("a"), (http,))) == []
    mine = replace(http, trusted=True)
    assert range_sources(Transfer(Path("a"), (mine, https))) == [https, mine]


def test_from_the_sources_of_the_card_the_second_mirror_takes_over(toy: Family) -> None:
    cards = toy.cards()
    card = cards.families["toy"]
    artifacts = {
        name: replace(a, url=toy.server.url("/gone/" + a.url.rpartition("/")[2]), mirrors=[
            Mirror(url=toy.server.url(toy.path(a.url.rpartition("/")[2])), equivalence="byte_exact")
        ])
        for name, a in card.artifacts.items()
    }  # fmt: skip
    cards = replace(cards, families={"toy": replace(card, artifacts=artifacts)})
    report = toy.prepare(cards, mirror="", max_samples=3)
    assert report.exit_code == 0, report.lines()
    assert len(tree(toy.images)) == 5


@pytest.mark.slow
def test_a_hundred_samples_of_a_large_archive_move_a_hundred_pictures(server: Server, tmp_path: Path) -> None:
    """500 MB in a folder mirror, most of it holes: bytes are counted by the report."""
    toy = Family(server, tmp_path / "root")
    folder = tmp_path / "mirror/data.example.org"
    folder.mkdir(parents=True)
    size, count = 100_000, 5000
    data = bytes(size)
    with zipfile.ZipFile(folder / "train.zip", "w", allowZip64=True) as archive:
        for n in range(count):
            archive.writestr(f"train/{n:06d}.jpg", data)
    # every 50th picture: nothing lies beside another
    (folder / "train.json").write_bytes(rows_of([f"train/{n:06d}.jpg" for n in range(0, count, 50)]))
    cards = toy.cards(size=None, sha256=None)
    card = cards.families["toy"]
    rows = replace(card.artifacts["train_rows"], size=None, sha256=None)
    cards = replace(cards, families={"toy": replace(card, artifacts={**card.artifacts, "train_rows": rows})})
    report = toy.prepare(cards, mirror=str(tmp_path / "mirror"), splits=["train"], max_samples=100)
    assert report.exit_code == 0 and report.splits[0].present == 100
    directory = count * (46 + 2 * len("train/000000.jpg"))
    assert report.bytes_moved <= 1.1 * 100 * size + directory
    assert report.bytes_moved < (folder / "train.zip").stat().st_size / 40


MIB = 1 << 20


def packed(*places: tuple[int, int]) -> list[Member]:
    """Members of a tar at these offsets, of these sizes."""
    return [Member(f"{n}.jpg", size, 0, offset, size, 0) for n, (offset, size) in enumerate(places)]


@pytest.mark.parametrize(
    ("places", "runs"),
    [
        ([(512, 50), (567, 50)], [(512, 617, [0, 1])]),  # 5 bytes for 100
        ([(512, 50), (568, 50)], [(512, 562, [0]), (568, 618, [1])]),
        ([(0, 8 * MIB), (8 * MIB, 8 * MIB)], [(0, 16 * MIB, [0, 1])]),
        ([(0, 8 * MIB), (8 * MIB, 8 * MIB + 1)], [(0, 8 * MIB, [0]), (8 * MIB, 16 * MIB + 1, [1])]),
    ],
)
def test_neighbours_share_a_request_up_to_a_twentieth_and_16_mib(
    places: list[tuple[int, int]], runs: list[tuple[int, int, list[int]]]
) -> None:
    members = packed(*places)
    assert list(make_runs(members, range(len(members)), 64 * MIB, zipped=False)) == runs


def test_a_split_that_was_never_taken_is_not_covered_by_anothers_samples(toy: Family) -> None:
    toy.prepare(max_samples=1, splits=["train"])
    [request] = [one for one in select(toy.cards(), ["toy"], ["train"]).requests if one.images]
    record = read_record(toy.root, request.artifact)
    assert record is not None and covers(record, request, 1) and not covers(record, request, 2)
    assert not covers(replace(record, wanted={"other/train": 1}), request, 1)


def test_a_picture_in_a_packed_file_is_there_where_the_file_is() -> None:
    names = ImageNames({"data/train-0.parquet"})
    assert names.find("data/train-0.parquet!image/7") == "data/train-0.parquet!image/7"
    assert names.find("data/train-1.parquet!image/7") is None
