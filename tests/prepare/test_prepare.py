"""From a card to recorded files: what is asked for, what a mirror lacks, what pictures are missing, and subsets."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.config.schema import AnnotationConfig
from lavis_ext.common.errors import NetworkError
from lavis_ext.prepare import Report, plan
from tests.support.server import Fault, Server
from tests.support.toyfamily import HOST, Family, rows_of, tree

KINDS = ["zip", "tar", "tar.gz"]


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Family:
    """A family of two archives."""
    return Family(server, tmp_path / "root")


def codes(report: Report) -> list[int]:
    return [error.exit_code for error in report.failures]


def test_archives_go_unless_they_are_to_be_kept_or_were_there_before(toy: Family) -> None:
    (toy.images).mkdir(parents=True)
    (toy.images / "train.zip").write_bytes(toy.blobs["train.zip"])
    report = toy.prepare()
    assert (toy.images / "train.zip").is_file() and not (toy.images / "val.zip").exists()
    assert toy.server.sent(toy.path("train.zip")) == 0 and report.exit_code == 0
    assert any("stays" in line for line in report.lines())
    shutil.rmtree(toy.root)
    toy.prepare(keep_archives=True)
    assert (toy.images / "train.zip").is_file() and (toy.images / "val.zip").is_file()


def test_no_unpack_leaves_archives_and_still_counts_pictures(toy: Family) -> None:
    report = toy.prepare(no_unpack=True)
    assert sorted(tree(toy.images)) == ["train.zip", "val.zip"]
    assert [(s.expected, s.present) for s in report.splits] == [(12, 12), (8, 8)]
    assert toy.prepare(no_unpack=True).bytes_moved == 0
    sent = toy.server.sent()
    assert toy.prepare().exit_code == 0
    assert toy.server.sent() == sent and set(toy.train) <= set(tree(toy.images))


def test_split_val_fetches_only_what_val_needs(toy: Family) -> None:
    report = toy.prepare(splits=["val"])
    assert report.exit_code == 0 and tree(toy.images) == toy.val
    assert {s.path for s in toy.server.log} == {"/manifest.json", toy.path("val.zip"), toy.path("val.json")}
    toy.prepare()
    assert toy.complete() and toy.server.sent(toy.path("val.zip")) == len(toy.blobs["val.zip"])


def test_one_failure_does_not_stop_the_others_and_the_line_is_true(toy: Family) -> None:
    toy.server.script(toy.path("train.zip"), Fault(status=403))
    report = toy.prepare()
    assert report.exit_code == 7 and tree(toy.images) == toy.val
    assert "downloaded 3 · reused 0 · failed 1" in report.line()
    shown = json.loads(json.dumps(report.as_dict()))
    assert shown["exit_code"] == 7 and [o["outcome"] for o in shown["outcomes"]].count("failed") == 1
    toy.server.script(toy.path("train.zip"))
    assert toy.prepare().exit_code == 0 and toy.complete()


def test_an_http_mirror_may_be_a_folder_too(toy: Family, tmp_path: Path) -> None:
    for name, data in toy.blobs.items():
        path = tmp_path / "mirror" / HOST / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert toy.prepare(mirror=str(tmp_path / "mirror"), max_samples=2).exit_code == 0
    assert sorted(tree(toy.images)) == ["train/000000.jpg", "train/000001.jpg", "val/000000.jpg"]
    assert toy.prepare(mirror=str(tmp_path / "mirror")).exit_code == 0 and toy.complete()
    assert toy.server.log == []


def test_what_the_mirror_lacks_is_an_error_that_names_it(toy: Family) -> None:
    cards = toy.cards()
    del toy.server.objects[toy.path("val.zip")]
    report = toy.prepare(cards)
    assert report.exit_code == 4 and "val.zip" in "\n".join(report.lines())


def test_pictures_that_annotations_name_and_nobody_has(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    toy.offer("val.json", rows_of([*sorted(toy.val), "val/lost.jpg"]))
    report = toy.prepare()
    assert report.exit_code == 5 and report.splits[1].missing == 1
    table = (toy.root / "toy/.lavis_ext/missing.tsv").read_text().splitlines()
    assert table[1:] == ["toy_caption\tval\tval/lost.jpg"]
    toy.offer("val.json", rows_of(sorted(toy.val)))
    assert toy.prepare().exit_code == 0
    assert not (toy.root / "toy/.lavis_ext/missing.tsv").exists()


def test_an_archive_that_holds_the_list_too_and_lacks_a_picture_is_damaged(server: Server, tmp_path: Path) -> None:
    """As MiniGPT-4's: the list does not say where pictures come from, and the archive does."""
    toy = Family(server, tmp_path / "root")
    toy.archive("train", {**toy.train, "train/rows.json": rows_of([*sorted(toy.train), "train/lost.jpg"])})
    cards = toy.cards()
    dataset = cards.dataset("toy_caption")
    dataset.build_info.annotations["train"] = AnnotationConfig(artifact=["train!train/rows.json"])
    report = toy.prepare(cards, splits=["train"])
    [shown] = map(str, report.failures)
    assert report.exit_code == 5 and "1 of 13 images are missing; run `lavis-ext prepare` again" in shown


@pytest.mark.parametrize(("threshold", "code"), [(0.95, 8), (0.8, 0)])
def test_a_family_that_may_be_partial_is_checked_against_its_threshold(
    server: Server, tmp_path: Path, threshold: float, code: int
) -> None:
    toy = Family(server, tmp_path / "root", threshold=threshold)
    toy.offer("val.json", rows_of([*sorted(toy.val), "val/lost.jpg"]))
    assert toy.prepare().exit_code == code


def test_annotations_that_cannot_be_read_are_an_integrity_error(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    toy.offer("val.json", b'[{"image": "val/000')
    report = toy.prepare()
    assert report.exit_code == 5 and "val.json" in "\n".join(report.lines())


# Subset mirrors


def subset(toy: Family) -> Family:
    """The same family as a mirror of its first pictures."""
    small = replace(toy, train=dict(list(toy.train.items())[:3]), val=dict(list(toy.val.items())[:2]))
    small.offer_manifest(list(small.blobs))
    return small


def test_a_subset_is_recorded_reported_and_replaced_by_the_real_thing(toy: Family) -> None:
    cards = toy.cards()
    with Server() as other:
        small = subset(replace(toy, server=other))
        report = small.prepare(cards)
        assert report.exit_code == 0 and report.subset and "subset" in report.line()
        assert all(split.state == "verified (subset)" for split in report.splits)
        assert "subset" in plan(["toy"], small.options(), cards).items[0].equivalence
        assert small.prepare(cards).bytes_moved == 0
        assert small.prepare(cards, offline=True).exit_code == 0
    real = toy.prepare(cards)
    assert real.exit_code == 0 and not real.subset
    assert any("replaces the subset" in line for line in real.lines())
    assert set(toy.train) | set(toy.val) <= set(tree(toy.images)) and len(real.splits) == 2
    assert real.splits[0].samples == 12
    with Server() as other:
        assert not replace(toy, server=other).prepare(cards, offline=True).subset


def test_a_folder_as_the_mirror_serves_a_subset_offline(toy: Family, tmp_path: Path) -> None:
    small, folder, cards = subset(toy), tmp_path / "stick", toy.cards()
    manifest = toy.server.find("/manifest.json")
    assert manifest is not None
    for name, data in {**{f"{HOST}/{n}": b for n, b in small.blobs.items()}, "manifest.json": manifest.data}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    toy.server.log.clear()
    report = toy.prepare(cards, mirror=str(folder), offline=True)
    assert report.exit_code == 0 and report.subset and report.bytes_moved
    assert all(split.state == "verified (subset)" for split in report.splits)
    assert toy.prepare(cards, mirror=str(tmp_path), offline=True).exit_code == 0, "what is there needs no mirror"
    (toy.root / "toy/annotations/val.json").unlink()
    assert toy.prepare(cards, mirror=str(tmp_path), offline=True).exit_code == 4
    assert toy.server.log == []


def test_members_of_a_subset_that_came_by_ranges_are_partial_in_the_plan(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    cards = toy.cards()
    with Server() as other:
        small = subset(replace(toy, server=other))
        before = plan(["toy"], small.options(max_samples=1), cards).items
        assert small.prepare(cards, max_samples=1).exit_code == 0
        after = plan(["toy"], small.options(max_samples=1), cards).items
    images = [(one.state, one.action) for one in after if one.request and one.request.images]
    assert {one.state for one in before} == {"missing"} and images == [("partial", "ranges")] * 2
    real = [one.state for one in plan(["toy"], toy.options(), cards).items if one.request and one.request.images]
    assert real == ["missing"] * 2, "bytes of a subset do not count where the real archive is offered"


def test_a_subset_without_declared_hashes_does_not_pass_for_the_real_file(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root", declared=False)
    cards = toy.cards()
    with Server() as other:
        subset(replace(toy, server=other)).prepare(cards)
    assert toy.prepare(cards).splits[0].samples == 12
    assert toy.complete()


def test_a_data_set_of_which_a_subset_lists_nothing_is_skipped(toy: Family) -> None:
    cards = toy.cards()
    toy.offer_manifest(["train.json", "train.zip", "val.json", "val.zip"])
    other = replace(cards.families["toy"].datasets["toy_caption"]["default"], name="toy_vqa")
    rows = replace(cards.families["toy"].artifacts["val_rows"], name="vqa_rows", url=f"https://{HOST}/vqa.json")
    rows = replace(rows, storage="toy/annotations/vqa.json")
    build = replace(
        other.build_info, annotations={"val": type(other.build_info.annotations["val"])(artifact=["vqa_rows"])}
    )
    images = replace(build.images, artifacts={"val": ["val"]})
    vqa = replace(other, build_info=replace(build, images=images))
    card = cards.families["toy"]
    family = replace(
        card, artifacts={**card.artifacts, "vqa_rows": rows}, datasets={**card.datasets, "toy_vqa": {"default": vqa}}
    )
    cards = replace(cards, families={"toy": family})
    report = toy.prepare(cards)
    assert report.exit_code == 0 and any("toy_vqa: skipped" in line for line in report.lines())
    with pytest.raises(NetworkError, match="lists nothing"):
        toy.prepare(cards, names=("toy_vqa",))
    toy.offer_manifest(["train.json"])
    assert replace(toy, root=toy.root.parent / "two").prepare(cards, names=("toy_caption",)).exit_code == 4
    toy.offer_manifest([])
    with pytest.raises(NetworkError, match="lists nothing"):
        toy.prepare(cards)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_finished_root_may_be_read_only(toy: Family) -> None:
    toy.prepare()
    for path in [toy.root, *toy.root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert toy.prepare().exit_code == 0
    finally:
        for path in [toy.root, *toy.root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
