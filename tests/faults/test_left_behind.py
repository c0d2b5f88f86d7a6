"""What a process leaves that is killed between two operations on names, and what the next run makes of it.

A fork of the test kills itself at that very operation, so nothing depends on when a signal comes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.fetch.lock import Ownership
from lavis_ext.fetch.transfer import Policy
from lavis_ext.prepare import execute, plan
from tests.support.server import Server
from tests.support.toyfamily import Family


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
