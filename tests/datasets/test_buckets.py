"""Shards in object stores are read as local ones are: order, resume, faults, manifests; through a bounded cache."""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.config.schema import BuildInfo, DatasetConfig, ProcessorConfig, ProcessorPair
from lavis_ext.common.errors import ConfigError, IntegrityError, NetworkError
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.builders.image_text_shards import ImageTextStream
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.datasets.readers.shards import RawSample
from tests.support.buckets import KEYS, aim, aim_gcs, files_of, fill_bucket, gcs_server, moto_server
from tests.support.server import Fault, Server, wait_until
from tests.support.shards import cut, write_shard

NAMES = itertools.count()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Five shards on the disk; one has no manifest."""
    for number, count in enumerate((7, 5, 6, 4, 8)):
        write_shard(tmp_path / "local/shards", number, count, manifest=number != 3)
    return tmp_path / "local"


@pytest.fixture
def bucket(s3: str, local: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same shards in a bucket."""
    aim(monkeypatch, s3)
    name = f"drawn-{next(NAMES)}"
    fill_bucket(s3, name, files_of(local / "shards", "laion/"))
    return f"s3://{name}/laion"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the waits between attempts."""
    monkeypatch.setattr("lavis_ext.fetch.transfer.random.uniform", lambda low, high: 0.01)


def build(root: Path, storage: str | list[str], check: bool = False, **args: Any) -> ImageTextStream:
    config = DatasetConfig(
        name="pairs",
        builder="image_text_shards",
        build_info=BuildInfo(storage=[storage] if isinstance(storage, str) else storage),
        args={"shuffle_buffer": 6, **args},
        vis_processor=ProcessorPair(train=ProcessorConfig(name="blip2_image_train", args={"image_size": 8})),
    )
    stream = build_datasets(config, BuildContext(root, check_shards=check))["train"]
    assert isinstance(stream, ImageTextStream)
    return stream


def drawn(items: Iterator[Any]) -> list[Any]:
    return [
        (item.name, item.read("image"), item.record()) if isinstance(item, RawSample) else (item.sample_id, item.why)
        for item in items
    ]


@pytest.mark.parametrize("pattern", ["/{00000..00004}.tar", "/", "/0000*.tar", "/{00000,00001,00002}.tar"])
def test_the_order_and_bytes_of_local_shards(pattern: str, bucket: str, local: Path, tmp_path: Path) -> None:
    there = build(tmp_path / "cache", bucket + pattern)
    here = build(local, "shards" + (pattern if pattern != "/" else ""))
    assert len(there.reader) == len(here.reader)
    for rank, lap in itertools.product(range(2), range(2)):
        state = {"lap": lap, "done": 2}
        assert drawn(there.iterate(rank, 2, state)) == drawn(here.iterate(rank, 2, state))


def test_google_s_store(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gcs_server() as endpoint:
        aim_gcs(monkeypatch, endpoint, tmp_path)
        fill_bucket(endpoint, name := f"drawngs{next(NAMES)}", files_of(local / "shards", "laion/"))
        there = build(tmp_path / "cache", f"gs://{name}/laion/")
        ours = drawn(there.iterate(0, 1))
        assert ours == drawn(build(local, "shards").iterate(0, 1)) and len(ours) == 30
        old = (local / "shards/00004.tar").read_bytes()
        fill_bucket(endpoint, name, {"laion/00004.tar": old[:2048] + bytes([old[2048] ^ 1]) + old[2049:]})
        with pytest.raises(IntegrityError, match="replaced"):
            next(build(tmp_path / "cache", f"gs://{name}/laion/").iterate(0, 1, there.state_dict()))


def test_a_mixture_goes_on_where_it_was(bucket: str, tmp_path: Path) -> None:
    def batches(state: dict[str, Any] | None, count: int) -> tuple[list[Any], dict[str, Any]]:
        mixture = Mixture({"pairs": build(tmp_path / "cache", f"{bucket}/")}, batch_size=3, repeat=True, seed=1)
        if state is not None:
            mixture.load_state_dict(state)
        found = [batch["instance_id"] for batch in itertools.islice(mixture, count)]
        mixture.close()
        return found, json.loads(json.dumps(mixture.state_dict()))

    whole, _ = batches(None, 14)
    first, state = batches(None, 5)
    assert first + batches(state, 9)[0] == whole
    assert len(state["streams"]["pairs"]["objects"]) == 64


def test_a_cut_shard_loses_its_samples_as_on_the_disk(s3: str, local: Path, tmp_path: Path, monkeypatch: Any) -> None:
    cut(local / "shards/00001.tar", 3000)
    aim(monkeypatch, s3)
    fill_bucket(s3, name := f"drawn-{next(NAMES)}", files_of(local / "shards", ""))
    there, here = build(tmp_path / "cache", f"s3://{name}/"), build(local, "shards")
    ours, theirs = drawn(there.iterate(0, 1)), drawn(here.iterate(0, 1))
    assert ours == theirs and sum(len(row) == 2 for row in ours) > 0


def test_manifests_are_compared(bucket: str, local: Path, s3: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no CRC"):
        len(build(tmp_path / "cache", f"{bucket}/", check=True).reader)
    told = json.loads((local / "shards/00000.manifest.json").read_text())
    name, _, _ = bucket.removeprefix("s3://").partition("/")
    fill = {"laion/00000.manifest.json": json.dumps({**told, "sha256": "0" * 64}).encode()}
    fill_bucket(s3, name, fill)
    with pytest.raises(IntegrityError, match="sha256"):
        drawn(build(tmp_path / "cache", f"{bucket}/00000.tar").iterate(0, 1))


def test_an_object_that_changes_is_told_and_never_mixed(bucket: str, local: Path, s3: str, tmp_path: Path) -> None:
    stream = build(tmp_path / "cache", f"{bucket}/", shuffle_buffer=0, shards_ahead=1)
    items = stream.iterate(0, 1)
    first = [next(items) for _ in range(3)]
    old = (local / "shards/00004.tar").read_bytes()
    name, _, _ = bucket.removeprefix("s3://").partition("/")
    fill_bucket(s3, name, {"laion/00004.tar": old[:2048] + bytes([old[2048] ^ 1]) + old[2049:]})
    seen: list[Any] = list(first)
    with pytest.raises(IntegrityError, match="changed") as told:
        for item in items:
            seen.append(item)
    assert "00004.tar" in str(told.value) and all(not item.name.startswith("00004") for item in seen)
    state = stream.state_dict()
    with pytest.raises(IntegrityError, match="replaced"):
        next(build(tmp_path / "cache", f"{bucket}/", shuffle_buffer=0).iterate(0, 1, state))


def bytes_below(folder: Path) -> int:
    """Bytes of all shards and of their parts, while other threads fetch and remove some.

    Read until two readings agree: one alone may count a shard that went and the one that came for it.
    """
    last: dict[Path, int] = {}
    while True:
        found: dict[Path, int] = {}
        for place, _, names in os.walk(folder):
            for path in (Path(place, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    if path.name.endswith((".tar", ".part")):  # what an owner writes about a part is not the shard's
                        found[path] = path.stat().st_size
        if found == last:
            return sum(found.values())
        last = found


def test_the_cache_is_bounded_and_its_oldest_go(bucket: str, local: Path, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in sorted((local / "shards").glob("*.tar"))]
    limit = (max(sizes) * 2 + 100) / 1e9
    stream = build(tmp_path / "cache", f"{bucket}/", shuffle_buffer=0, cache_gb=limit, shards_ahead=1)
    cache = stream.reader.bucket.cache  # type: ignore[union-attr]
    for number, _ in enumerate(stream.iterate(0, 1)):
        lies = bytes_below(cache.folder)
        assert lies <= cache.limit, number
    assert drawn(stream.iterate(0, 1)) == drawn(build(local, "shards", shuffle_buffer=0).iterate(0, 1))
    with pytest.raises(ConfigError, match="cache_gb"):
        next(build(tmp_path / "small", f"{bucket}/", cache_gb=1e-6).iterate(0, 1))


def test_removed_files_come_again_and_a_foreign_one_does_no_harm(bucket: str, local: Path, tmp_path: Path) -> None:
    stream = build(tmp_path / "cache", f"{bucket}/")
    whole = drawn(stream.iterate(0, 1))
    folder = stream.reader.bucket.cache.folder  # type: ignore[union-attr]
    for path in folder.rglob("*.tar"):
        path.unlink() if path.name < "00002" else path.write_bytes(b"short")
    assert drawn(build(tmp_path / "cache", f"{bucket}/").iterate(0, 1)) == whole


PROCESS = """
import sys, pathlib
from lavis_ext.fetch.cache import ObjectCache
from lavis_ext.fetch.objects import listed
cache = ObjectCache(pathlib.Path(sys.argv[1]), 10**9, 1)
shards = [one for one in listed(sys.argv[2]) if one.name.endswith(".tar")]
cache.prefetch(shards)
print(sum(cache.get(one).stat().st_size == one.size for one in shards), cache.fetched)
"""


def test_two_processes_share_it_and_one_that_is_killed_leaves_it_whole(
    bucket: str, local: Path, tmp_path: Path
) -> None:
    def start() -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PROCESS, str(tmp_path / "cache"), f"{bucket}/"]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    killed = start()
    assert wait_until(lambda: killed.poll() is not None or bool(list((tmp_path / "cache").glob("*.json"))), 60)
    killed.kill()
    killed.communicate()
    pair = [start(), start()]
    counts = [[int(word) for word in one.communicate()[0].split()] for one in pair]
    assert [count[0] for count in counts] == [5, 5]
    assert sum(count[1] for count in counts) <= 5  # each shard came once for both


def test_nothing_secret_is_told(bucket: str, s3: str, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    drawn(build(tmp_path / "cache", f"{bucket}/").iterate(0, 1))
    name = bucket.partition("//")[2].partition("/")[0]
    with pytest.raises(ConfigError, match="absent") as error:
        build(tmp_path / "cache", f"s3://{name}/laion/{{00000..00009}}.tar")
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    for secret in KEYS.values():
        assert secret not in caplog.text + str(error.value) and secret.encode() not in written
    with pytest.raises(NetworkError):
        build(tmp_path / "cache", "s3://no-such-bucket-here/x/{0..1}.tar")


@pytest.mark.parametrize("form", ["https", "hf", "s3"])
def test_faults_of_the_way_are_outlived(
    form: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(local / "shards", 3, 4, manifest=True)
    with Server() as server:
        commit = "a" * 40
        place = {"hf": f"/datasets/o/n/resolve/{commit}", "https": "/shards", "s3": "/drawn"}[form]
        pattern = {"hf": "hf://datasets/o/n", "https": f"{server.base}/shards", "s3": "s3://drawn"}[form]
        entries, listing = [], ""
        for path in sorted((local / "shards").iterdir()):
            tag = server.put(f"{place}/{path.name}", data := path.read_bytes()) and hashlib.md5(data).hexdigest()
            entries.append({"type": "file", "path": path.name, "size": len(data), "oid": path.name})
            listing += (
                f"<Contents><Key>{path.name}</Key><Size>{len(data)}</Size><ETag>&quot;{tag}&quot;</ETag>"
                "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        server.put("/api/datasets/o/n/revision/main", json.dumps({"sha": commit}).encode())
        server.put(f"/api/datasets/o/n/tree/{commit}", json.dumps(entries).encode())
        server.put("/drawn", f"<ListBucketResult><IsTruncated>false</IsTruncated>{listing}</ListBucketResult>".encode())
        monkeypatch.setenv("HF_ENDPOINT", server.base)
        if form == "s3":
            aim(monkeypatch, server.base)
            server.script("/drawn", Fault(1, status=503), Fault(1, latency=0.2))
        server.script(
            f"{place}/00001.tar", *[Fault(1, status=503)] * 2, Fault(1, cut_after=4000), Fault(1, latency=0.3)
        )
        server.script(f"{place}/00002.manifest.json", Fault(1, status=503))
        there, here = build(tmp_path / "cache", pattern + "/{00000..00004}.tar"), build(local, "shards")
        assert drawn(there.iterate(0, 1)) == drawn(here.iterate(0, 1))
        size = (local / "shards/00001.tar").stat().st_size
        assert size <= sum(seen.sent for seen in server.log if seen.path.endswith("00001.tar")) < size + 10_000


def test_a_picklable_stream_of_a_bucket_loads_samples(bucket: str, tmp_path: Path) -> None:
    stream = pickle.loads(pickle.dumps(build(tmp_path / "cache", f"{bucket}/")))
    item = next(stream.iterate(0, 1))
    assert stream.load(item, torch.Generator())["text_input"].startswith("picture")


def test_what_is_refused(bucket: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shards").mkdir()
    for storage in ([f"{bucket}/", "shards"], ["https://127.0.0.1:9/x/*.tar"], [f"{bucket}/00009.tar"]):
        with pytest.raises(ConfigError):
            build(tmp_path, storage)
    monkeypatch.setenv("LAVIS_EXT_OFFLINE", "1")
    with pytest.raises(NetworkError, match="offline"):
        build(tmp_path, f"{bucket}/")
