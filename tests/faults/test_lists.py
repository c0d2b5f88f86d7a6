# ruff: noqa: F811 - the fixture `orders` is imported
"""Lists of image URLs: bad rows, full disks, lists that change, one name for two URLs, copies, mirrors, kills."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lavis_ext.cli import main
from lavis_ext.common.config.cards import Cards, load_cards
from lavis_ext.common.errors import ConfigError, DiskError, NetworkError, PartialError
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.fetch import MirrorMap, Policy
from lavis_ext.prepare import PrepareOptions, prepare, status, verify
from lavis_ext.prepare.urls import ListAccount, ListJob, fetch_hosted, fetch_list, run
from lavis_ext.prepare.urls.job import Passing
from lavis_ext.prepare.urls.shards import ShardManifest
from lavis_ext.prepare.urls.supervise import run_worker
from lavis_ext.prepare.urls.tables import ID, PATH, ROW
from lavis_ext.prepare.urls.worker import (
    PassOrder,
    make_downloader,
    read_shards,
    run_elsewhere,
    run_pass,
    run_processes,
)
from tests.prepare.urls.conftest import orders, passes_here  # noqa: F401 - a fixture
from tests.support.disks import small_disk
from tests.support.processes import all_ended, descendants
from tests.support.server import Fault, Server, wait_until
from tests.support.weblist import PLACEHOLDER, WebList, make_job, picture

Orders = list[PassOrder]
ROOT = Path(__file__).parents[2]
QUICK = Policy(backoff=0.01, retries=0, fsync=False, allow_private=True)
META = "/huggingface.co/datasets/laion/relaion-coco/resolve/main"
PART = "part-00000-2256f782-126f-4dc6-b9c6-e6757637749d-c000.snappy.parquet"
SCORED = {"all_captions": ["one", "two"], "all_similarities": [0.2, 0.1]}
Fetch = Callable[[ListJob], ListAccount]


def losses(account: ListAccount) -> dict[str, str]:
    assert account.lost is not None
    with account.lost.open(encoding="utf-8", newline="") as file:
        return {line["id"]: line["reason"] for line in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """The JSON of every sample of all shards of a folder."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield json.load(file)


def ids(folder: Path) -> list[str]:
    return sorted(record["list_id"] for record in records(folder))


def shards_job(folder: Path, annotation: Path, size: int = 10, **changes: Any) -> ListJob:
    return make_job(
        folder, annotation, spec={"output": "shards", "samples_per_shard": size, "image_size": 32}, **changes
    )


# Bad rows


def bad_rows(good: str) -> list[dict[str, Any]]:
    """One row each that cannot be used, with the URL of a good picture where the URL is not what is wrong."""
    return [
        {"image": "url.jpg", "url": "http://127.0.0.1/\ud800.jpg"},
        {"image": "bracket.jpg", "url": "http://[bad/x.jpg"},
        {"image": "bracket2.jpg", "url": "http://[::1"},
        {"image": "number.jpg", "url": 7},
        {"image": "null.jpg", "url": None},
        {"image": "a\ud800.jpg", "url": good},
        {"image": "n" * 300 + ".jpg", "url": good},
        {"image": "a\tb.jpg", "url": good},
        {"image": "http://[x", "url": good},
        {"image": None, "url": good},
        {"url": good},
        {"image": ["x"], "url": good},
    ]


@pytest.mark.fault("F13")
@pytest.mark.parametrize("engine", [fetch_list, fetch_hosted])
@pytest.mark.parametrize("kind", ["link to nothing", "link to itself", "folder"])
def test_what_stands_where_an_image_belongs_is_kept_and_told(
    engine: Fetch, kind: str, server: Server, tmp_path: Path, orders: Orders
) -> None:
    web = WebList(server)
    web.fill(3)
    job = make_job(tmp_path, web.write(tmp_path / "l.json"), passes=0)
    place, aside = job.target / "img_0001.jpg", job.target / ".lavis_ext/set_aside/img_0001.jpg"
    place.parent.mkdir(parents=True)
    if kind == "folder":
        (place / "mine").mkdir(parents=True)
    else:
        place.symlink_to("/nowhere/disk" if kind == "link to nothing" else place.name)
    account = engine(job)
    assert account.present == 3 and place.is_file() and not place.is_symlink()
    assert (aside / "mine").is_dir() if kind == "folder" else aside.is_symlink()
    assert any(note.startswith("1 ") and "set aside" in note for note in account.notes)


@pytest.mark.fault("F13")
def test_a_link_to_nothing_where_a_shard_belongs_is_kept(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    web.fill(3)
    job = shards_job(tmp_path, web.write(tmp_path / "l.json"), passes=0)
    job.target.mkdir(parents=True)
    (job.target / "00000.tar").symlink_to("/nowhere/disk")
    assert fetch_list(job).present == 3 and not (job.target / "00000.tar").is_symlink()
    assert (job.target / ".lavis_ext/set_aside/00000.0.tar").is_symlink()


@pytest.mark.fault("H20")
@pytest.mark.parametrize("engine", [fetch_list, fetch_hosted])
@pytest.mark.parametrize("first", [False, True])
def test_a_bad_row_is_counted_and_the_others_come(
    engine: Fetch,
    first: bool,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    web = WebList(server)
    web.fill(3)
    bad = bad_rows(web.rows[0]["url"])
    web.rows = [*bad, *web.rows] if first else [*web.rows, *bad]
    job = make_job(tmp_path, web.write(tmp_path / "l.json"), threshold=0.1, passes=0)
    account = engine(replace(job, name="x"))
    assert (account.expected, account.present) == (3 + len(bad), 3)
    found = sorted(path.name for path in job.target.iterdir())
    assert found == [f"img_000{n}.jpg" for n in range(3)]
    assert len(account.lost.read_text("utf-8").splitlines()) == 1 + len(bad)  # type: ignore[union-attr]


@pytest.mark.fault("H20")
def test_texts_that_cannot_be_written_and_columns_of_two_types(
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    web = WebList(server)
    for number in range(4):
        web.add(picture(number))
    odd = [["\udcff one", "x\0y"], "no list", None, {"k\ud800": 1 << 80}]
    for number, row in enumerate(web.rows):
        row |= {"caption": f"c \ud83d {number}", "image": f"\ud800{number}", "all_captions": odd[number]}
        row["all_similarities"] = [0.5, 1 << 70, "x", None][number]
    spec = {"output": "shards", "keep": ["all_captions", "all_similarities"]}
    job = make_job(tmp_path, web.write(tmp_path / "l.json"), spec=spec)
    assert fetch_list(job).present == 4
    made = sorted(records(job.target), key=lambda record: int(record["list_row"]))
    assert [record["all_captions"] for record in made] == [["? one", "xy"], None, None, None]
    assert [record["all_similarities"] for record in made] == [0.5, None, None, None]
    assert [record["caption"] for record in made] == [f"c ? {n}" for n in range(4)]


@pytest.mark.fault("H20")
@pytest.mark.parametrize("engine", [fetch_list, fetch_hosted])
def test_a_table_with_bytes_that_are_no_text(engine: Fetch, server: Server, tmp_path: Path, orders: Orders) -> None:
    urls = [server.put(f"/{n}.jpg", picture(n)) for n in range(3)]
    lines = [
        f"fine\t{urls[0]}".encode(),
        f"\xff caption\t{urls[1]}".encode("latin-1"),
        f"x\t{urls[2]}".encode() + b"\xfe",
    ]
    (tmp_path / "l.tsv").write_bytes(b"\n".join([*lines, b"short", b"", b"x\ty\tz"]))
    spec = {"columns": ["caption", "url"], "path": "{url.name}", "id_key": []}
    account = engine(make_job(tmp_path, tmp_path / "l.tsv", spec=spec, threshold=0.1, passes=0))
    assert account.present == 2 and account.expected in (5, 6)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"0.jpg", "1.jpg"}


@pytest.mark.fault("W13")
def test_columns_by_other_names_rows_without_urls_and_no_rows(
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    url = server.put("/a.jpg", picture(1))
    table = {"Url": [url, None, ""], "top_caption": ["one", "two", None], "left": [1, 2, 3]}
    parquet.write_table(pa.table(table), tmp_path / "l.parquet")
    account = fetch_list(shards_job(tmp_path, tmp_path / "l.parquet", threshold=0.1))
    assert (account.present, account.missing, account.reasons) == (1, 2, {"no URL": 2})
    for name, columns in {"none": {"url": [], "caption": []}, "other": {"link": [url], "caption": ["x"]}}.items():
        parquet.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        with pytest.raises(ConfigError) as caught:
            fetch_list(shards_job(tmp_path / name, tmp_path / f"{name}.parquet"))
        assert caught.value.exit_code == 3


@pytest.mark.fault("F10")
@pytest.mark.parametrize("engine", [fetch_list, fetch_hosted])
def test_names_that_differ_by_case_or_form_are_files_of_their_own(
    engine: Fetch,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    names = ["A.jpg", "a.jpg", "\u00e9.jpg", "e\u0301.jpg", "n" * 251 + ".jpg", "\u00e9" * 125 + ".jpg", "x\u2028y.jpg"]
    long = "\u00e9" * 126 + ".jpg"
    rows = [{"image": n, "url": server.put(f"/{k}.jpg", picture(k))} for k, n in enumerate([*names, long])]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    job = make_job(tmp_path, tmp_path / "l.json", spec={"path": "{image}"})
    account = engine(job)
    assert {path.name for path in job.target.iterdir() if path.is_file()} == set(names)
    assert [(job.target / name).read_bytes() for name in names] == [picture(k) for k in range(len(names))]
    assert (account.present, account.missing) == (7, 1) and "255 bytes" in losses(account)[long]


# One name, two URLs


def named(server: Server, images: list[str | None], fails: int = -1) -> list[dict[str, Any]]:
    """A row each, whose picture is its own and whose URL ends in `photo.jpg`; one of them may be gone."""
    rows = []
    for number, image in enumerate(images):
        path = f"/host{number}/photo.jpg"
        rows.append({"image": image, "url": server.put(path, picture(number)), "caption": f"c{number}"})
        if number == fails:
            server.script(path, Fault(status=404))
    return rows


def shown(store: ImageStore, name: str) -> bytes | None:
    try:
        return store.read(name)
    except SampleError:
        return None


@pytest.mark.fault("H42")
@pytest.mark.parametrize("engine", [fetch_list, fetch_hosted])
@pytest.mark.parametrize("pattern", ["{image.name}", "{url.name}"])
@pytest.mark.parametrize("fails", [-1, 0, 1])
def test_each_caption_keeps_its_own_picture(
    engine: Fetch,
    pattern: str,
    fails: int,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    images = ["x/photo.jpg", "y/photo.jpg", "deep/y/photo.jpg"]
    (tmp_path / "l.json").write_text(json.dumps(named(server, [*images, "z/other.jpg"], fails)))
    spec = {"path": pattern, "samples_per_shard": 2}
    for limit in (1, None):  # the same names, however many samples are wanted
        job = make_job(tmp_path, tmp_path / "l.json", spec=spec, max_samples=limit, threshold=0.0)
        (job.target).mkdir(exist_ok=True)
        if limit:
            (job.target / "photo.jpg").write_bytes(picture(77))  # of a version that took the first one's
        account = engine(job)
        store = ImageStore(job.target)
        for number, image in enumerate(images[:limit]):
            assert shown(store, image) == (None if number == fails else picture(number)), (limit, image)
    assert (job.target / ".lavis_ext/set_aside/photo.jpg").read_bytes() == picture(77)
    assert account.expected == 4 and account.present == (3 if fails >= 0 else 4) - (pattern == "{url.name}")


@pytest.mark.fault("H42")
@pytest.mark.parametrize("engine", [fetch_list, fetch_hosted])
def test_names_that_nothing_tells_apart_are_refused(
    engine: Fetch,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    rows = named(server, ["photo.jpg", "photo.jpg", "x/photo.jpg"])
    rows += [{"image": f"same{n}.jpg", "url": rows[0]["url"], "caption": "again"} for n in range(2)]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    account = engine(make_job(tmp_path, tmp_path / "l.json", threshold=0.1))
    assert account.reasons == {"another URL has its file name": 2} and account.present == 3
    assert (tmp_path / "images/x/photo.jpg").read_bytes() == picture(2)


# Laion-COCO from a hub that is a loopback server


def laion(server: Server, count: int, **changes: list[Any]) -> bytes:
    """The first part of the metadata, and its pictures."""
    columns = {
        "URL": [f"http://photos.example/{n}.jpg" for n in range(count)],
        "TEXT": [f"alt text {n}" for n in range(count)],
        "top_caption": [f"picture {n}" for n in range(count)],
        **{key: [value] * count for key, value in SCORED.items()},
        **changes,
    }
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    server.put(f"{META}/{PART}", file.getvalue())
    for n in range(count):
        server.put(f"/photos.example/{n}.jpg", picture(n))
    return file.getvalue()


def small_shards(size: int = 4, **more: Any) -> Cards:
    """The shipped cards with small shards for Laion-COCO."""
    cards = load_cards()
    card = cards.families["laion"]
    meta = card.artifacts["metadata"]
    assert meta.lists is not None
    meta = replace(meta, lists=replace(meta.lists, samples_per_shard=size, **more))
    return replace(cards, families={**cards.families, "laion": replace(card, artifacts={"metadata": meta})})


def options(server: Server, root: Path, **more: Any) -> PrepareOptions:
    return PrepareOptions(
        **{"mirror": server.base, "cache_root": root, "policy": QUICK, "max_samples": 10, "processes": 1, **more}
    )


def asked(server: Server, since: int = 0) -> list[str]:
    return [seen.path for seen in server.log[since:] if seen.path != "/manifest.json"]


CHANGES: dict[str, tuple[dict[str, Any], int]] = {
    "one url": ({"URL": [f"http://photos.example/{n + (n == 5)}.jpg" for n in range(10)]}, 0),
    "one row": ({key: [*[value] * 9, "x"] for key, value in {"TEXT": "t"}.items()}, 0),
    "a row less": ({}, 0),
}


@pytest.mark.fault("H40", "W05")
@pytest.mark.parametrize(
    "change", ["one url", "one caption", "a row less", "another source", "no source", "dead source"]
)
def test_a_list_that_changed_after_all_was_done_is_noticed(
    change: str,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    data = laion(server, 11)
    mine, root, cards = tmp_path / "mine", tmp_path / "root", small_shards()
    mine.mkdir()
    (mine / "a.parquet").write_bytes(data)
    wanted = options(server, root, source=str(mine))
    assert prepare(["laion_coco"], wanted, cards=cards).exit_code == 0
    before, ran = tars(root / "laion_coco"), len(orders)
    assert prepare(["laion_coco"], wanted, cards=cards).count("reused") == 1 and len(orders) == ran
    os.utime(mine / "a.parquet")  # touched, not changed
    assert prepare(["laion_coco"], wanted, cards=cards).exit_code == 0 and len(orders) == ran
    table = parquet.read_table(mine / "a.parquet")
    columns = table.to_pydict()
    code, kept = 0, {"00000.tar", "00002.tar"}
    if change == "one url":
        columns["URL"][5] = "http://photos.example/10.jpg"
    elif change == "one caption":
        columns["TEXT"][5] = "other words"
    elif change == "a row less":
        columns = {key: [*values[:5], *values[6:]] for key, values in columns.items()}
        kept = {"00000.tar"}
    elif change == "another source":
        (tmp_path / "other").mkdir()
        wanted = replace(wanted, source=str(tmp_path / "other"))
        columns["URL"][5] = "http://photos.example/10.jpg"
    else:
        away = str(tmp_path / "nowhere") if change == "no source" else "https://lists.example/none.parquet"
        wanted, code, kept = replace(wanted, source=away), 3 if change == "no source" else 4, set(before)
    if code == 0:
        parquet.write_table(pa.table(columns), Path(wanted.source) / "a.parquet")
    report = prepare(["laion_coco"], wanted, cards=cards)
    assert report.exit_code == code
    after = tars(root / "laion_coco")
    assert {name for name in before if after.get(name) == before[name]} == kept
    if code == 0:
        urls = [record["url"] for record in records(root / "laion_coco")]
        assert sorted(urls) == sorted(columns["URL"][:10])
        assert prepare(["laion_coco"], wanted, cards=cards).count("reused") == 1


@pytest.mark.fault("H40", "W05")
def test_another_declaration_of_the_same_list_is_noticed(
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    laion(server, 8)
    prepare(["laion_coco"], options(server, tmp_path), cards=small_shards())
    before = tars(tmp_path / "laion_coco")
    report = prepare(["laion_coco"], options(server, tmp_path), cards=small_shards(image_size=16))
    assert report.exit_code == 0 and len(orders) == 2
    after = tars(tmp_path / "laion_coco")
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in before)
    kept = [path.read_bytes() for path in (tmp_path / "laion_coco/.lavis_ext/set_aside").glob("*.tar")]
    assert sorted(kept) == sorted(before.values())


@pytest.mark.fault("H40", "H42")
@pytest.mark.parametrize("engine", [fetch_list, fetch_hosted])
def test_a_file_of_another_url_than_its_row_has_now_is_fetched_again(
    engine: Fetch, server: Server, tmp_path: Path, orders: Orders
) -> None:
    web = WebList(server)
    for number in range(4):
        web.add(picture(number))
    job = make_job(tmp_path, web.write(tmp_path / "l.json"))
    assert engine(job).present == 4
    one, other, third, _ = web.rows
    one["url"], other["url"] = other["url"], one["url"]
    third["url"] += "?sig=renewed"  # the same object
    web.write(tmp_path / "l.json")
    asked = len(server.requests("/photos/2/img_0002.jpg"))
    for _ in range(2):
        assert engine(job).present == 4
        found = [(job.target / f"img_000{n}.jpg").read_bytes() for n in range(4)]
        assert found == [web.bodies[f"sbu/img_000{n}.jpg"] for n in (1, 0, 2, 3)]
    assert len(server.requests("/photos/2/img_0002.jpg")) == asked
    aside = (job.target / ".lavis_ext/set_aside").iterdir()
    assert sorted(path.read_bytes() for path in aside) == sorted(found[:2])
    assert "renewed" not in "".join(path.read_text("latin1") for path in job.work.glob("sources.json"))


@pytest.mark.fault("H40")
def test_a_list_that_this_run_fetched_anew_is_noticed(server: Server, tmp_path: Path) -> None:
    """The plan was made before: the card has a new address of the list, with a row more."""
    cards = load_cards()
    card = cards.families["nocaps"]

    def put(path: str, count: int) -> None:
        images = [
            {"id": n, "file_name": f"{n}.jpg", "coco_url": f"https://s3.example/val/{n}.jpg"} for n in range(count)
        ]
        rows = [{"id": n, "image_id": n, "caption": f"picture {n}"} for n in range(count)]
        server.put(path, json.dumps({"images": images, "annotations": rows}).encode())
        for n in range(count):
            server.put(f"/s3.example/val/{n}.jpg", picture(n))

    put("/nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json", 3)
    put("/lists.example/v2.json", 4)
    wanted = options(server, tmp_path, splits=["val"], max_samples=None)
    assert prepare(["nocaps"], wanted, cards=cards).exit_code == 0
    moved = replace(
        card.artifacts["val_captions"], url="https://lists.example/v2.json", size=None, sha256=None, md5=None
    )
    cards = replace(cards, families={"nocaps": replace(card, artifacts={**card.artifacts, "val_captions": moved})})
    assert prepare(["nocaps"], wanted, cards=cards).exit_code == 0
    assert len(list((tmp_path / "nocaps/images/val").iterdir())) == 4


# Growing, rescued, copied


def flaky(server: Server, count: int, failing: set[int]) -> WebList:
    web = WebList(server)
    for number in range(count):
        web.add(picture(number), *([Fault(times=1, status=503)] if number in failing else []))
    return web


@pytest.mark.fault("H43", "W07")
@pytest.mark.parametrize("output", ["shards", "files"])
def test_what_was_rescued_stays_when_more_is_wanted(
    output: str,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    web = flaky(server, 40, {2, 7, 14, 23})
    make: Callable[..., ListJob] = (
        shards_job if output == "shards" else partial(make_job, spec={"samples_per_shard": 10})
    )
    annotation, seen = web.write(tmp_path / "l.json"), 0
    for limit in (15, 18, 33, 20, None):
        job = make(tmp_path, annotation, max_samples=limit)
        before = tars(job.target)
        account = fetch_list(job)
        reached = {15: 15, 18: 18, 33: 33, 20: 33, None: 40}[limit]
        assert account.present == account.expected == reached, limit
        after = tars(job.target)
        assert {name: after.get(name) for name in before} == before
        if output == "shards":
            assert ids(job.target) == sorted(web.good[:reached]) and account.samples == reached
        retried = sum(number < reached for number in (2, 7, 14, 23))
        assert len(server.log) == reached + retried, "only what failed is asked for again, once"
        seen = len(server.log)
        assert fetch_list(job).present == reached and len(server.log) == seen


@pytest.mark.fault("H43")
def test_growth_that_was_interrupted_goes_on(
    server: Server,
    tmp_path: Path,
    orders: Orders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    web = flaky(server, 30, {3, 17})
    annotation = web.write(tmp_path / "l.json")
    fetch_list(shards_job(tmp_path, annotation, max_samples=12))
    before = tars(tmp_path / "images")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for moment in ("write", "finish"):
        with monkeypatch.context() as patched:
            target: Any = run.TableIndex if moment == "write" else run.ListRun
            patched.setattr(target, moment, killed)
            with pytest.raises(KeyboardInterrupt):
                fetch_list(shards_job(tmp_path, annotation))
    account = fetch_list(shards_job(tmp_path, annotation))
    assert account.present == 30 and ids(tmp_path / "images") == sorted(web.good) and len(server.log) == 32
    assert {name: tars(tmp_path / "images").get(name) for name in before} == before


@pytest.mark.fault("H46")
@pytest.mark.parametrize("repair", [False, True])
def test_shards_copied_to_another_root_are_verified_and_kept(
    repair: bool,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    """With the shards of rescued rows; a dead link is asked for once more, since its answer was not copied."""
    laion(server, 10)
    for n in (2, 6):
        server.script(f"/photos.example/{n}.jpg", Fault(times=1, status=503))
    server.script("/photos.example/9.jpg", Fault(status=404))
    cards = small_shards()
    prepare(["laion_coco"], options(server, tmp_path / "a"), cards=cards)
    before = tars(tmp_path / "a/laion_coco")
    assert len(before) == 4
    copied = tmp_path / "b/laion_coco"
    copied.mkdir(parents=True)
    for path in [*(tmp_path / "a/laion_coco").glob("*.tar"), *(tmp_path / "a/laion_coco").glob("*.json")]:
        shutil.copy(path, copied)
    wanted = options(server, tmp_path / "b")
    report = verify(["laion_coco"], options=wanted, cards=cards)
    assert report.exit_code == 0 and report.files == 4 and not report.unknown
    [state] = status(["laion_coco"], wanted, cards)
    assert (state.samples, state.verified) == (9, False)
    if repair:
        data = bytearray((copied / "00001.tar").read_bytes())
        data[700] ^= 1
        (copied / "00001.tar").write_bytes(data)
        (copied / "00002.tar").unlink()
        report = verify(["laion_coco"], options=wanted, cards=cards)
        assert report.exit_code == 5 and len(report.findings) == 2
    since = len(server.log)
    if repair:
        assert verify(["laion_coco"], repair=True, options=replace(wanted, max_samples=10), cards=cards).exit_code == 0
    assert prepare(["laion_coco"], wanted, cards=cards).exit_code == 0
    lost = {4, 5, 7, 8, 9} if repair else {9}  # 2 and 6 are in the fourth shard
    assert {path for path in asked(server, since) if path.startswith("/photos")} == {
        f"/photos.example/{n}.jpg" for n in lost
    }
    assert ids(copied) == ids(tmp_path / "a/laion_coco") and len(set(ids(copied))) == 9
    same = {name for name, data in tars(copied).items() if before.get(name) == data}
    assert same >= (set(before) - {"00001.tar", "00002.tar"} if repair else set(before))
    assert verify(["laion_coco"], options=wanted, cards=cards).exit_code == 0


@pytest.mark.fault("H45")
def test_a_repair_asks_the_source_of_the_shards(
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    data = laion(server, 20)
    server.script(f"{META}/{PART}", Fault(status=401))
    mine, root, cards = tmp_path / "mine", tmp_path / "root", small_shards()
    mine.mkdir()
    (mine / "a.parquet").write_bytes(data)
    assert prepare(["laion_coco"], options(server, root, source=str(mine)), cards=cards).exit_code == 0
    before = tars(root / "laion_coco")
    harmed = bytearray(before["00001.tar"])
    harmed[700] ^= 1
    (root / "laion_coco/00001.tar").write_bytes(harmed)
    plain = options(server, root, max_samples=None)
    mine.rename(tmp_path / "away")
    assert verify(["laion_coco"], repair=True, options=plain, cards=cards).exit_code == 3
    assert tars(root / "laion_coco") == {**before, "00001.tar": bytes(harmed)}, "nothing is moved before it can be made"
    (tmp_path / "away").rename(mine)
    since = len(server.log)
    assert verify(["laion_coco"], repair=True, options=plain, cards=cards).exit_code == 0
    assert sorted(asked(server, since)) == [f"/photos.example/{n}.jpg" for n in range(4, 8)]
    after = tars(root / "laion_coco")
    assert {name for name in before if after[name] == before[name]} >= {"00000.tar", "00002.tar"}
    aside = root / "laion_coco/.lavis_ext/set_aside"
    assert [path.read_bytes() for path in aside.glob("*.tar")] == [bytes(harmed)]
    assert verify(["laion_coco"], options=plain, cards=cards).exit_code == 0


@pytest.mark.fault("H06")
@pytest.mark.parametrize("output", ["shards", "files"])
def test_images_that_are_gone_are_found_by_verify(
    output: str,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    cards = small_shards(output=output, path="{URL.name}", storage="laion_coco/made")
    laion(server, 10)
    prepare(["laion_coco"], options(server, tmp_path), cards=cards)
    place = tmp_path / "laion_coco/made"
    (place / ("00001.tar" if output == "shards" else "3.jpg")).unlink()
    assert verify(["laion_coco"], options=options(server, tmp_path), cards=cards).exit_code == 5
    if output == "shards":
        assert status(["laion_coco"], options(server, tmp_path), cards)[0].verified is False
    assert verify(["laion_coco"], repair=True, options=options(server, tmp_path), cards=cards).exit_code == 0
    assert verify(["laion_coco"], options=options(server, tmp_path), cards=cards).exit_code == 0


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: data[:8] + bytes(len(data) // 2) + data[8 + len(data) // 2 :],
    "page": lambda data: b"<html>".ljust(len(data)),
    "empty": lambda data: b"",
}


@pytest.mark.fault("H44")
@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_part_of_the_metadata_is_fetched_again(
    harm: str,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    data = laion(server, 6)
    place = tmp_path / "laion_coco/meta" / PART
    place.parent.mkdir(parents=True)
    place.write_bytes(DAMAGE[harm](data))
    assert prepare(["laion_coco"], options(server, tmp_path), cards=small_shards()).exit_code == 0
    assert place.read_bytes() == data and len(ids(tmp_path / "laion_coco")) == 6
    kept = [path.read_bytes() for path in place.parent.glob("*.bad-*")]
    assert kept == ([DAMAGE[harm](data)] if harm != "empty" or kept else kept)
    server.put(f"{META}/{PART}", DAMAGE["cut"](data), etag=None)
    place.unlink()
    report = prepare(["laion_coco"], options(server, tmp_path, max_samples=11), cards=small_shards())
    assert report.exit_code == 5 and len(server.requests(f"{META}/{PART}")) <= 4, "once more, not for ever"


@pytest.mark.fault("H44")
def test_a_users_own_damaged_table_stays(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 no more")
    report = prepare(["laion_coco"], options(server, tmp_path / "root", source=str(tmp_path / "mine.parquet")))
    assert report.exit_code == 5 and (tmp_path / "mine.parquet").read_bytes() == b"PAR1 no more"


@pytest.mark.fault("H47")
@pytest.mark.parametrize("failing", [False, True])
def test_through_a_mirror_records_hold_the_published_address(
    failing: bool,
    server: Server,
    second: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    laion(server, 6)
    server.script("/photos.example/4.jpg", Fault(status=404))
    if failing:  # a second pass, from another mirror
        server.script("/photos.example/1.jpg", Fault(status=503))
        laion(second, 6)
    cards = small_shards()
    prepare(["laion_coco"], options(server, tmp_path), cards=cards)
    if failing:
        prepare(["laion_coco"], options(second, tmp_path), cards=cards)
        assert "/photos.example/1.jpg" in asked(second)
    urls = {record["url"] for record in records(tmp_path / "laion_coco")}
    assert urls == {f"http://photos.example/{n}.jpg" for n in range(6) if n != 4}
    work = tmp_path / "laion_coco/.lavis_ext/lists/metadata"
    assert "\thttp://photos.example/4.jpg\t" in (work / "missing.tsv").read_text()
    written = [
        path.read_bytes()
        for path in (*work.glob("*.json"), *work.glob("*.tsv"), *(tmp_path / "laion_coco").glob("*.tar"))
    ]
    assert not any(b"127.0.0.1" in data for data in written)


# Placeholders


@pytest.mark.fault("H50", "I06")
@pytest.mark.parametrize("output", ["shards", "files"])
def test_one_picture_under_many_urls_is_counted_apart(
    output: str,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    web = WebList(server)
    for number in range(30):
        web.add(picture(99) if number % 2 else PLACEHOLDER if number % 4 == 0 else picture(number))
    annotation, digest = web.write(tmp_path / "l.json"), hashlib.sha256(picture(99)).hexdigest()
    known = hashlib.sha256(PLACEHOLDER).hexdigest()
    spec = {"output": output, "samples_per_shard": 10}
    account = fetch_list(make_job(tmp_path, annotation, spec=spec, threshold=0.1))
    assert account.repeated == {digest: 15} and account.reasons == {"placeholder": 8} and account.present == 22
    assert "15 of those present" in account.line()
    spec["placeholders"] = [digest, known]  # the user has seen what it is
    account = fetch_list(make_job(tmp_path, annotation, spec=spec, threshold=0.1))
    assert account.repeated == {} and account.reasons == {"placeholder": 23} and account.present == 7
    if output == "files":
        assert len([path for path in (tmp_path / "images").iterdir() if path.is_file()]) == 7


@pytest.mark.fault("I06")
def test_a_known_placeholder_is_no_image_of_a_hosts_list_either(server: Server, tmp_path: Path) -> None:
    web = WebList(server)
    web.add(picture(1))
    web.add(PLACEHOLDER)
    job = make_job(tmp_path, web.write(tmp_path / "l.json"), threshold=0.1)
    account = fetch_hosted(job)
    assert (account.present, account.reasons) == (1, {"placeholder": 1})
    assert not (job.target / "img_0001.jpg").exists()


# Full disks


# the installation that CI counts faults in has no Spark: its own stage runs that road
ROADS = [
    *(pytest.param(kind, marks=pytest.mark.fault("H41")) for kind in ("files", "shards", "hosted", "inodes")),
    "pyspark",
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROADS)
def test_a_full_disk_ends_with_its_code_and_goes_on(
    kind: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "pyspark" and find_spec(kind) is None:
        pytest.skip("pyspark is not installed")
    web = WebList(server)
    for number in range(60):
        web.add(picture(number, 160))
    annotation = web.write(tmp_path / "l.json")
    with small_disk(tmp_path / "disk", 4 << 20, inodes=400) as disk:
        spec = {
            "output": "shards" if kind in ("shards", "pyspark") else "files",
            "samples_per_shard": 30,
            "image_size": 160,
        }
        how = {"distributor": kind, "processes": 2} if kind == "pyspark" else {}
        job = make_job(disk.path / "family", annotation, spec=spec, passes=0, **how)
        engine: Fetch = fetch_hosted if kind in ("hosted", "inodes") else fetch_list
        if kind == "inodes":
            disk.use_up_inodes(leave=35)
        else:
            disk.fill(leave=700_000)
        begun = time.monotonic()
        with pytest.raises(DiskError) as caught:
            engine(job)
        assert caught.value.exit_code == 6 and time.monotonic() - begun < 150  # rows are not waited for
        disk.relieve()
        with passes_here(monkeypatch) if kind in ("files", "shards") else nullcontext():
            account = engine(job)
        assert (account.present, account.error) == (60, None)
        if kind in ("shards", "pyspark"):
            assert ids(job.target) == sorted(web.good)
        else:
            assert all((job.target / Path(id).name).read_bytes() == web.bodies[id] for id in web.good)


@pytest.mark.fault("H41")
@pytest.mark.parametrize("leave", [0, 4096, 16_384])
def test_a_disk_that_is_full_from_the_start(leave: int, server: Server, tmp_path: Path, orders: Orders) -> None:
    """Before the process that downloads is started: tables, markers, the account."""
    web = WebList(server)
    web.fill(3)
    annotation = web.write(tmp_path / "l.json")
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        disk.fill(leave=leave)
        for engine in (fetch_list, fetch_hosted):
            with pytest.raises(DiskError) as caught:
                engine(make_job(disk.path / "family", annotation, spec={"output": "files"}))
            assert caught.value.exit_code == 6
            shutil.rmtree(disk.path / "family", ignore_errors=True)


def deaf() -> None:
    """As on another machine: nothing that is written to standard error reaches who watches."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@pytest.mark.fault("H41")
@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_on_another_machine_is_told_by_what_the_work_gives(
    full: bool, server: Server, tmp_path: Path, orders: Orders
) -> None:
    web = WebList(server)
    for number in range(20):
        web.add(picture(number, 160))
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        job = shards_job(disk.path / "family", web.write(tmp_path / "l.json"), passes=0)
        fetch_list(job)  # for its tables
        order = replace(orders[0], done=[], out=str(disk.path / "out"))
        Path(order.out).mkdir()
        columns = [ROW, ID, PATH, *order.keep, "caption", "url"]
        shards = list(read_shards(order, columns))
        disk.fill(leave=0 if full else 2 << 20)
        with ProcessPoolExecutor(1, get_context("spawn"), deaf) as pool:
            work = partial(run_elsewhere, pool.map, make_downloader(order, columns), iter(shards))
            with pytest.raises(OSError) if full else nullcontext() as caught:
                work()
    assert caught is None or (caught.value.errno == errno.ENOSPC and str(disk.path) in caught.value.filename)


# Processes that die or hang


def light_work(folder: Path, shard: tuple[int, str]) -> bool:
    """A stand-in for the downloader of a shard: one of them is killed, as when memory runs out."""
    if shard[0] == 2 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{shard[0]}.done").touch()
    return True


@pytest.mark.fault("H51")
def test_a_killed_child_costs_its_shard_and_no_wait(tmp_path: Path) -> None:
    begun = time.monotonic()
    run_processes(2, partial(light_work, tmp_path), iter([(n, "") for n in range(5)]))
    assert sorted(path.stem for path in tmp_path.glob("*.done")) == ["0", "1", "3", "4"]
    assert time.monotonic() - begun < 120


@pytest.mark.fault("H51")
@pytest.mark.parametrize("deaths", [1, 3])
def test_the_rows_of_a_shard_that_was_lost_are_asked_for_again(
    deaths: int,
    server: Server,
    tmp_path: Path,
    orders: Orders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where one after the other dies, as long as shards get done in between."""
    web = flaky(server, 40, set())
    job = shards_job(tmp_path, web.write(tmp_path / "l.json"), restarts=1)

    def dies(path: Path, stall: float, measure: Callable[[], object]) -> str:
        order = PassOrder.read(path)
        left = [n for n in range(4) if n not in order.done]
        orders.append(order)
        run_pass(replace(order, done=[*order.done, *left[1:]]) if len(orders) <= deaths else order)
        measure()
        return "done"

    monkeypatch.setattr(run, "run_worker", dies)
    assert fetch_list(job).present == 40 and len(server.log) == 40 and len(orders) == deaths + 1


@pytest.mark.parametrize("output", ["files", "shards"])
@pytest.mark.parametrize("fault", [Fault(flip_at=900), Fault(extra=b"x" * 20), Fault(lengthless=True, cut_at=600)])
def test_an_image_that_is_not_what_the_mirror_s_manifest_says_is_asked_for_again(
    output: str, fault: Fault, server: Server, tmp_path: Path, orders: Orders
) -> None:
    """Each of them can be decoded, or might have been so at the host."""
    bodies, rows = [picture(number) for number in range(4)], []
    for number, body in enumerate(bodies):
        rows.append({"image": f"{number}.jpg", "caption": "x", "url": f"https://h.example/{number}.jpg"})
        server.put(f"/h.example/{number}.jpg", body)
    server.script("/h.example/1.jpg", replace(fault, times=1))
    server.script("/h.example/2.jpg", fault)
    files = {f"h.example/{n}.jpg": {"size": len(b), "sha256": sha(b)} for n, b in enumerate(bodies)}
    server.put("/manifest.json", json.dumps({"format": 1, "equivalence": "subset", "files": files}).encode())
    (tmp_path / "l.json").write_text(json.dumps(rows))
    spec = {"output": output, "image_size": 48, "samples_per_shard": 2}
    job = make_job(tmp_path, tmp_path / "l.json", spec=spec, mirrors=MirrorMap(server.base, QUICK))
    account = fetch_list(job)
    assert (account.present, account.reasons, account.passing) == (3, {Passing.ALTERED.value: 1}, True)
    server.faults.clear()
    assert fetch_list(job).present == 4
    if output == "files":
        assert [(job.target / f"{n}.jpg").read_bytes() for n in range(4)] == bodies
    else:
        assert sorted(record["sha256"] for record in records(job.target)) == sorted(sha(body) for body in bodies)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.slow
@pytest.mark.fault("W11")
def test_a_hang_costs_its_rows_only(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = WebList(server)
    for number in range(10):
        web.add(picture(number), *([Fault(latency=80)] if number == 4 else []))
    hanging = {"timeout": 60.0, "deadline": 90.0, "stall": 2.0, "restarts": 0, "passes": 0}
    job, ticks = make_job(tmp_path, web.write(tmp_path / "l.json"), **hanging), count()

    def hangs(order: Path, stall: float, measure: Callable[[], tuple[int, ...]]) -> str:
        """The stall begins where all others are there: img2dataset's start takes long beside other work."""

        def progress() -> tuple[int, ...]:
            return (*measure(), 0 if len(list(job.target.glob("*.jpg"))) == 9 else next(ticks))

        return run_worker(order, stall, progress)

    monkeypatch.setattr(run, "run_worker", hangs)
    account = fetch_list(job)
    assert (account.present, account.missing, account.reasons) == (9, 1, {"unfinished": 1})


@pytest.mark.fault("W06")
@pytest.mark.parametrize(("kind", "code"), [("dead", 8), ("refused", 4)])
def test_a_shard_in_which_nothing_came_is_empty_and_no_success(
    kind: str,
    code: int,
    server: Server,
    tmp_path: Path,
    orders: Orders,
) -> None:
    web = WebList(server)
    for number in range(12):
        web.add(picture(number), Fault(status=404), url="" if kind == "dead" else f"http://127.0.0.1:9/{number}.jpg")
    job = shards_job(tmp_path, web.write(tmp_path / "l.json"), threshold=0.0)
    for _ in range(2):  # nor does a second run take it for one
        account = fetch_list(job)
        assert account.error is not None and account.error.exit_code == code
        assert isinstance(account.error, PartialError if code == 8 else NetworkError) and account.present == 0
        assert {manifest.samples for tar in job.target.glob("*.tar") if (manifest := ShardManifest.read(tar))} == {0}
    for number in range(12):
        server.faults[f"/photos/{number}/img_{number:04d}.jpg"] = []


CARD = """
family: pairs
title: Pairs
homepage: https://lists.example
licence: none
artifacts:
  rows:
    url: https://lists.example/rows.json
    storage: pairs/rows.json
    lists: {storage: pairs, engine: img2dataset, output: shards, samples_per_shard: 10, image_size: 32, id_key: image}
"""
DATASET = """
datasets:
  pairs:
    builder: image_text_shards
    build_info: {images: {artifacts: {train: [rows]}}, storage: "pairs/*.tar"}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "codes"),
    [
        pytest.param(signal.SIGKILL, {-9}, marks=pytest.mark.fault("W04")),
        pytest.param(signal.SIGINT, {130}, marks=pytest.mark.fault("W14")),
    ],
)
def test_ended_while_packing_finished_shards_stay(
    how: signal.Signals, codes: set[int], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": f"{n}.jpg", "caption": "x", "url": f"http://photos.example/{n}.jpg"} for n in range(40)]
    server.put("/lists.example/rows.json", json.dumps(rows).encode())
    for n in range(40):
        server.put(f"/photos.example/{n}.jpg", picture(n))
        server.script(f"/photos.example/{n}.jpg", *[Fault(latency=250.0)] * (n > 20))
    (tmp_path / "cfg/datasets/pairs").mkdir(parents=True)
    (tmp_path / "cfg/datasets/pairs/artifacts.yaml").write_text(CARD)
    (tmp_path / "cfg/datasets/pairs/defaults.yaml").write_text(DATASET)
    around = {"LAVIS_EXT_CONFIGS": str(tmp_path / "cfg"), "LAVIS_EXT_MIRROR": server.base}
    for name, value in {**around, "LAVIS_EXT_CACHE_ROOT": str(tmp_path / "root"), "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    words = ["prepare", "pairs", "--processes", "1"]
    command = [sys.executable, "-m", "lavis_ext", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    place = tmp_path / "root/pairs"
    ends = {"00000_stats.json", "00001_stats.json"}  # what a pass writes last of a shard; they get their names after it
    assert wait_until(lambda: ends <= {name for *_, names in os.walk(tmp_path / "root") for name in names}, 120)
    below = descendants(process.pid)
    process.send_signal(how)
    assert process.wait(60) in codes
    assert wait_until(lambda: all_ended(below)), "a process that downloads is left"
    since = len(server.log)
    server.faults.clear()
    assert set(tars(place)) <= {"00000.tar", "00001.tar"} and not list(place.glob("*.part"))
    with passes_here(monkeypatch):
        assert main(words) == 0
    assert ids(place) == sorted(row["image"] for row in rows)
    again = [path for path in asked(server, since) if path.startswith("/photos")]
    assert {f"/photos.example/{n}.jpg" for n in range(20)}.isdisjoint(again)


# Bookkeeping that is damaged is a cache that is made again


GARBAGE = [b"", b"[" * 100_000, b'{"format": 2, "a": 1}', b"PAR1\xff"]


@pytest.mark.fault("H35")
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("output", ["shards", "files"])
def test_bookkeeping_of_a_list_that_cannot_be_read(
    output: str, garbage: bytes, server: Server, tmp_path: Path, orders: Orders
) -> None:
    laion(server, 10)
    for n in (2, 6):
        server.script(f"/photos.example/{n}.jpg", Fault(times=1, status=503))
    cards = small_shards(output=output, path="{URL.name}", storage="laion_coco/made")
    wanted = options(server, tmp_path)
    assert prepare(["laion_coco"], wanted, cards=cards).exit_code == 0
    place = tmp_path / "laion_coco/made"
    kept = {path.name: path.read_bytes() for path in place.iterdir() if path.suffix in (".tar", ".jpg")}
    found = (path for path in (tmp_path / "laion_coco/.lavis_ext").rglob("*") if path.name != "ledger.jsonl")
    files = [path for path in found if path.is_file()]
    files += sorted(place.glob("*.json"))
    assert len(files) > 10
    for path in files:
        if not path.exists():
            continue
        path.write_bytes(garbage)
        status(["laion_coco"], wanted, cards)
        (tmp_path / "laion_coco/.lavis_ext/lists/metadata/account.json").unlink(missing_ok=True)  # it is all read
        report = prepare(["laion_coco"], wanted, cards=cards)
        assert report.exit_code == 0, (path, report.lines())
        if output == "shards":
            assert ids(place) == [str(n) for n in range(10)], path
        else:
            assert {name: (place / name).read_bytes() for name in kept} == kept
        assert verify(["laion_coco"], options=wanted, cards=cards).exit_code == 0, path
