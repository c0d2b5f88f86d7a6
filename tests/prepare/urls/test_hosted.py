"""Lists of one host: transfers by names of the list, never the server's, and an account at the end."""

from __future__ import annotations

import hashlib
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.cards import ImageList
from lavis_ext.common.errors import DiskError, PartialError
from lavis_ext.fetch import MirrorMap, Policy
from lavis_ext.prepare.urls import expand_list, fetch_hosted
from tests.support.server import Fault, Server
from tests.support.weblist import QUICK, make_job, picture

NOCAPS = {
    "engine": "fetch",
    "records": "images",
    "url_key": ["coco_url"],
    "path": "val/{coco_url.name}",
    "id_key": ["id"],
}


def annotation(folder: Path, urls: list[str]) -> Path:
    path = folder / "nocaps.json"
    images = [{"id": number, "coco_url": url} for number, url in enumerate(urls)]
    path.write_text(json.dumps({"images": images, "annotations": []}))
    return path


def test_list_becomes_transfers(server: Server, tmp_path: Path) -> None:
    urls = [f"https://s3.example/val/{n:02d}.jpg" for n in (1, 2, 1)] + ["file:///etc/passwd", "https://x.example/../"]
    spec = ImageList(storage="nocaps/images", **NOCAPS)
    transfers = expand_list([annotation(tmp_path, urls)], spec, tmp_path / "images")
    assert [(t.path, t.sources[0].url, t.name) for t in transfers] == [
        (tmp_path / "images/val/01.jpg", urls[0], "val/01.jpg"),
        (tmp_path / "images/val/02.jpg", urls[1], "val/02.jpg"),
    ]
    [first] = expand_list([annotation(tmp_path, urls)], spec, tmp_path, 1, MirrorMap(server.base))
    assert first.sources[0].url == f"{server.base}/s3.example/val/01.jpg"


def test_images_come_as_they_are_and_once(server: Server, tmp_path: Path) -> None:
    bodies = [picture(n) for n in range(30)]
    urls = [server.put(f"/v/{n:02d}.jpg", body) for n, body in enumerate(bodies)]
    server.script("/v/03.jpg", Fault(times=1, cut_at=100))
    job = make_job(tmp_path, annotation(tmp_path, urls), spec=NOCAPS, threshold=1.0)
    account = fetch_hosted(job)
    account.check()
    assert (account.expected, account.present) == (30, 30)
    assert all((job.target / f"val/{n:02d}.jpg").read_bytes() == body for n, body in enumerate(bodies))
    asked = len(server.log)
    assert fetch_hosted(job).present == 30 and len(server.log) == asked


def test_only_the_images_that_are_asked_for_are_fetched(server: Server, tmp_path: Path) -> None:
    """By their names; the limit on samples then has been applied by who asks."""
    urls = [server.put(f"/v/{n}.jpg", picture(n)) for n in range(5)]
    wanted = frozenset({"1.jpg", "4.jpg"})
    job = make_job(tmp_path, annotation(tmp_path, urls), spec=NOCAPS, only=wanted, max_samples=1, threshold=1.0)
    account = fetch_hosted(job)
    assert (account.expected, account.present) == (2, 2)
    assert {path.name for path in (job.target / "val").iterdir() if path.is_file()} == wanted
    assert {seen.path for seen in server.log} == {"/v/1.jpg", "/v/4.jpg"}


def test_what_lacks_is_named(server: Server, tmp_path: Path) -> None:
    urls = [server.put(f"/v/{n}.jpg", picture(n)) for n in range(4)]
    server.script("/v/1.jpg", Fault(status=404))
    server.put("/v/2.jpg", b"<html>sorry</html>", content_type="text/html")
    job = make_job(tmp_path, annotation(tmp_path, [*urls, "ftp://a/b.jpg"]), spec=NOCAPS, threshold=1.0)
    account = fetch_hosted(job)
    assert (account.present, account.missing, account.corrupt) == (2, 2, 1)
    with pytest.raises(PartialError, match="2 of 5"):
        account.check()
    assert account.lost is not None and account.lost.read_text().splitlines()[1:] == [
        "4\tftp://a/b.jpg\trefused: scheme 'ftp' is refused\t4",
        f"1\t{urls[1]}\tHTTP 404 Not Found\t1",
        f"2\t{urls[2]}\tthe server sent an HTML page instead of 2.jpg (login, quota or error page)\t2",
    ]


def test_subset_mirror_that_lacks_some(server: Server, tmp_path: Path) -> None:
    files = {"h.example/1.jpg": picture(1)}
    entries = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    server.put("/manifest.json", json.dumps({"format": 1, "equivalence": "subset", "files": entries}).encode())
    server.put("/h.example/1.jpg", files["h.example/1.jpg"])
    urls = ["https://h.example/1.jpg", "https://h.example/2.jpg"]
    mirrors = MirrorMap(server.base, Policy(fsync=False))
    account = fetch_hosted(make_job(tmp_path, annotation(tmp_path, urls), spec=NOCAPS, mirrors=mirrors))
    assert account.present == 1 and account.reasons == {"the mirror lacks it": 1}


def test_a_folder_that_cannot_be_made_is_no_lost_image(server: Server, tmp_path: Path) -> None:
    urls = [server.put(f"/v/{n}.jpg", picture(n)) for n in range(3)]
    job = make_job(tmp_path, annotation(tmp_path, urls), spec=NOCAPS, threshold=0.0)
    job.target.mkdir(parents=True)
    (job.target / "val").write_bytes(b"mine")
    with pytest.raises(DiskError):
        fetch_hosted(job)
    assert (job.target / "val").read_bytes() == b"mine" and not (job.work / "account.json").exists()


def test_a_name_that_leads_inside_is_not_connected_to(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def leading_inside(host: str, *more: Any, **named: Any) -> Any:
        return real("127.0.0.1" if host == "photos.example" else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", leading_inside)
    path = annotation(tmp_path, [f"https://photos.example:{server.port}/v/1.jpg"])
    account = fetch_hosted(make_job(tmp_path, path, spec=NOCAPS, policy=replace(QUICK, allow_private=False)))
    [reason] = account.reasons
    assert account.present == 0 and "private address 127.0.0.1" in reason
