"""A list of the open web from end to end: every sample accounted for, whatever happened to it."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lavis_ext.common.errors import ConfigError, NetworkError, PartialError
from lavis_ext.fetch import MirrorMap
from lavis_ext.prepare.urls import ListAccount, ListJob, fetch_list, read_account, run
from lavis_ext.prepare.urls.shards import ShardManifest, shard_path
from lavis_ext.prepare.urls.worker import PassOrder
from tests.support.server import Fault, Server
from tests.support.weblist import WebList, make_job, picture

Orders = list[PassOrder]


def losses(account: ListAccount) -> dict[str, str]:
    assert account.lost is not None
    with account.lost.open(encoding="utf-8", newline="") as file:
        return {line["id"]: line["reason"] for line in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def keys_of(tar: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            stem, _, suffix = member.name.partition(".")
            assert suffix not in found.setdefault(stem, {})
            found[stem][suffix] = file.read()
    return found


def samples_of(job: ListJob) -> dict[str, dict[str, bytes]]:
    """Every sample of all shards by id; each must be there once."""
    found: dict[str, dict[str, bytes]] = {}
    for tar in sorted(job.target.glob("*.tar")):
        for members in keys_of(tar).values():
            id = json.loads(members["json"])["list_id"]
            assert id not in found
            found[id] = members
    return found


def test_two_hundred_rows_as_files(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    web.fill(200)
    job = make_job(tmp_path, web.write(tmp_path / "sbu.json"))
    account = fetch_list(job)
    assert (account.expected, account.present, account.missing, account.corrupt) == (200, 150, 30, 20)
    assert losses(account) == {id: fate for id, fate in web.fates.items() if fate}
    assert {f"sbu/{path.name}" for path in job.target.iterdir()} == set(web.good)
    assert all((job.target / Path(id).name).read_bytes() == web.bodies[id] for id in web.good)
    assert account.error is None and read_account(job.work) == account
    retried = [sum(seen.path == f"/photos/{n}/img_{n:04d}.jpg" for seen in server.log) for n in range(200)]
    assert retried == [2 if n % 20 in (13, 15) else 1 for n in range(200)]
    assert [order.first_shard for order in orders] == [0, 4]


def test_second_run_asks_nobody(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    web.fill(20)
    job = make_job(tmp_path, web.write(tmp_path / "sbu.json"))
    first = fetch_list(job)
    asked, ran = len(server.log), len(orders)
    again = fetch_list(job)
    assert (len(server.log), len(orders)) == (asked, ran)
    assert replace(again, bytes_moved=first.bytes_moved) == first


def test_lost_file_comes_back_and_dead_links_are_left_alone(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    web.fill(20)
    job = make_job(tmp_path, web.write(tmp_path / "sbu.json"))
    fetch_list(job)
    asked = len(server.log)
    (job.target / "img_0002.jpg").unlink()
    assert fetch_list(job).present == 15
    assert [seen.path for seen in server.log[asked:]] == ["/photos/2/img_0002.jpg"]


def test_files_that_are_there_are_kept_and_pages_among_them_set_aside(
    server: Server, tmp_path: Path, orders: Orders
) -> None:
    web = WebList(server)
    web.fill(3)
    job = make_job(tmp_path, web.write(tmp_path / "sbu.json"))
    job.target.mkdir()
    (job.target / "img_0000.jpg").write_bytes(picture(77))
    (job.target / "img_0001.jpg").write_bytes(b"<html>gone</html>")
    (job.target / "img_0002.jpg").write_bytes(b"")
    (job.target / ".img_0002.jpg.99.part").write_bytes(b"half")
    assert fetch_list(job).present == 3
    assert (job.target / "img_0000.jpg").read_bytes() == picture(77)
    assert (job.target / "img_0001.jpg").read_bytes() == picture(1)
    assert (job.target / ".lavis_ext/set_aside/img_0001.jpg").read_bytes() == b"<html>gone</html>"
    assert len(server.log) == 2 and not list(job.target.glob(".*.part"))


def test_rows_that_may_not_be_asked(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    web.fill(3)
    web.add(b"", url="file:///etc/passwd", fate="refused: scheme 'file' is refused")
    web.add(b"", url="data:image/png;base64,AAAA", fate="refused: scheme 'data' is refused")
    web.add(b"", url=" ", fate="no URL")
    web.add(b"", Fault(redirect="file:///etc/passwd"), fate="refused: redirect to scheme 'file'")
    account = fetch_list(make_job(tmp_path, web.write(tmp_path / "sbu.json"), threshold=0.1))
    assert losses(account) == {id: fate for id, fate in web.fates.items() if fate}
    assert (account.expected, account.present, account.missing) == (7, 3, 4)


def test_inside_addresses_are_refused_in_the_worker_too(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    for host in ("127.0.0.1", "2130706433", "0x7f.0.0.1"):  # the last two pass for names
        web.add(b"", url=f"http://{host}:{server.port}/a.jpg")
    job = make_job(tmp_path, web.write(tmp_path / "sbu.json"))
    account = fetch_list(replace(job, policy=replace(job.policy, allow_private=False)))
    assert account.present == 0 and server.log == []
    assert all(reason.startswith("refused: private address") for reason in losses(account).values())
    with pytest.raises(PartialError, match="refused"):
        account.check()


def test_nothing_came(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    web.add(b"", url="http://127.0.0.1:9/a.jpg")
    account = fetch_list(make_job(tmp_path, web.write(tmp_path / "sbu.json"), threshold=0.0))
    assert isinstance(account.error, NetworkError) and account.error.exit_code == 4
    web.add(picture(1), Fault(status=404))
    account = fetch_list(make_job(tmp_path, web.write(tmp_path / "sbu.json")))
    assert isinstance(account.error, PartialError) and account.error.exit_code == 8
    assert account.reasons == {"connection": 1, "HTTP 404": 1}


def test_below_the_threshold(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    web.fill(20)
    account = fetch_list(make_job(tmp_path, web.write(tmp_path / "sbu.json"), threshold=0.9))
    with pytest.raises(PartialError, match=r"15 of 20 images are there \(75.0%\)"):
        account.check()


def test_list_without_rows_and_without_urls(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(ConfigError, match="lists no image"):
        fetch_list(make_job(tmp_path, tmp_path / "empty.json"))
    (tmp_path / "other.json").write_text('[{"link": "http://h.example/1.jpg"}]')
    with pytest.raises(ConfigError, match="url_key"):
        fetch_list(make_job(tmp_path, tmp_path / "other.json"))


def test_without_img2dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install"):
        fetch_list(make_job(tmp_path, tmp_path / "sbu.json"))


def test_max_samples_and_repeated_rows(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    web.fill(3)
    web.rows.insert(1, web.rows[0])
    account = fetch_list(make_job(tmp_path, web.write(tmp_path / "sbu.json"), max_samples=3))
    assert (account.expected, account.present, len(server.log)) == (2, 2, 2)
    assert any("earlier row" in note for note in account.notes)


def test_from_a_mirror(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    web.add(picture(1), url="https://photos.example/1/a.jpg?size=big")
    server.put("/photos.example/1/a.jpg", picture(1))
    job = make_job(tmp_path, web.write(tmp_path / "sbu.json"), mirrors=MirrorMap(server.base))
    assert fetch_list(job).present == 1 and len(server.requests("/photos.example/1/a.jpg")) == 1


def shards_job(folder: Path, annotation: Path, **changes: object) -> ListJob:
    spec = {"output": "shards", "image_size": 32, "keep": ["all_captions", "all_similarities"], "samples_per_shard": 10}
    return make_job(folder, annotation, spec=spec, **changes)


def with_captions(web: WebList) -> WebList:
    for number, row in enumerate(web.rows):
        row |= {"all_captions": [f"caption {number}", "other"], "all_similarities": [0.3, 0.1]}
    return web


def test_shards_with_manifests(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    web.fill(40)
    job = shards_job(tmp_path, with_captions(web).write(tmp_path / "laion.json"))
    account = fetch_list(job)
    samples = samples_of(job)
    assert set(samples) == set(web.good) and account.present == account.samples == len(web.good) == 30
    assert [tar.name for tar in sorted(job.target.glob("*.tar"))] == [f"0000{n}.tar" for n in range(5)]
    for tar in job.target.glob("*.tar"):
        manifest, keys = ShardManifest.read(tar), list(keys_of(tar))
        assert manifest and (manifest.samples, manifest.bytes) == (len(keys), tar.stat().st_size)
        assert (manifest.first_key, manifest.last_key) == (keys[0], keys[-1])
    one = samples["sbu/img_0000.jpg"]
    assert Image.open(io.BytesIO(one["jpg"])).size == (32, 32) and one["txt"] == b"picture 0"
    fields = json.loads(one["json"])
    assert (fields["all_captions"], fields["all_similarities"]) == (["caption 0", "other"], [0.3, 0.1])


def test_longer_list_keeps_every_shard(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    for number in range(25):
        web.add(picture(number))
    annotation = with_captions(web).write(tmp_path / "laion.json")
    fetch_list(shards_job(tmp_path, annotation, max_samples=15))
    job = shards_job(tmp_path, annotation)
    before = [ShardManifest.read(shard_path(job.target, number)) for number in range(2)]
    account = fetch_list(job)
    assert len(samples_of(job)) == account.present == 25 and account.shards == 3
    assert [ShardManifest.read(shard_path(job.target, number)) for number in range(2)] == before
    assert orders[1].first_shard == 2 and not (job.target / ".lavis_ext/set_aside").exists()
    assert account.notes == ["the list grew since the last run"] and len(server.log) == 25


def test_changed_rows_are_noticed_by_their_hash(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    for number in range(20):
        web.add(picture(number))
    job = shards_job(tmp_path, with_captions(web).write(tmp_path / "laion.json"))
    fetch_list(job)
    web.rows[12]["caption"] = "another"
    fetch_list(shards_job(tmp_path, web.write(tmp_path / "laion.json")))
    assert [order.done for order in orders] == [[], [0]]
    assert samples_of(job)["sbu/img_0012.jpg"]["txt"] == b"another"


def test_another_mirror_changes_no_shard(server: Server, second: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    for number in range(10):
        web.add(picture(number), url=f"http://photos.example/{number}.jpg")
        server.put(f"/photos.example/{number}.jpg", picture(number))
    annotation = with_captions(web).write(tmp_path / "laion.json")
    assert fetch_list(shards_job(tmp_path, annotation, mirrors=MirrorMap(server.base))).present == 10
    account = fetch_list(shards_job(tmp_path, annotation, mirrors=MirrorMap(second.base)))
    assert account.present == 10 and account.notes == [] and len(orders) == 1 and second.log == []


@pytest.mark.parametrize("harm", ["cut", "gone", "no manifest"])
def test_damaged_shard_alone_is_made_again(harm: str, server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    for number in range(20):
        web.add(picture(number))
    job = shards_job(tmp_path, with_captions(web).write(tmp_path / "laion.json"))
    fetch_list(job)
    tar = shard_path(job.target, 1)
    if harm == "cut":
        tar.write_bytes(tar.read_bytes()[:4096])
    elif harm == "gone":
        tar.unlink()
    else:
        tar.with_suffix(".manifest.json").unlink()
    assert fetch_list(job).present == 20 and len(samples_of(job)) == 20
    assert len(orders) == (1 if harm == "no manifest" else 2) and orders[-1].done in ([0], [])
    assert (job.target / ".lavis_ext/set_aside/00001.0.tar").exists() == (harm == "cut")


def test_a_shard_that_is_made_again_leaves_out_what_a_later_one_has(
    server: Server, tmp_path: Path, orders: Orders
) -> None:
    web = WebList(server)
    for number in range(20):
        web.add(picture(number), *([Fault(times=1, status=503)] if number == 12 else []))
    job = shards_job(tmp_path, with_captions(web).write(tmp_path / "laion.json"))
    assert fetch_list(job).present == 20 and len(samples_of(job)) == 20
    assert (job.work / run.PULSE).is_file(), "by its time others see that this list moves"
    shard_path(job.target, 1).unlink()
    assert fetch_list(job).present == 20 and len(samples_of(job)) == 20


def test_all_of_a_shard_fails(server: Server, tmp_path: Path, orders: Orders) -> None:
    web = WebList(server)
    for number in range(20):
        web.add(picture(number), *([Fault(status=404)] if number < 10 else []))
    job = shards_job(tmp_path, with_captions(web).write(tmp_path / "laion.json"), threshold=0.6)
    account = fetch_list(job)
    manifest = ShardManifest.read(shard_path(job.target, 0))
    assert manifest and manifest.samples == 0 and account.samples == 10
    assert isinstance(account.error, PartialError)


def test_what_earlier_versions_left_is_continued(server: Server, tmp_path: Path, orders: Orders) -> None:
    """Without what accounts, tables and manifests say today: nothing is asked for, nothing is set aside."""
    web = WebList(server)
    web.fill(20)
    annotation = with_captions(web).write(tmp_path / "laion.json")
    job = shards_job(tmp_path, annotation)
    fetch_list(job)
    today = {"account.json": ("origin", "repeated"), "tables.json": ("limit", "image_size")}
    today |= {path.name: ("crcs",) for path in job.target.glob("*.manifest.json")}
    for path in [*job.work.rglob("*.json"), *job.target.glob("*.json")]:
        if path.name in today:
            kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in today[path.name]}
            path.write_text(json.dumps(kept))
    asked, before = len(server.log), {tar.name: tar.read_bytes() for tar in job.target.glob("*.tar")}
    assert read_account(job.work) is not None
    account = fetch_list(job)
    assert account.present == 15 and account.origin and len(server.log) == asked and len(orders) == 2
    web.fill(40)
    account = fetch_list(shards_job(tmp_path, with_captions(web).write(annotation)))
    assert account.present == 30 and {name: (job.target / name).read_bytes() for name in before} == before
    assert set(samples_of(job)) == set(web.good)
