"""Work over Spark and Ray, on real clusters of this machine: a process that is killed costs nothing but time."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.cli import main
from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import UsageError
from lavis_ext.datasets.pack import PackOptions, Target, attempt, pack
from lavis_ext.prepare.urls import fetch_list
from lavis_ext.prepare.urls.cluster import cluster
from tests.support import families
from tests.support.weblist import make_job

ROOT = Path(__file__).parents[3]
CLUSTERS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("pyspark", "ray")
]


@pytest.fixture(autouse=True)
def found_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)


def squared(folder: Path, number: int) -> int:
    """The square; the process that is first to work on 3 is killed."""
    if number == 3 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.mark.slow
@pytest.mark.parametrize("name", CLUSTERS)
def test_a_killed_process_loses_no_piece(name: str, tmp_path: Path) -> None:
    with cluster(name, 2) as apply:
        assert list(apply(partial(squared, tmp_path), range(8))) == [n * n for n in range(8)]
        assert list(apply(partial(squared, tmp_path), [])) == []
    assert (tmp_path / "killed").exists()


def attempt_once_killed(dataset: Any, target: Target, options: PackOptions, number: int) -> Any:
    """`attempt`; the process that is first to make shard 1 is killed in the middle of it."""
    if number == 1 and not (target.folder.parent / "killed").exists():
        (target.folder.parent / "killed").touch()
        (target.folder / f".{number:05d}.0123456789ab.tar.tmp").write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt(dataset, target, options, number)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLUSTERS)
def test_shards_are_the_same_bytes_though_a_worker_was_killed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.coco_captions(tmp_path)
    config, options = load_cards().dataset("coco_caption"), PackOptions(samples_per_shard=2)
    pack(config, str(tmp_path / "whole"), tmp_path, options, lambda _: None)
    monkeypatch.setattr("lavis_ext.datasets.pack.attempt", attempt_once_killed)
    there = replace(options, distributor=name, jobs=2)  # type: ignore[arg-type]
    report = pack(config, str(tmp_path / "out"), tmp_path, there, lambda _: None)
    assert (report.made, report.lost, (tmp_path / "killed").exists()) == (3, 0, True)
    whole, out = ({one.name: one.read_bytes() for one in (tmp_path / way).iterdir()} for way in ("whole", "out"))
    assert out == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", CLUSTERS)
def test_an_error_on_another_machine_is_that_of_here(name: str, tmp_path: Path) -> None:
    families.coco_captions(tmp_path)
    (tmp_path / "coco/images" / families.coco_name("train2014", 1)).unlink()
    words = ["pack", "coco_caption", str(tmp_path / "out"), "--samples-per-shard", "2", "--distributor", name]
    assert main([*words, "--options", f"env.cache_root={tmp_path}", "--quiet"]) == 8
    assert json.loads((tmp_path / "out/pack.json").read_text())["lost"] == 2


@pytest.mark.parametrize("name", ["pyspark", "ray"])
def test_a_library_that_is_missing_is_said(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    families.coco_captions(tmp_path)
    words = ["pack", "coco_caption", str(tmp_path / "out"), "--distributor", name]
    assert main([*words, "--options", f"env.cache_root={tmp_path}"]) == 2
    assert f"lavis-ext[{'spark' if name == 'pyspark' else name}]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError):
        fetch_list(make_job(tmp_path, tmp_path / "l.json", distributor=name))
