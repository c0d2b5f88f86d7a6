"""What a process leaves that is killed between two operations on names, and what the next run makes of it.

A fork of the test kills itself at that very operation, so nothing depends on when a signal comes.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common import files
from lavis_ext.common.config.schema import Config, ModelConfig
from lavis_ext.common.files import write_atomic
from lavis_ext.distill.cache import CacheIdentity, LogitStore
from lavis_ext.fetch.lock import Ownership
from lavis_ext.fetch.transfer import Policy
from lavis_ext.prepare import execute, plan, status
from lavis_ext.runners import checkpoint, run
from lavis_ext.runners.device import build_accelerator
from lavis_ext.runners.job import Job
from tests.support.fetching import FAST
from tests.support.runs import resumed, toy_runner
from tests.support.server import Server
from tests.support.toyfamily import Family, tree
from tests.support.toys import toy_run


def killed_at(
    owner: Any, name: str, run: Callable[[], object], when: Callable[..., bool] = lambda *_, **__: True
) -> None:
    """Run in a fork that kills itself where `owner.name` is called with what `when` wants."""
    pid = os.fork()
    if not pid:
        real = getattr(owner, name)

        def dying(*given: Any, **named: Any) -> Any:
            if when(*given, **named):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        setattr(owner, name, dying)
        run()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def left_archive(toy: Family, name: str) -> Path:
    """The archive after a run that was killed between the record of what it holds and its removal."""
    killed_at(execute, "_remove", toy.prepare, lambda _, artifact: artifact.name == name)
    archive = toy.images / f"{name}.zip"
    assert archive.exists()
    return archive


@pytest.mark.parametrize("name", ["train", "val"])
@pytest.mark.fault("R12")
def test_an_archive_that_was_recorded_goes_with_the_next_run(server: Server, tmp_path: Path, name: str) -> None:
    """Where the run has more to do (`train` is the first of two), and where all else is done."""
    toy = Family(server, tmp_path / "root")
    archive, path = left_archive(toy, name), toy.path(f"{name}.zip")
    sent = server.sent(path)
    assert plan(("toy",), toy.options(dry_run=True), toy.cards()).done == (name == "val") and archive.exists()
    assert toy.prepare().exit_code == 0
    assert toy.complete() and server.sent(path) == sent


def test_an_archive_that_is_left_and_then_kept_stays(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    archive = left_archive(toy, "val")
    assert toy.prepare(keep_archives=True).exit_code == 0
    assert toy.prepare().exit_code == 0
    assert archive.read_bytes() == toy.blobs["val.zip"]


@pytest.mark.parametrize("options", [{"keep_archives": True}, {}])
def test_an_archive_that_was_kept_or_brought_stays(server: Server, tmp_path: Path, options: dict[str, bool]) -> None:
    """Killed in the same place: one that the user wanted to keep, and one put in the place of the one that was left."""
    toy = Family(server, tmp_path / "root")
    if options:
        killed_at(execute, "_outcome", lambda: toy.prepare(**options), lambda item, *_: item.title == "toy/val")
        archive = toy.images / "val.zip"
    else:
        archive = left_archive(toy, "val")
        stat = archive.stat()
        archive.unlink()
        archive.write_bytes(toy.blobs["val.zip"])
        os.utime(archive, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for _ in range(2):
        assert toy.prepare().exit_code == 0
    assert archive.read_bytes() == toy.blobs["val.zip"]


def test_an_archive_that_is_left_stays_while_another_process_works_there(server: Server, tmp_path: Path) -> None:
    """What is complete needs no wait for the other: it goes with a later run."""
    toy = Family(server, tmp_path / "root")
    archive = left_archive(toy, "val")
    owner = archive.parents[1] / ".lavis_ext" / "prepare.owner"
    with Ownership(owner, owner, Policy()):
        assert toy.prepare().exit_code == 0
    assert archive.exists()
    assert toy.prepare().exit_code == 0
    assert toy.complete()


@pytest.mark.fault("F12")
def test_a_member_that_was_emptied_is_not_taken_by_the_journal_of_a_killed_run(server: Server, tmp_path: Path) -> None:
    """Killed before the record is written: the journal says that all is in place, which it is no more."""
    toy = Family(server, tmp_path / "root")
    name = sorted(toy.train)[0]
    killed_at(Path, "unlink", toy.prepare, lambda path, **_: path.name == "train.zip.log")
    (toy.images / name).write_bytes(b"")
    assert toy.prepare().exit_code == 0
    assert toy.complete()


def test_no_journal_outlives_a_record(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")

    def last(path: Path, **_: Any) -> bool:
        return path.parent.parent.name == "fetching" and path.name == "train.zip.txt"

    killed_at(Path, "unlink", toy.prepare, last)
    assert toy.prepare().exit_code == 0
    assert toy.complete() and not list((tmp_path / "root/toy/.lavis_ext").rglob("*.log"))


def test_the_temporary_file_of_a_killed_process_goes_with_the_next_write(tmp_path: Path) -> None:
    """Those of a living process, and of one on another machine that may live, stay; the latter for a day."""
    path = tmp_path / "a.json"
    killed_at(Path, "replace", lambda: write_atomic(path, "half"))
    assert len(list(tmp_path.iterdir())) == 1
    mine, other, old, user = (tmp_path / name for name in (
        f".a.json.{files._place()}-{os.getpid()}-1.tmp", ".b.json.00000000-1-1.tmp", ".c.json.1-1.tmp", ".d.tmp"
    ))  # fmt: skip
    for one in (mine, other, old, user):
        one.write_text("x")
    for one in (mine, old, user):
        os.utime(one, (1e9, 1e9))
    write_atomic(path, "whole")
    assert {one.name for one in tmp_path.iterdir()} == {path.name, mine.name, other.name, user.name}


@pytest.mark.parametrize("age", [0, 60, 1000])
def test_an_empty_file_that_a_look_at_an_owner_has_left_goes(tmp_path: Path, age: int) -> None:
    """A process that is killed between making the file by which it measures an age, and writing its name into it."""
    left = tmp_path / "f.part.owner.0123456789abcdef"
    left.touch()
    os.utime(left, (time.time() - age,) * 2)
    with Ownership(tmp_path / "g.part.owner", tmp_path / "g", Policy()):
        pass
    assert left.exists() == (age == 0)


# Runs


@pytest.mark.parametrize("pointer", ["latest.json", "best.json"])
@pytest.mark.fault("K08")
def test_the_best_checkpoint_is_kept_though_the_run_was_killed_before_it_was_pointed_to(
    tmp_path: Path, pointer: str
) -> None:
    first = toy_runner(tmp_path, metrics=[0.2, 0.9, 0.1], valid_splits=["val"], keep_checkpoints=1)
    killed_at(checkpoint, "_point", first.train, lambda path, _, step: (path.name, step) == (pointer, 12))
    runner = resumed(tmp_path, metrics=[0.1], valid_splits=["val"], test_splits=["test"], keep_checkpoints=1)
    runner.train()
    assert runner.progress.best["step"] == 12
    assert runner.task.evaluated[-1] == ("test", "best")
    job = tmp_path / "job"
    assert json.loads((job / "best.json").read_text())["step"] == 12
    assert (job / "checkpoint_best").resolve().name == "checkpoint_12"
    assert [one.name for one in checkpoint.candidates(job)] == ["checkpoint_18", "checkpoint_12"]


def test_the_newest_checkpoint_is_pointed_to_though_nothing_more_is_saved(tmp_path: Path) -> None:
    killed_at(checkpoint, "_point", toy_runner(tmp_path).train, lambda path, _, step: step == 18)
    resumed(tmp_path)
    assert checkpoint.pointed(tmp_path / "job", "latest") == tmp_path / "job" / "checkpoint_18"


def test_half_a_checkpoint_goes_as_the_run_starts_again(tmp_path: Path) -> None:
    """Of a step at which it was told to stop, which no later run saves, and of one that was being deleted."""
    tensors = {"weight": torch.ones(2)}
    checkpoint.save(tmp_path, 1, tensors, {})
    killed_at(checkpoint, "_publish", lambda: checkpoint.save(tmp_path, 2, tensors, {}))
    checkpoint.save(tmp_path, 3, tensors, {})
    remove = checkpoint.shutil, "rmtree"
    killed_at(*remove, lambda: checkpoint.prune(tmp_path, 1), lambda path, **_: ".trash" in path.name and path.exists())
    assert {".checkpoint_2.part", ".trash_checkpoint_1"} < {one.name for one in tmp_path.iterdir()}
    accelerator = build_accelerator(toy_run(tmp_path))
    config = Config(
        run=toy_run(tmp_path), model=ModelConfig(arch="toy", model_type="tiny"), datasets={}, cache_root="", resolved={}
    )
    with pytest.raises(KeyError):  # what is resumed is no run
        run.resume(Job(config, tmp_path, accelerator), toy_runner(tmp_path / "other"))
    assert {one.name for one in tmp_path.iterdir()} == {"checkpoint_3", "latest.json", "other"}


def test_damaged_logits_of_a_teacher_are_never_gone_on_with(tmp_path: Path) -> None:
    """Killed as they were emptied, when the manifest was gone: rows that a mark of progress speaks of are not taken."""
    about = CacheIdentity("t", "d", "train", samples=8, views=("full",), dtype="float32")
    store = LogitStore(tmp_path, about)
    store.folder.mkdir(parents=True)
    store.create(2)
    store.ids = list(range(8))
    store.finish(2)
    store.keep()
    with (store.folder / "logits_full").open("r+b") as file:
        file.write(b"damage")
    manifest = store.folder / "manifest.json"

    def emptied() -> None:
        real = Path.glob
        Path.glob = lambda *given, **named: sorted(real(*given, **named), key=lambda path: path != manifest)  # type: ignore[assignment]
        LogitStore(tmp_path, about).complete()

    killed_at(Path, "unlink", emptied, lambda *_, **__: not manifest.exists())
    assert LogitStore(tmp_path, about).rows_done(4) == 0


# Links, and the order in which a disk is told


@pytest.mark.fault("F13")
def test_what_a_link_leads_to_outside_is_neither_written_nor_removed(server: Server, tmp_path: Path) -> None:
    """An archive of the user's that lies elsewhere is read there; a member's place that leads elsewhere is freed."""
    toy = Family(server, tmp_path / "root")
    outside = tmp_path / "disk"
    (outside / "im").mkdir(parents=True)
    (outside / "train.zip").write_bytes(toy.blobs["train.zip"])
    first, second = sorted(toy.train)[:2]
    (outside / "other.jpg").write_bytes(b"another picture")
    (outside / "same.jpg").write_bytes(toy.train[second])
    (toy.images / first).parent.mkdir(parents=True)
    (toy.images / "train.zip").symlink_to(outside / "train.zip")
    (toy.images / first).symlink_to(outside / "other.jpg")
    (toy.images / second).symlink_to(outside / "same.jpg")
    before = tree(outside)
    assert toy.prepare().exit_code == 0 and toy.prepare().exit_code == 0
    assert server.sent(toy.path("train.zip")) == 0 and tree(outside) == before
    assert (toy.images / "train.zip").is_symlink() and (toy.images / second).is_symlink()
    assert not (toy.images / first).is_symlink() and (toy.images / first).read_bytes() == toy.train[first]


@pytest.mark.fault("F12")
def test_one_deleted_file_is_called_partial_until_it_is_there_again(server: Server, tmp_path: Path) -> None:
    toy = Family(server, tmp_path / "root")
    toy.prepare()
    (toy.images / sorted(toy.train)[0]).unlink()
    assert [one.state for one in status(["toy"], toy.options(), toy.cards())] == ["partial", "verified"]
    assert toy.prepare().exit_code == 0 and toy.complete()
    assert [one.state for one in status(["toy"], toy.options(), toy.cards())] == ["verified", "verified"]


@pytest.mark.fault("F11")
def test_a_record_is_named_only_when_what_it_speaks_of_is_on_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members and files are flushed, then the record itself, then it gets its name; the archive goes after that."""
    toy = Family(server, tmp_path / "root", policy=replace(FAST, fsync=True))
    order: list[str] = []

    def noted(owner: Any, name: str, told: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def call(*given: Any, **named: Any) -> Any:
            order.append(told(*given))
            return real(*given, **named)

        monkeypatch.setattr(owner, name, call)

    noted(os, "sync", lambda: "sync")
    noted(os, "fsync", lambda file: f"flush {Path(f'/proc/self/fd/{file}').readlink().name}")
    noted(os, "link", lambda _, target: f"name {Path(target).name}")
    noted(os, "replace", lambda _, target: f"name {Path(target).name}")
    noted(Path, "unlink", lambda path: f"remove {path.name}")
    assert toy.prepare().exit_code == 0
    named = order.index("name train.zip.json")
    members = [order.index(f"name {Path(name).name}") for name in toy.train]
    assert max(members) < max(at for at, what in enumerate(order[:named]) if what == "sync")
    assert order[:named][-1].startswith("flush .train.zip.json.") and order[named + 1 :].index("remove train.zip") > 0
    file, record = order.index("name train.json"), order.index("name train.json.json")
    flushed = [at for at, what in enumerate(order[:file]) if what.startswith("flush train.json.part.")]
    assert flushed and "flush annotations" in order[file:record]
