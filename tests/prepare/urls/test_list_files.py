"""A list's own files: parts by number, and every place that a user may name instead of the declared one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.cards import Artifact, ImageList, load_cards
from lavis_ext.common.errors import AccessError, ConfigError, UsageError
from lavis_ext.fetch import MirrorMap, Policy
from lavis_ext.prepare.urls import ListOptions, fetch_list_files, list_addresses
from lavis_ext.prepare.urls.listing import fetch_images, make_job, part_count, work_folder
from tests.support.server import Fault, Server, payload

QUICK = Policy(backoff=0.01, retries=0, fsync=False)
TAIL = "2256f782-126f-4dc6-b9c6-e6757637749d-c000.snappy.parquet"


def laion() -> Artifact:
    return load_cards().families["laion"].artifacts["metadata"]


def urls(source: str, root: Path, **more: Any) -> list[str]:
    return list(list_addresses(root, laion(), ListOptions(source=source, **more)).values())


def test_all_parts_have_names_that_exist_upstream(tmp_path: Path) -> None:
    found = urls("", tmp_path)
    base = "hf:datasets/laion/relaion-coco"
    assert len(found) == 128 and found[0] == f"{base}/part-00000-{TAIL}"
    assert (found[10], found[127]) == (f"{base}/part-00010-{TAIL}", f"{base}/part-00127-{TAIL}")
    files = list(list_addresses(tmp_path, laion(), ListOptions()))
    assert files[10] == tmp_path / "laion_coco/meta" / f"part-00010-{TAIL}"


@pytest.mark.parametrize(("samples", "parts"), [(None, 128), (1, 1), (5_000_000, 1), (5_000_001, 2), (10**9, 128)])
def test_as_many_parts_as_the_samples_need(samples: int | None, parts: int) -> None:
    assert part_count(laion().lists or ImageList(storage="x"), samples) == parts


@pytest.mark.parametrize(
    ("source", "first"),
    [
        ("hf:datasets/other/set@v2", f"hf:datasets/other/set@v2/part-00000-{TAIL}"),
        ("https://h.example/meta/", f"https://h.example/meta/part-00000-{TAIL}"),
        ("https://h.example/{part:05d}.parquet", "https://h.example/00000.parquet"),
        ("hf:datasets/o/n/laion-coco-1m.parquet", "hf:datasets/o/n/laion-coco-1m.parquet"),
        ("gdrive:1abc", "gdrive:1abc"),
    ],
)
def test_other_addresses(source: str, first: str, tmp_path: Path) -> None:
    assert urls(source, tmp_path, max_samples=10) == [first]


def test_other_sources_do_not_mix_with_the_declared_one(tmp_path: Path) -> None:
    files = list(list_addresses(tmp_path, laion(), ListOptions(source="hf:datasets/other/set", max_samples=10)))
    assert files[0].parent == tmp_path / "laion_coco/meta/hf-datasets-other-set"


def test_local_tables_stay_where_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("b.parquet", "a.parquet", "readme.md"):
        (folder / name).write_bytes(b"x")
    options = ListOptions(source=str(folder))
    assert list_addresses(tmp_path, laion(), options) == {folder / "a.parquet": "", folder / "b.parquet": ""}
    one = ListOptions(source=str(folder / "a.parquet"))
    assert list_addresses(tmp_path, laion(), one) == {folder / "a.parquet": ""}


def test_file_of_addresses(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("# mine\nhttps://h.example/1.parquet\n\nhf:datasets/o/n/2.parquet\n")
    assert urls(str(tmp_path / "urls.txt"), tmp_path) == ["https://h.example/1.parquet", "hf:datasets/o/n/2.parquet"]
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no address"):
        urls(str(tmp_path / "none.txt"), tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "s3://bucket/x", "file:///etc"])
def test_sources_that_cannot_be_meant(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a file, a folder nor an address"):
        urls(source, tmp_path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no table"):
        urls(str(tmp_path), tmp_path)


def test_metadata_comes_from_the_hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    path = f"/datasets/laion/relaion-coco/resolve/main/part-00000-{TAIL}"
    server.put(path, b"PAR1" + payload(1000))
    options = ListOptions(max_samples=10, policy=QUICK)
    [file] = fetch_list_files(tmp_path, laion(), options)
    assert file.stat().st_size == 1004 and list(fetch_list_files(tmp_path, laion(), options)) == [file]
    assert len(server.requests(path)) == 1


def test_gated_metadata_tells_how_to_get_in(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    server.script(f"/datasets/laion/relaion-coco/resolve/main/part-00000-{TAIL}", Fault(status=401))
    with pytest.raises(AccessError, match=r"accept the licence on .*/datasets/laion/relaion-coco, then set HF_TOKEN"):
        fetch_list_files(tmp_path, laion(), ListOptions(max_samples=10, policy=QUICK))


def test_job_of_an_artifact(tmp_path: Path) -> None:
    artifact = load_cards().families["nocaps"].artifacts["val_captions"]
    job = make_job(tmp_path, artifact, {tmp_path / "a.json": ""}, 0.9, ListOptions(max_samples=7))
    assert (job.target, job.threshold, job.max_samples) == (tmp_path / "nocaps/images", 0.9, 7)
    assert job.work == work_folder(tmp_path, artifact) == tmp_path / "nocaps/.lavis_ext/lists/val_captions"
    with pytest.raises(ConfigError, match="lists no images"):
        work_folder(tmp_path, Artifact(url="x", storage="y"))


@pytest.mark.parametrize("script", ["step1_download_laion_coco_meta.py", "step2_download_laion_coco.sh"])
def test_scripts_call_the_verb(script: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    runner = sys.executable if script.endswith(".py") else "sh"
    words = ["--dry-run", "--max-samples", "100", "--options", f"env.cache_root={tmp_path}"]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(root)}
    path = root / "prepare_data/download_laion_coco" / script
    done = subprocess.run([runner, str(path), *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "laion/metadata" in done.stdout, done.stderr


def test_shards_are_not_asked_of_a_folder(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with pytest.raises(UsageError, match=f"is a folder.*http.server --directory {mirror}"):
        fetch_images(tmp_path / "cache", laion(), 1.0, ListOptions(mirrors=MirrorMap(str(mirror))))
    assert not (tmp_path / "cache").exists()
