"""The plan: right figures before a byte moves, against the disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.errors import DiskError, UsageError
from lavis_ext.fetch import Source, Transfer
from lavis_ext.prepare import plan
from lavis_ext.prepare.plan import GIB, Plan, PlanItem, prefer_ranges
from tests.support.server import Fault, Server
from tests.support.toyfamily import Family, pictures


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Family:
    """A family that declares what it unpacks to."""
    return Family(server, tmp_path / "root")


def planned(toy: Family, **more: object) -> Plan:
    cards = toy.cards(unpacked_bytes=100_000, unpacked_files=12)
    return plan(["toy"], toy.options(**more), cards)


def actions(made: Plan) -> dict[str, tuple[str, str]]:
    return {item.title: (item.state, item.action) for item in made.items}


def of(free: int = 10**15, keep: bool = False, reserve: int | None = None, **item: object) -> Plan:
    shown = {"title": "a", "file": "a", "action": "fetch", "state": "missing", **item}
    return Plan(
        root="/x", items=(PlanItem(**shown),), free=free, free_files=None, keep_archives=keep, reserve_option=reserve
    )  # type: ignore[arg-type]


def test_predicted_bytes_are_the_bytes_that_move(toy: Family) -> None:
    made = planned(toy)
    assert made.download == sum(map(len, toy.blobs.values())) == toy.prepare().bytes_moved
    assert made.unpacked == 200_000 and actions(made)["toy/train"] == ("missing", "fetch")
    assert set(actions(planned(toy)).values()) == {("verified", "keep")}
    assert planned(toy).need == 0


def test_need_is_the_sum_and_a_reserve_of_at_most_a_gibibyte() -> None:
    small = of(download=1000, unpacked=1000)
    assert (small.bare, small.reserve, small.need) == (2040, 204, 2244)
    large = of(download=100 * GIB, unpacked=100 * GIB)
    assert large.reserve == GIB and large.need == int(200 * GIB * 1.02) + GIB
    assert of(download=1000, archive=1000, keep=True).bare == 2040
    assert of(download=1000, reserve=77).need == 1020 + 77


@pytest.mark.fault("F01")
def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(DiskError, match=r"2,244 bytes .* needed, 2,243 .*free"):
        of(free=2243, download=1000, unpacked=1000).check_disk()
    of(free=2244, download=1000, unpacked=1000).check_disk()
    with pytest.raises(DiskError, match="inodes"):
        replace(of(files=100), free_files=99).check_disk()


@pytest.mark.fault("F02")
def test_f02_a_half_download_counts_for_what_is_left(toy: Family) -> None:
    toy.server.script(toy.path("train.zip"), Fault(cut_at=20_000))
    policy = replace(toy.policy, retries=0, checkpoint_bytes=1000)
    toy.prepare(policy=policy, splits=["train"])
    item = next(item for item in planned(toy).items if item.title == "toy/train")
    assert item.state == "partial" and item.download == len(toy.blobs["train.zip"]) - 20_000


def test_an_archive_that_is_there_is_only_unpacked(toy: Family) -> None:
    toy.images.mkdir(parents=True)
    (toy.images / "train.zip").write_bytes(toy.blobs["train.zip"])
    item = next(item for item in planned(toy).items if item.title == "toy/train")
    assert (item.state, item.action, item.download, item.unpacked) == ("archive", "unpack", 0, 100_000)
    assert not item.estimated
    some = next(item for item in planned(toy, max_samples=2).items if item.title == "toy/train")
    assert (some.action, some.download, some.estimated) == ("unpack", 0, True), "a part of it is unpacked"


def test_a_lost_file_costs_itself(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", train=pictures("train", 40, 5000))
    toy.prepare(toy.cards())
    (toy.images / "train/000001.jpg").unlink()
    item = next(item for item in plan(["toy"], toy.options(), toy.cards()).items if item.title == "toy/train")
    assert (item.state, item.action, item.download, item.files) == ("partial", "ranges", 5001, 1)


def test_samples_are_estimated_and_marked(toy: Family) -> None:
    made = planned(toy, max_samples=2)
    images = [item for item in made.items if item.action == "ranges"]
    assert len(images) == 2 and all(item.estimated for item in images)
    assert made.download < planned(toy).download and "~" in made.table()
    toy.prepare(toy.cards(unpacked_bytes=100_000, unpacked_files=12), max_samples=2)
    assert planned(toy, max_samples=2).download == 0
    assert actions(planned(toy, max_samples=9))["toy/train"] == ("partial", "ranges")


def test_undeclared_sizes_are_reported(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    made = plan(["toy"], toy.options(), toy.cards())
    assert made.unknown == 4 and "4 of undeclared size" in made.table()


def test_the_plan_is_json_and_a_table(toy: Family) -> None:
    made = planned(toy, splits=["val"])
    shown = json.loads(json.dumps(made.as_dict()))
    assert shown["download"] == made.download and len(shown["items"]) == 2 and shown["items"][0]["source"]
    lines = made.table().splitlines()
    assert lines[0].split() == ["artifact", "have", "do", "download", "unpacked", "from"]
    assert "free" in lines[-1]


def test_a_dry_run_that_does_not_fit_says_so(toy: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(toy.root.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10))
    report = toy.prepare(dry_run=True)
    assert report.exit_code == 6 and "does not fit" in report.line()


def test_when_single_files_are_worth_it() -> None:
    assert prefer_ranges(49, 100, 0) and not prefer_ranges(51, 100, 0)
    assert not prefer_ranges(30, 100, 60)
    assert prefer_ranges(10**9, None, 0)


def test_refused_items_do_not_hide_the_rest(toy: Family) -> None:
    cards = toy.cards()
    toy.offer_manifest(["train.json", "val.json", "train.zip"])
    made = plan(["toy"], toy.options(), cards)
    assert actions(made)["toy/val"][1] == "refuse" and "lacks" in made.table()


@pytest.mark.parametrize("jobs", [0, -3])
def test_jobs_below_one_are_a_usage_error(toy: Family, jobs: int) -> None:
    with pytest.raises(UsageError):
        planned(toy, jobs=jobs)
    with pytest.raises(UsageError):
        planned(toy, no_unpack=True, max_samples=3)


@pytest.mark.parametrize(("files", "times"), [(3, 8.0), (40_504, 1.05)])
def test_an_archive_named_for_itself_is_estimated_by_its_files(toy: Family, files: int, times: float) -> None:
    """A million captions unpack to many times their size, pictures to hardly more: `prepare coco/val2014` knows."""
    made = plan(["toy/val"], toy.options(), toy.cards(unpacked_files=files, family="toy"))
    assert [item.unpacked for item in made.items] == [int(made.items[0].archive * times)]


def test_a_packed_archive_that_is_to_be_unpacked_is_called_verified(toy: Family) -> None:
    toy.prepare(toy.cards(unpacked_bytes=100_000, unpacked_files=12), no_unpack=True)
    assert actions(planned(toy))["toy/train"] == ("verified", "unpack")


@pytest.mark.parametrize(
    ("action", "urls", "remote"),
    [
        ("fetch", ["https://x.org/a"], True),
        ("ranges", ["https://x.org/a"], True),
        ("fetch", ["file:///mirror/a"], False),
        ("unpack", ["https://x.org/a"], False),
    ],
)
def test_what_comes_from_another_machine(action: str, urls: list[str], remote: bool) -> None:
    transfer = Transfer(Path("a"), tuple(Source(url) for url in urls))
    assert PlanItem(title="a", file="a", action=action, state="missing", transfer=transfer).remote is remote  # type: ignore[arg-type]


def test_first_samples_cost_the_directory_of_the_archive_too(server: Server, tmp_path: Path) -> None:
    """About 120 bytes a member, until the table of members is here."""
    toy = Family(server, tmp_path / "root", train=pictures("train", 20, 3000))
    cards = toy.cards(unpacked_files=20)
    (item,) = (one for one in plan(["toy"], toy.options(max_samples=2), cards).items if one.title == "toy/train")
    assert item.action == "ranges" and item.download == item.unpacked + 20 * 120 and item.unpacked > 0
