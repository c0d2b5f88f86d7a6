"""`prepare` of data sets whose images are listed by URL: plan, images, account, a second run, and what is short."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lavis_ext.common.config.cards import Artifact, ImageList
from lavis_ext.common.files import write_json
from lavis_ext.fetch import Policy
from lavis_ext.prepare import PrepareOptions, plan, prepare, status, verify
from lavis_ext.prepare.report import SplitState
from lavis_ext.prepare.samples import _list_state
from lavis_ext.prepare.urls.shards import describe, manifest_path
from lavis_ext.prepare.urls.worker import PassOrder
from tests.prepare.urls.conftest import orders  # noqa: F401 - a fixture
from tests.support.server import Fault, Server
from tests.support.shards import write_shard
from tests.support.weblist import picture

QUICK = Policy(backoff=0.01, retries=0, fsync=False, allow_private=True)
LAVIS = "/storage.googleapis.com/sfr-vision-language-research"
PART = "part-00000-2256f782-126f-4dc6-b9c6-e6757637749d-c000.snappy.parquet"


def options(server: Server, root: Path, **more: Any) -> PrepareOptions:
    return PrepareOptions(**{"mirror": server.base, "cache_root": root, "policy": QUICK, **more})


def nocaps(server: Server, count: int) -> None:
    images = [
        {"id": n, "file_name": f"{n:04d}.jpg", "coco_url": f"https://s3.example/val/{n:04d}.jpg"} for n in range(count)
    ]
    captions = [{"id": n, "image_id": n % count, "caption": f"picture {n}"} for n in range(2 * count)]
    body = json.dumps({"images": images, "annotations": captions}).encode()
    server.put("/nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json", body)
    for n in range(count):
        server.put(f"/s3.example/val/{n:04d}.jpg", picture(n))


def test_nocaps_comes_file_by_file(server: Server, tmp_path: Path) -> None:
    nocaps(server, 12)
    wanted = options(server, tmp_path, splits=["val"])
    items = {item.title: item for item in plan(["nocaps"], wanted).items}
    assert items["nocaps/val_captions images"].download is None and items["nocaps/val_captions images"].files == 4500
    assert not list(tmp_path.iterdir())
    report = prepare(["nocaps"], wanted)
    assert report.exit_code == 0 and (tmp_path / "nocaps/images/val/0003.jpg").read_bytes() == picture(3)
    [state] = report.splits
    assert (state.samples, state.expected, state.present) == (12, 12, 12), "two captions of a picture are one sample"
    assert state.line() == "nocaps/val: 12 samples (the card counts 4500), 12 of 12 images, present"
    asked = len(server.log)
    again = prepare(["nocaps"], wanted)
    assert again.exit_code == 0 and again.count("reused") == 2
    assert [seen.path for seen in server.log[asked:]] in ([], ["/manifest.json"])


def test_first_samples_only(server: Server, tmp_path: Path) -> None:
    nocaps(server, 12)
    report = prepare(["nocaps"], options(server, tmp_path, splits=["val"], max_samples=5))
    assert report.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "nocaps/images/val").iterdir()) == [
        f"{n:04d}.jpg" for n in range(5)
    ]
    assert prepare(["nocaps"], options(server, tmp_path, splits=["val"])).exit_code == 0
    assert len(list((tmp_path / "nocaps/images/val").iterdir())) == 12


def test_pictures_that_a_list_without_addresses_names_are_asked_of_the_user(server: Server, tmp_path: Path) -> None:
    rows = [{"image": f"val/{n:04d}.jpg", "img_id": n} for n in range(3)]
    server.put(f"{LAVIS}/datasets/nocaps_val.json", json.dumps(rows).encode())
    annotations = tmp_path / "nocaps" / "annotations" / "nocaps_val.json"
    annotations.parent.mkdir(parents=True)
    annotations.write_text(json.dumps(rows))
    wanted = options(server, tmp_path, splits=["val"])
    report = prepare(["nocaps"], wanted)
    assert report.exit_code == 7
    (problem,) = report.failures[0].problems
    assert problem.where == "nocaps/val" and problem.what.startswith("3 of 3 images")
    assert str(tmp_path / "nocaps/images") in problem.way_out and len(report.failures) == 1
    for n in range(3):
        path = tmp_path / f"nocaps/images/val/{n:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n))
    assert prepare(["nocaps"], wanted).exit_code == 0


def test_dead_images_are_reported(server: Server, tmp_path: Path) -> None:
    nocaps(server, 4)
    server.script("/s3.example/val/0002.jpg", Fault(status=404))
    report = prepare(["nocaps"], options(server, tmp_path, splits=["val"]))
    assert report.exit_code == 8 and any("3 of 4 images" in str(error) for error in report.failures)
    lost = tmp_path / "nocaps/.lavis_ext/lists/val_captions/missing.tsv"
    assert "0002.jpg" in lost.read_text()


def test_sbu_comes_through_img2dataset(server: Server, tmp_path: Path, orders: list[PassOrder]) -> None:  # noqa: F811
    rows = [
        {"image": f"x/{n}.jpg", "caption": f"picture {n}", "url": f"http://photos.example/{n}_o.jpg"} for n in range(10)
    ]
    server.put(f"{LAVIS}/LAVIS/datasets/sbu/sbu.json", json.dumps(rows).encode())
    for n in range(8):
        server.put(f"/photos.example/{n}_o.jpg", picture(n))
    gone = server.put("/img/photo_unavailable.png", picture(99, kind="PNG"))
    server.script("/photos.example/8_o.jpg", Fault(redirect=gone))
    report = prepare(["sbu_caption"], options(server, tmp_path))
    assert report.exit_code == 0, report.lines()
    assert sorted(path.name for path in (tmp_path / "sbu_captions/images").iterdir()) == [f"{n}.jpg" for n in range(8)]
    lost = (tmp_path / "sbu_captions/.lavis_ext/lists/captions/missing.tsv").read_text()
    assert "x/8.jpg" in lost and "placeholder" in lost and "HTTP 404" in lost
    assert len(orders) == 1 and prepare(["sbu_caption"], options(server, tmp_path)).exit_code == 0
    assert len(orders) == 1


def laion(server: Server, count: int) -> None:
    columns = {
        "URL": [f"http://photos.example/{n}.jpg" for n in range(count)],
        "TEXT": [f"alt text {n}" for n in range(count)],
        "top_caption": [f"picture {n}" for n in range(count)],
        "all_captions": [[f"picture {n}", "a thing"] for n in range(count)],
        "all_similarities": [[0.3, 0.2] for _ in range(count)],
    }
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    server.put(f"/huggingface.co/datasets/laion/relaion-coco/resolve/main/{PART}", file.getvalue())
    for n in range(count):
        server.put(f"/photos.example/{n}.jpg", picture(n, 300))


def test_laion_coco_metadata_then_shards(server: Server, tmp_path: Path, orders: list[PassOrder]) -> None:  # noqa: F811
    laion(server, 12)
    step1 = prepare(["laion_coco"], options(server, tmp_path, max_samples=10, metadata_only=True))
    assert step1.exit_code == 0 and (tmp_path / "laion_coco/meta" / PART).is_file() and orders == []
    assert prepare(["laion_coco"], options(server, tmp_path, max_samples=10, offline=True)).exit_code == 4
    assert orders == [], "img2dataset knows nothing of offline"
    step2 = prepare(["laion_coco"], options(server, tmp_path, max_samples=10))
    assert step2.exit_code == 0, step2.lines()
    manifest = json.loads((tmp_path / "laion_coco/00000.manifest.json").read_text())
    assert manifest["samples"] == 10 and (tmp_path / "laion_coco/00000.tar").stat().st_size == manifest["bytes"]
    [state] = status(["laion_coco"], options(server, tmp_path))
    assert (state.samples, state.present, state.expected, state.state) == (10, 10, 10, "verified")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "laion_coco", copy / "laion_coco", ignore=shutil.ignore_patterns("lists"))
    [state] = status(["laion_coco"], options(server, copy))
    assert (state.samples, state.state) == (10, "present"), "what manifests say was compared with nothing here"
    assert len(server.requests(f"/huggingface.co/datasets/laion/relaion-coco/resolve/main/{PART}")) == 1


def test_laion_coco_from_a_folder_of_ones_own(server: Server, tmp_path: Path, orders: list[PassOrder]) -> None:  # noqa: F811
    laion(server, 3)
    folder = tmp_path / "mine"
    folder.mkdir()
    columns = {"url": ["http://photos.example/1.jpg"], "caption": ["one"]}
    parquet.write_table(pa.table(columns), folder / "a.parquet")
    report = prepare(["laion_coco"], options(server, tmp_path / "cache", source=str(folder)))
    assert report.exit_code == 3 and "all_captions" in str(report.failures[0])
    columns |= {"all_captions": [["one"]], "all_similarities": [[1.0]]}
    parquet.write_table(pa.table(columns), folder / "a.parquet")
    report = prepare(["laion_coco"], options(server, tmp_path / "cache", source=str(folder)))
    assert report.exit_code == 0, report.lines()


def test_local_mirror_serves_listed_images(tmp_path: Path, server: Server) -> None:
    nocaps(server, 3)
    mirror = tmp_path / "mirror"
    for path, found in server.objects.items():
        file = mirror / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(found.data)
    report = prepare(["nocaps"], options(server, tmp_path / "cache", mirror=str(mirror), splits=["val"]))
    assert report.exit_code == 0 and len(list((tmp_path / "cache/nocaps/images/val").iterdir())) == 3


@pytest.mark.parametrize("name", ["nocaps", "laion_coco"])
def test_offline_names_what_is_missing(name: str, server: Server, tmp_path: Path) -> None:
    report = prepare([name], options(server, tmp_path, offline=True))
    assert report.exit_code == 4 and server.log == []


def test_verify_and_repair_of_listed_images(server: Server, tmp_path: Path) -> None:
    nocaps(server, 4)
    wanted = options(server, tmp_path, splits=["val"])
    prepare(["nocaps"], wanted)
    assert verify(["nocaps"], options=wanted).exit_code == 0
    (tmp_path / "nocaps/images/val/0001.jpg").write_bytes(b"<html>")
    cut = tmp_path / "nocaps/images/val/0002.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    assert [Path(one.path).name for one in verify(["nocaps"], options=wanted).findings] == ["0001.jpg"]
    report = verify(["nocaps"], deep=True, repair=True, options=wanted)
    assert {Path(one.path).name for one in report.findings} == {"0001.jpg", "0002.jpg"} and report.exit_code == 0
    assert verify(["nocaps"], deep=True, options=wanted).findings == () and cut.read_bytes() == picture(2)


def test_verify_and_repair_of_shards(server: Server, tmp_path: Path, orders: list[PassOrder]) -> None:  # noqa: F811
    laion(server, 6)
    wanted = options(server, tmp_path, max_samples=5)
    prepare(["laion_coco"], wanted)
    assert verify(["laion_coco"], options=wanted).exit_code == 0
    tar = tmp_path / "laion_coco/00000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(bytes(data))
    report = verify(["laion_coco"], options=wanted)
    assert report.exit_code == 5 and "sha256" in report.findings[0].fault
    assert verify(["laion_coco"], repair=True, options=wanted).exit_code == 0
    assert verify(["laion_coco"], options=wanted).exit_code == 0 and len(orders) == 2


def test_shards_that_were_copied_here_are_counted_and_not_called_verified(tmp_path: Path) -> None:
    """Though the lists that they were made from are: nothing was compared with what the manifests promise."""
    artifact = Artifact(url="https://x.org/a.parquet", storage="laion/lists", lists=ImageList(storage="laion/shards"))
    (tmp_path / "laion/shards").mkdir(parents=True)
    for number in range(2):
        tar = write_shard(tmp_path / "laion/shards", number, 3)
        write_json(manifest_path(tar), asdict(describe(tar, "x")))
    known = SplitState(dataset="laion", split="train", verified=True, expected=9)
    found = _list_state(known, tmp_path, artifact)
    assert found is not None and (found.samples, found.expected, found.verified) == (6, None, False)
