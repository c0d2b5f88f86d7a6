"""A preparation and a training that stand still at some moment while another process takes over, and then go on.

The other runs here and now, as if on another machine, before the call at which the first one stood still.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_ext import runners
from lavis_ext.common.errors import OwnedError
from lavis_ext.distill.cache import CacheIdentity, LogitStore
from lavis_ext.features.extraction.merging import merge_rows
from lavis_ext.features.extraction.rows import RowFile
from lavis_ext.features.store import FeatureRow
from lavis_ext.features.writer import StoreWriter
from lavis_ext.fetch import lock
from lavis_ext.fetch.lock import Ownership, own_identity
from lavis_ext.fetch.transfer import Silent
from lavis_ext.prepare import execute, extract, records
from lavis_ext.runners import microbatch
from tests.runners.test_jobs import config, toys  # noqa: F401 - a fixture
from tests.support.features import VOLTA, csv_tsv, make_image
from tests.support.fetching import FAST
from tests.support.server import Server
from tests.support.toyfamily import Family, tree

LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Family:
    return Family(server, tmp_path / "root")


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any, str, Callable[[], object]], list[int]]]:
    """`before(owner, name, work)`: `work` is done, elsewhere, before the first call of `owner.name`."""
    monkeypatch.setattr(lock._HEARTBEAT, "add", lambda descriptor: None)  # its heartbeat stands still as well

    def patch(owner: Any, name: str, work: Callable[[], object]) -> list[int]:
        real, done = getattr(owner, name), [0]

        def first(*args: Any, **named: Any) -> Any:
            if not done[0]:
                done[0] = 1
                with pytest.MonkeyPatch.context() as away:
                    away.setattr(lock, "_host", lambda: "vm/pid:[1]/feedfacefeed")
                    work()
            return real(*args, **named)

        monkeypatch.setattr(owner, name, first)
        return done

    yield patch


MOMENTS = {
    "archive listed": (execute, "list_archive"),
    "what is there compared": (extract.Placement, "is_sound"),
    "member unpacked": (extract.Placement, "_write_one"),
    "members reported": (records.Journal, "add"),
    "record written": (execute, "_finish_members"),
    "archive removed": (execute, "_remove"),
    "folders read": (extract, "files_below"),
}


@pytest.mark.fault("H02")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_preparation_that_was_superseded_does_no_harm(
    moment: str, toy: Family, before: Callable[[Any, str, Callable[[], object]], list[int]]
) -> None:
    toy.images.mkdir(parents=True)
    for name, data in list(toy.train.items())[:3]:  # something to compare, right and wrong
        path = toy.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if len(data) % 2 else data[::-1])
    policy = replace(FAST, jobs=1, owner_stall=60.0)

    def other() -> None:
        for owner in toy.root.rglob("*.owner"):
            os.utime(owner, LONG_AGO)
        report = toy.prepare(policy=policy)
        assert report.exit_code == 0, report.lines()

    done = before(*MOMENTS[moment], other)
    try:
        code = toy.prepare(policy=policy).exit_code
    except OwnedError as error:
        code = error.exit_code
    assert done == [1] and code in (0, 9)
    files = tree(toy.images)
    kept = {name: data for name, data in files.items() if ".bad-" not in name}
    assert kept == {**toy.train, **toy.val} and not [name for name in files if ".part" in name]
    bad = [data for name, data in files.items() if ".bad-" in name]
    assert not [data for data in bad if data in {**toy.train, **toy.val}.values()]
    asked = len(toy.server.log)
    assert toy.prepare().exit_code == 0 and len(toy.server.log) <= asked + 1  # the mirror's manifest


@pytest.mark.fault("H02", "H03")
@pytest.mark.usefixtures("toys")
def test_a_training_that_was_superseded_ends_and_writes_nothing(
    tmp_path: Path, before: Callable[[Any, str, Callable[[], object]], list[int]]
) -> None:
    job = tmp_path / "job"
    left: dict[str, bytes] = {}

    def other() -> None:
        (job / "owner.json").write_text(json.dumps(vars(own_identity())))
        left.update({str(path): path.read_bytes() for path in job.rglob("*") if path.is_file()})

    done = before(microbatch.StepModule, "forward", other)
    with pytest.raises(OwnedError) as caught:
        runners.train(config(tmp_path))
    assert done == [1] and caught.value.exit_code == 9
    assert {str(path): path.read_bytes() for path in job.rglob("*") if path.is_file()} == left


def regions(name: str) -> FeatureRow:
    return FeatureRow(name, np.ones((2, 2048), np.float32), np.ones((2, 4), np.float32), 1, 9, 9)


def add_to_store(folder: Path) -> Iterator[None]:
    with StoreWriter(folder) as writer:
        for number in range(300):  # megabytes: more than waits for the disk
            writer.append(regions(f"a{number}"))
            if number == 1:
                writer.commit()
                yield


def add_rows(folder: Path) -> Iterator[None]:
    with RowFile(folder / "rows.tsv", "butd-tsv") as rows:
        for number in range(300):
            rows.append(regions(f"a{number}"))
            if number == 1:
                rows.flush()
                yield


def add_logits(folder: Path) -> Iterator[None]:
    store = LogitStore(folder, CacheIdentity("t", "d", "train", 6, ("v",), "float32"))
    with store.owned():
        store.create(3)
        for row in range(6):
            marks = np.full(1, row, np.int64)
            store.write([row], {"logits_v": np.full((1, 3), row), "valid_v": np.ones(1), "marks": marks})
            store.ids.append(row)
            if row == 1:
                store.keep()
                yield
        store.finish(3)


@pytest.mark.fault("H02")
@pytest.mark.parametrize("work", [add_to_store, add_rows, add_logits])
def test_features_and_logits_of_one_that_was_superseded_are_not_added(
    work: Callable[[Path], Iterator[None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one cuts off, appends and finishes what the first then goes on with."""
    monkeypatch.setattr(lock._HEARTBEAT, "add", lambda descriptor: None)  # it stands still
    running = work(tmp_path)
    next(running)
    (owner,) = [path for path in tmp_path.rglob("*") if path.name.endswith("owner") or path.name == "owner.json"]
    owner.write_text(json.dumps(vars(own_identity())))
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    time.sleep(2 * lock.CHECKED)
    with pytest.raises(OwnedError):
        for _ in running:
            pass
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == left


class TakenOver(Silent):
    """Progress of a merge that another process takes over after a row."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left: dict[Path, bytes] = {}

    def advance(self, label: str, count: int) -> None:
        if not self.left:
            (owner,) = self.folder.glob(".*.owner")
            owner.write_text(json.dumps(vars(own_identity())))
            self.left = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
            time.sleep(2 * lock.CHECKED)


@pytest.mark.fault("H02")
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_a_merge_that_was_superseded_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(lock._HEARTBEAT, "add", lambda descriptor: None)
    part = csv_tsv(tmp_path / "parts.tsv", [make_image(f"a{n}", 2, seed=n) for n in range(rows)], VOLTA)
    (tmp_path / "out").mkdir()
    taken = TakenOver(tmp_path / "out")
    with pytest.raises(OwnedError):
        merge_rows([part], tmp_path / "out/merged.tsv", progress=taken)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == taken.left


@pytest.mark.fault("H02")
def test_what_downloads_a_list_ends_with_its_ownership(tmp_path: Path) -> None:
    """Its parent may be stopped, and then ends nothing."""
    owner = tmp_path / "list.owner"
    with Ownership(owner, owner, FAST) as held:
        program = (
            "import time; from types import SimpleNamespace; from lavis_ext.prepare.urls import worker\n"
            f"worker.FENCE = 0.05; worker.follow_owner(SimpleNamespace(owner={str(owner)!r}, token={held.token!r}))\n"
            "print('on', flush=True); time.sleep(30)"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == "on\n"
            time.sleep(0.2)
            assert child.poll() is None
            owner.write_text(json.dumps(vars(own_identity())))
            assert child.wait(60) == -signal.SIGKILL
