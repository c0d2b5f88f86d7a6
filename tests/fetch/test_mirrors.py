"""The mirror map: where an original lies, what a manifest may say, and no way back to the internet."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.errors import ConfigError, NetworkError, UnsafeError
from lavis_ext.fetch import MirrorMap, Source, Transfer, fetch
from lavis_ext.fetch.backends import local_path
from lavis_ext.fetch.mirrors import mirror_path, parse_manifest
from tests.support.fetching import FAST
from tests.support.server import Server, payload

ORIGINAL = "http://images.cocodataset.org/zips/val2014.zip"
PLACES = {
    ORIGINAL: "images.cocodataset.org/zips/val2014.zip",
    "https://user:pw@h.org:8443/a/b.json?x=1": "h.org:8443/a/b.json",
    "https://acc.blob.core.windows.net/box/dir/f.tsv?sv=1&sig=s": "acc.blob.core.windows.net/box/dir/f.tsv",
    "azure:acc/box/dir/f.tsv": "acc.blob.core.windows.net/box/dir/f.tsv",
    "gdrive:1AbC-d_e": "drive.google.com/1AbC-d_e",
    "https://drive.google.com/uc?id=1AbC&export=download": "drive.google.com/1AbC",
    "https://drive.google.com/file/d/1AbC/view?usp=sharing": "drive.google.com/1AbC",
    "hf:datasets/o/n/dir/f.zip": "huggingface.co/datasets/o/n/resolve/main/dir/f.zip",
    "hf:datasets/o/n@abc/f.zip": "huggingface.co/datasets/o/n/resolve/abc/f.zip",
    "hf:o/n/model.safetensors": "huggingface.co/o/n/resolve/main/model.safetensors",
}


@pytest.mark.parametrize(("url", "place"), PLACES.items())
def test_where_a_mirror_keeps_an_original(url: str, place: str) -> None:
    assert mirror_path(url) == place
    mirror = MirrorMap("http://127.0.0.1:1/base/", FAST)
    assert mirror.locate(url) == f"http://127.0.0.1:1/base/{place}"
    assert mirror.locate(mirror.locate(url)) == mirror.locate(url)
    assert MirrorMap().locate(url) == url


def manifest(equivalence: str, files: dict[str, bytes]) -> bytes:
    listed = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return json.dumps({"format": 1, "equivalence": equivalence, "files": listed}).encode()


def test_folder_without_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = payload(10_000)
    place = tmp_path / "mirror" / "images.cocodataset.org" / "zips"
    place.mkdir(parents=True)
    (place / "val 2014.zip").write_bytes(data)
    monkeypatch.setenv("LAVIS_EXT_MIRROR", str(tmp_path / "mirror"))
    mirror = MirrorMap.from_environment()
    assert mirror and not mirror.is_subset and mirror.lists("https://anything/at/all")
    original = Source("http://images.cocodataset.org/zips/val%202014.zip")
    moved = mirror.apply(Transfer(tmp_path / "out.bin", (original,), len(data)))
    assert fetch(moved, replace(FAST, offline=True)).bytes_moved == len(data)  # a folder is no network
    with pytest.raises(UnsafeError, match="leaves its folder"):
        mirror.locate("https://h.org/../../etc/passwd")


def test_what_the_mirror_lacks_is_named_and_never_fetched_elsewhere(
    server: Server, second: Server, tmp_path: Path
) -> None:
    data = payload(1000)
    lacking = Transfer(tmp_path / "x.bin", (Source(second.put("/x.bin", data)),), len(data))
    with pytest.raises(NetworkError, match=r"x\.bin.*404"):
        fetch(MirrorMap(server.base, FAST).apply(lacking), FAST)
    server.put("/manifest.json", manifest("byte_exact", {}))
    with pytest.raises(NetworkError, match=rf"lacks 127\.0\.0\.1:{second.port}/x\.bin"):
        MirrorMap(server.base, FAST).apply(lacking)
    assert not second.log


def test_subset_figures_stand_in(server: Server, tmp_path: Path) -> None:
    small = payload(5000)
    place = mirror_path(ORIGINAL)
    server.put(f"/{place}", small)
    server.put("/manifest.json", manifest("subset", {place: small}))
    mirror = MirrorMap(server.base, FAST)
    full = Transfer(
        tmp_path / "val.bin", (Source("https://other/x"), Source(ORIGINAL)), 6_645_013_297, "0" * 64, "1" * 32
    )
    moved = mirror.apply(full)
    assert mirror.is_subset and mirror.lists(ORIGINAL) and not mirror.lists("https://other/x")
    assert [source.url for source in moved.sources] == [server.url(f"/{place}")]
    result = fetch(moved, FAST)
    assert (result.equivalence, result.verified, moved.path.read_bytes()) == ("subset", True, small)
    assert fetch(moved, FAST).reused


def test_exact_manifest_fills_in_what_is_not_declared(server: Server, tmp_path: Path) -> None:
    data = payload(5000)
    server.put("/h.org/a.bin", data)
    server.put("/manifest.json", manifest("byte_exact", {"h.org/a.bin": data}))
    moved = MirrorMap(server.base, FAST).apply(Transfer(tmp_path / "a.bin", (Source("https://h.org/a.bin"),)))
    assert fetch(moved, FAST).verified


BAD = {
    "not JSON": b"{",
    "format 1": b'{"format": 2, "files": {}}',
    "equivalence": b'{"format": 1, "equivalence": "same", "files": {}}',
    "files.h/x": b'{"format": 1, "equivalence": "subset", "files": {"h/x": {"size": true, "sha256": ""}}}',
    "64 hexadecimal": b'{"format": 1, "equivalence": "subset", "files": {"h/x": {"size": 1, "sha256": "AB"}}}',
    "leading slashes": b'{"format": 1, "equivalence": "subset", "files": {"/x": {}, "h/../y": {}}}',
    "an object": b'{"format": 1, "equivalence": "subset", "files": {"h/x": 3}}',
}


@pytest.mark.parametrize("problem", BAD)
def test_wrong_manifest_entries(problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_manifest(BAD[problem], "manifest.json")


def test_mirror_of_another_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither http"):
        MirrorMap.from_environment("ftp://user:secret@host/x")
    assert not MirrorMap.from_environment("")


def test_a_mirror_without_a_manifest_gives_no_digest(tmp_path: Path) -> None:
    mirror = MirrorMap(str(tmp_path))
    assert mirror.digest(mirror.locate("https://h.example/a.jpg")) is None and MirrorMap().digest("https://h/a") is None


def test_a_mirror_that_is_no_folder_is_told_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(tmp_path / "none")
    monkeypatch.setenv("LAVIS_EXT_MIRROR", missing)
    for option, where in ((None, "LAVIS_EXT_MIRROR"), (missing, f"--mirror {missing}")):
        with pytest.raises(ConfigError) as caught:
            MirrorMap.from_environment(option)
        assert caught.value.problems[0].where == where


def test_a_path_is_taken_as_it_is_and_a_file_url_is_decoded() -> None:
    assert local_path("/data/a%20b#c?d") == Path("/data/a%20b#c?d")
    assert local_path("file:///data/a%20b") == local_path("file://localhost/data/a%20b") == Path("/data/a b")


@pytest.mark.parametrize("text", ["gdrive:1a2b3c" * 25, "/x/" * 2000, "a\0b", "half \ud800"])
def test_a_folder_that_no_disk_can_hold_is_no_mirror(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MirrorMap.from_environment(text)
    assert caught.value.exit_code == 3
