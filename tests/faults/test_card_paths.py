"""Cards with an address that is none, or with paths that no disk takes or that are our own: by the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.cli import main
from tests.support.server import Server

ROWS = json.dumps([{"image": "a.jpg", "caption": "x"}]).encode()


@pytest.fixture
def zoo(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`zoo(url, storage, …)` writes a card with one good artifact and this one; returns the path of it."""
    folder = tmp_path / "configs" / "datasets" / "zoo"
    folder.mkdir(parents=True)
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "configs"))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "root"))
    good = {
        "url": server.put("/good.json", ROWS),
        "storage": "zoo/good.json",
        "sha256": hashlib.sha256(ROWS).hexdigest(),
    }

    def write(url: str, storage: str, **more: Any) -> Path:
        card = {"family": "zoo", "artifacts": {"bad": {"url": url, "storage": storage, **more}, "good": good}}
        build = {
            "annotations": {"train": {"artifact": "good"}, "val": {"artifact": "bad"}},
            "images": {"storage": "zoo"},
        }
        data = {"builder": "image_caption", "data_type": "images", "build_info": build}
        (folder / "artifacts.yaml").write_text(json.dumps(card))
        (folder / "defaults.yaml").write_text(json.dumps({"datasets": {"zoo_caption": data}}))
        return folder / "artifacts.yaml"

    return write


@pytest.mark.fault("H21")
@pytest.mark.parametrize("more", [{}, {"unpack": "zip"}, {"unpack": "tar.gz"}])
@pytest.mark.parametrize(
    "url", ["https://[bad/x.zip", "http://[::1", "http://host.invalid:99999/x.zip", "http:///x.zip"]
)
def test_an_address_that_is_none_does_not_stop_the_others(
    url: str, more: dict[str, str], zoo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo(url, "zoo/bad.json" if not more else "zoo/images", **more)
    assert main(["prepare", "zoo", "--json", "--quiet"]) == 4
    assert (tmp_path / "root/zoo/good.json").read_bytes() == ROWS
    assert "not a URL" in capsys.readouterr().out
    assert [main([*verb.split(), "zoo"]) for verb in ("status", "show", "prepare --dry-run")] == [0, 0, 0]


@pytest.mark.fault("H21")
def test_a_proxy_whose_address_is_none_is_an_error_of_the_network(
    zoo: Any, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://u:c4n4ry@[bad")
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    zoo(server.put("/bad.json", ROWS), "zoo/bad.json", sha256=hashlib.sha256(ROWS).hexdigest())
    assert main(["prepare", "zoo", "--quiet"]) == 4 and main(["doctor"]) == 0
    shown = capsys.readouterr()
    assert "c4n4ry" not in shown.out + shown.err


@pytest.mark.fault("H25", "H26", "H31")
@pytest.mark.parametrize(
    "storage",
    [
        "zoo/.lavis_ext/ledger.jsonl",
        "zoo/x/.lavis_ext/y.json",
        ".lavis_ext/y.json",
        "zoo/.LAVIS_EXT/records/y.json",
        "zoo\\.lavis_ext\\y.json",
        "zoo/" + "x" * 255,
        "zoo/" + "x" * 256,
        "zoo/" + "\u00e9" * 125 + "/y.json",
        "zoo/a\0b.json",
    ],
)
def test_paths_that_cannot_be_are_refused_before_the_first_byte(
    storage: str, zoo: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = zoo(server.put("/bad.json", ROWS), storage)
    assert main(["check", str(card)]) == 3
    assert "artifacts.bad.storage" in capsys.readouterr().out
    assert main(["prepare", "zoo"]) == 3 and not server.log and not (tmp_path / "root").exists()


@pytest.mark.fault("H25")
@pytest.mark.parametrize("name", ["x" * 235 + ".json", "\u00e9" * 117 + ".json"])
def test_the_longest_storage_that_is_taken_works_throughout(
    name: str, zoo: Any, server: Server, tmp_path: Path
) -> None:
    zoo(server.put("/bad.json", ROWS), f"zoo/{name}", sha256=hashlib.sha256(ROWS).hexdigest())
    main(["prepare", "zoo"])
    assert (tmp_path / "root/zoo" / name).read_bytes() == ROWS
    assert [main([verb, "zoo"]) for verb in ("status", "verify")] == [0, 0]


@pytest.mark.fault("H21")
@pytest.mark.parametrize(
    "words", [("--max-samples", "1"), ("--source", "https://[bad/list"), ("--mirror", "http://[bad")]
)
def test_addresses_that_are_none_in_other_places(
    words: tuple[str, str], zoo: Any, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an archive that is read in pieces, of a list's own files, of the user's mirror."""
    more = {"mirrors": [{"url": "http://[::1", "equivalence": "byte_exact"}]} if words[0] == "--max-samples" else {}
    zoo("http://[bad/x.zip", "zoo", unpack="zip", **more)
    assert main(["prepare", "zoo", "--quiet", *words]) in (2, 3, 4)
    assert "internal error" not in capsys.readouterr().err
