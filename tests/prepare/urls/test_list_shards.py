"""Shards are published with a manifest that their bytes bear out, and nothing is ever deleted."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from lavis_ext.common.errors import IntegrityError
from lavis_ext.prepare.urls import shards
from lavis_ext.prepare.urls.job import Pass
from lavis_ext.prepare.urls.passes import is_complete, read_status
from lavis_ext.prepare.urls.shards import (
    ShardManifest,
    describe,
    is_published,
    manifest_path,
    publish,
    set_aside,
    shard_fault,
    shard_path,
)


def make_tar(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"data"))
    return path


def sample(key: str) -> list[str]:
    return [f"{key}.jpg", f"{key}.txt", f"{key}.json"]


def test_publish_gives_the_name_and_then_the_manifest(tmp_path: Path) -> None:
    made = make_tar(tmp_path / "made.tar", [*sample("00002"), *sample("00001")])
    tar = shard_path(tmp_path / "out", 3)
    manifest = replace(describe(made, "abc"), shard="00003")
    publish(made, tar, manifest)
    assert (manifest.samples, manifest.first_key, manifest.last_key, manifest.shard) == (2, "00002", "00001", "00003")
    assert not made.exists() and is_published(tar, "abc") and not is_published(tar, "other")
    publish(made, tar, manifest)
    assert ShardManifest.read(tar) == manifest == describe(tar, "abc")
    assert set(json.loads(manifest_path(tar).read_text())) == {
        *("shard", "bytes", "sha256", "samples", "first_key", "last_key", "input_hash", "crcs")
    }


def test_shard_without_its_manifest_is_not_published(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "00000.tar", sample("0"))
    assert not is_published(tar, "abc")
    publish(tmp_path / "gone.tar", tar, describe(tar, "abc"))
    assert is_published(tar, "abc")
    tar.write_bytes(tar.read_bytes()[:-512])
    assert not is_published(tar, "abc")


def test_half_samples_do_not_count(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", [*sample("1"), "2.json", "3.jpg"])
    assert describe(tar, "").samples == 1


def test_empty_shard(tmp_path: Path) -> None:
    assert describe(make_tar(tmp_path / "a.tar", []), "").samples == 0


def test_what_is_no_tar_is_an_integrity_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>" * 500)
    with pytest.raises(IntegrityError, match="not a whole tar"):
        describe(tmp_path / "a.tar", "")


def test_cut_shard_is_an_integrity_error(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", sample("1") + sample("2"))
    tar.write_bytes(tar.read_bytes()[: 5 * 1024])
    with pytest.raises(IntegrityError, match="not a whole tar"):
        describe(tar, "")


def test_set_aside_keeps_every_version(tmp_path: Path) -> None:
    places = []
    for version in range(2):
        tar = make_tar(tmp_path / "00000.tar", sample(str(version)))
        publish(tar, tar, describe(tar, "abc"))
        places.append(set_aside(tar))
    assert set_aside(tmp_path / "00000.tar") is None
    assert [place and place.name for place in places] == ["00000.0.tar", "00000.1.tar"]
    assert all(place and ShardManifest.read(place) for place in places)
    assert list(tmp_path.glob("*.tar")) == [] and list(tmp_path.glob("*.json")) == []


def test_a_shard_that_is_gone_differs_from_its_manifest(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "00000.tar", sample("0"))
    assert shard_fault(tar) == "has no manifest"
    publish(tmp_path / "gone.tar", tar, describe(tar, "abc"))
    assert shard_fault(tar) == ""
    tar.unlink()
    assert "No such file" in shard_fault(tar)


def test_a_shard_that_cannot_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = make_tar(tmp_path / "00000.tar", sample("0"))
    publish(tmp_path / "gone.tar", tar, describe(tar, "abc"))

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(shards, "_digests", broken)
    assert shard_fault(tar) == "cannot be read: Input/output error"


def test_a_shard_whose_bookkeeping_is_not_whole_is_not_complete(tmp_path: Path) -> None:
    one = Pass(tmp_path, tmp_path / "tables", 0, ("abc",))
    one.out.mkdir()
    assert read_status(one, 0) == {} and not is_complete(one, 0)
    one.stats(0).write_text('{"successes": 1}')
    assert read_status(one, 0) == {} and not is_complete(one, 0)
    parquet.write_table(pa.table({"other": [1]}), one.status(0))
    assert read_status(one, 0) == {}
