"""Trainings that are processes of their own, killed without a word and started again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lavis_ext.fetch import lock
from tests.support.server import wait_until

ROOT = Path(__file__).parents[2]
LEAVE = "LAVIS_EXT_TEST_LEAVE"


def checkpoints(folder: Path) -> list[Path]:
    """Numbered checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint_[0-9]*"), key=lambda path: int(path.name.rpartition("_")[2]))


def wait_for_progress(process: Any, folder: Path, before: list[Path]) -> None:
    """Until there is a checkpoint that was not there before, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.is_alive() and checkpoints(folder) in ([], before) and time.monotonic() < deadline:
        time.sleep(0.01)


def kill_often(start: Callable[[], Any], folder: Path, times: int, chance: random.Random) -> int:
    """Start `times` times and kill -9 soon after a new checkpoint; how often there was something left to kill."""
    killed = 0
    for _ in range(times):
        before = checkpoints(folder)
        process = start()
        wait_for_progress(process, folder, before)
        time.sleep(chance.random() * 0.3)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    return killed


def require_killed_is_left_alone(start: Callable[[str], Any], runs: Path, times: int) -> None:
    """Fail unless a run that is killed and started again ends as one that is left alone, which goes beside it.

    `start(job)` starts the process of a run.
    """
    whole = start("whole")
    try:
        killed = kill_often(lambda: start("cut"), runs / "cut", times, random.Random(5))
        assert killed >= min(times, 2), "the run was too short to be killed"
        for last in (start("cut"), whole):
            last.join(250)
            assert last.exitcode == 0
    finally:
        whole.kill()
    require_same_end(runs / "whole", runs / "cut")


def require_same_end(whole: Path, cut: Path) -> None:
    """Fail unless the last checkpoints of two runs are the same to the bit, and their logs as long."""
    last, other = checkpoints(whole)[-1], checkpoints(cut)[-1]
    assert last.name == other.name
    for name in ("model.safetensors", "tensors.safetensors"):
        assert (last / name).read_bytes() == (other / name).read_bytes(), name
    lines = [(folder / "log.jsonl").read_text().splitlines() for folder in (whole, cut)]
    assert len(lines[0]) == len(lines[1])


def kill_when(ready: Callable[[], bool], module: str, *words: str) -> None:
    """Start a process of `tests.support`, which asks for leave before each piece of its work, and kill it when `ready`.

    Fails where it ended by itself.
    """
    (asked, asks), (allowed, allows) = os.pipe(), os.pipe()
    command = [sys.executable, "-m", f"tests.support.{module}", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), LEAVE: f"{asks} {allowed}"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=(asks, allowed)) as process:
        os.close(asks)
        try:
            while os.read(asked, 1) and not wait_until(ready, 0.005):
                os.write(allows, b".")
        finally:
            process.kill()
            for descriptor in (asked, allowed, allows):
                os.close(descriptor)
    assert process.returncode == -signal.SIGKILL and ready()


def ask_for_leave() -> None:
    """Wait until who wants to kill this process lets it go on; at once where nobody does."""
    if given := os.environ.get(LEAVE):
        asks, allowed = map(int, given.split())
        os.write(asks, b"?")
        os.read(allowed, 1)


def own_until_killed(job: Path, heartbeat: float = lock.HEARTBEAT) -> int:
    """The process id of a fork that owns a job; it says so by the owner file."""
    if pid := os.fork():
        deadline = time.monotonic() + 60
        while lock.read_owner(job / "owner.json") is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return pid
    from lavis_ext.runners.job import owned

    lock.HEARTBEAT = heartbeat
    try:
        with owned(job):
            time.sleep(300)
    finally:
        os._exit(0)


def size(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0
