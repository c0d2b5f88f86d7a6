"""`--engine azcopy`, with a stand-in for it: it is told no token, and what it brings is judged like anything else."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lavis_ext.cards import Artifact, Blob, Card, Cards, Folder
from lavis_ext.errors import UsageError
from lavis_ext.fetch import Session
from lavis_ext.fetch.relay import Relay
from lavis_ext.prepare import PrepareOptions, Report, prepare
from lavis_ext.prepare.azcopy import environment, last_words
from tests.support.azure import ACCOUNT, CANARY, Azure, Refusal, traces
from tests.support.fetching import FAST
from tests.support.server import Fault, payload
from tests.support.toyfamily import tree

FILES = {"a.tsv": payload(300_000), "tags/b c.json": b"{}"}
FAKE = """#!{python}
import json, os, pathlib, sys, urllib.request
here = pathlib.Path({folder!r})
with (here / "seen.txt").open("a") as log:
    log.write(json.dumps([sys.argv, dict(os.environ)]) + chr(10))
verb, url, target = sys.argv[1:4]
def ask(method, **headers):
    request = urllib.request.Request(url, method=method, headers=headers)
    return urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(request)
try:
    head = ask("HEAD")
    size, data = int(head.headers["Content-Length"]), b""
    while len(data) < size:
        asked = f"bytes={{len(data)}}-{{min(size, len(data) + 100000) - 1}}"
        data += ask("GET", **{{"x-ms-range": asked, "If-Match": head.headers["ETag"]}}).read()
except Exception as error:
    print(json.dumps({{"MessageType": "Error", "MessageContent": f"failed at {{url}}: {{error}}"}}))
    sys.exit(1)
pathlib.Path(target).write_bytes(data)
"""


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """A folder in a container, and a stand-in of azcopy on the PATH."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "azcopy"
    program.write_text(FAKE.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    with Azure() as running:
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setenv("LAVIS_EXT_AZURE_ENDPOINT", running.base)
        monkeypatch.setenv("LAVIS_EXT_AZURE_SAS_BOX", running.offer("box", {f"f/{n}": d for n, d in FILES.items()}))
        yield running


def get(folder: Path, size: int = len(FILES["a.tsv"])) -> Report:
    """Prepare the folder through azcopy."""
    files = {"a.tsv": Blob(size=size), "tags/b c.json": Blob()}
    artifact = Artifact(
        name="feats", family="toy", url=f"azure:{ACCOUNT}/box/f", storage="toy/f", folder=Folder(files=files)
    )
    cards = Cards({"toy": Card(family="toy", artifacts={"feats": artifact})})
    options = PrepareOptions(cache_root=folder / "root", policy=FAST, reserve=0, mirror="", engine="azcopy")
    return prepare(["toy/feats"], options, cards=cards)


def test_s05_blobs_come_and_azcopy_is_told_no_token(azure: Azure, tmp_path: Path) -> None:
    report = get(tmp_path)
    assert report.exit_code == 0 and report.count("downloaded") == 2
    assert report.bytes_moved == sum(map(len, FILES.values())) and tree(tmp_path / "root/toy/f") == FILES
    seen = (tmp_path / "seen.txt").read_text()
    assert seen.count("\n") == 2 and "AZCOPY_LOG_LOCATION" in seen and "http://127.0.0.1" in seen
    assert "sig=" not in seen and "LAVIS_EXT_AZURE_SAS" not in seen and traces(CANARY, tmp_path) == []
    assert all(query.endswith(CANARY) for query in azure.queries)
    assert get(tmp_path).bytes_moved == 0


def test_what_it_brings_is_judged_like_anything_else(azure: Azure, tmp_path: Path) -> None:
    report = get(tmp_path, size=7)
    assert report.exit_code == 5 and "expected 7 bytes" in str(report.failures[0])
    assert not (tmp_path / "root/toy/f/a.tsv").exists()


def test_refusals_of_azure_are_told_in_our_words(azure: Azure, tmp_path: Path) -> None:
    azure.refusals[f"/{ACCOUNT}/box/f/a.tsv"] = Refusal("AuthenticationFailed", 100)
    report = get(tmp_path)
    assert report.exit_code == 7 and "issued for another container" in str(report.failures[0])
    assert report.count("downloaded") == 1
    azure.refusals.clear()
    assert get(tmp_path).exit_code == 0


def test_a_body_that_is_cut_fails_and_is_taken_up_again(azure: Azure, tmp_path: Path) -> None:
    azure.script(f"/{ACCOUNT}/box/f/a.tsv", Fault(cut_at=150_000))
    assert get(tmp_path).exit_code == 4
    azure.script(f"/{ACCOUNT}/box/f/a.tsv")
    assert get(tmp_path).exit_code == 0 and tree(tmp_path / "root/toy/f") == FILES


def test_an_azcopy_that_breaks_down_is_told(azure: Azure, tmp_path: Path) -> None:
    (tmp_path / "bin/azcopy").write_text(
        f"#!{sys.executable}\nprint('no such flag ?sv=1&sig=abc')\nraise SystemExit(3)"
    )
    report = get(tmp_path)
    assert report.exit_code == 4 and "azcopy ended with 3: no such flag" in str(report.failures[0])
    assert "abc" not in str(report.failures[0])


def test_without_azcopy_the_way_out_is_told(azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="not on the PATH"):
        get(tmp_path)


def test_the_door_opens_for_what_was_asked_and_nothing_else(azure: Azure) -> None:
    blob = f"azure:{ACCOUNT}/box/f/a.tsv"
    with Session(FAST) as session, Relay(session, {blob: "a"}) as relay:
        url = relay.url(blob)
        assert urllib.request.urlopen(url).read() == FILES["a.tsv"] and relay.moved[blob] == len(FILES["a.tsv"])
        for wrong in (url.replace("a.tsv", "b.tsv"), url.replace(url.split("/")[3], "0" * 32)):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(wrong)
        past = urllib.request.Request(url, headers={"Range": "bytes=300000-"})
        with pytest.raises(urllib.error.HTTPError, match="416"):
            urllib.request.urlopen(past)


def test_words_of_azcopy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_EXT_AZURE_TOKENS", "somewhere")
    assert "LAVIS_EXT_AZURE_TOKENS" not in environment(tmp_path)
    assert last_words("") == "it said nothing"
    assert last_words('{"MessageContent": "a\\n b https://h/x?sig=1"}\n') == "a b https://h/x"
