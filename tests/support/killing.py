"""Trainings that are processes of their own, killed without a word and started again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lavis_ext.fetch import lock
from tests.support.processes import forked
from tests.support.server import wait_until

_LEAVES: list[Connection] = []
"""In a process that is to be killed: where it asks for leave."""


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


def require_killed_is_left_alone(start: Callable[[str, int], Any], runs: Path, times: int, held: int = 2) -> None:
    """Fail unless a run that is killed and started again ends as one that is left alone, which goes beside it.

    `start(job, held)` starts the process of a run that is `held` behind so many checkpoints, to be killed until then.
    """
    whole = start("whole", 0)
    try:
        killed = kill_often(lambda: start("cut", held), runs / "cut", times, random.Random(5))
        assert killed >= min(times, 2), "the run was too short to be killed"
        for last in (start("cut", 0), whole):
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


def kill_when(ready: Callable[[], bool], work: Callable[..., object], *args: str) -> None:
    """Call `work(*args)` in a process of its own, which asks for leave before each piece, and kill it when `ready`.

    Fails where it ended by itself.
    """
    ours, theirs = Pipe()
    process = forked().Process(target=work_with_leave, args=(theirs, work, args))
    process.start()
    theirs.close()
    try:
        while ours.poll(60) and ours.recv_bytes() and not wait_until(ready, 0.005):
            ours.send_bytes(b".")
    except EOFError:
        pass  # it has ended
    finally:
        process.kill()
        process.join()
        ours.close()
    assert process.exitcode == -signal.SIGKILL and ready()


def work_with_leave(leave: Connection, work: Callable[..., object], args: Sequence[str]) -> None:
    """What the process does that is to be killed."""
    _LEAVES.append(leave)
    work(*args)


def ask_for_leave() -> None:
    """Wait until who wants to kill this process lets it go on; at once where nobody does."""
    for leave in _LEAVES:
        leave.send_bytes(b"?")
        leave.recv_bytes()


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


def descendants(pid: int) -> list[int]:
    """The processes below one, the nearest first."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                below.setdefault(parent, []).append(int(entry.name))
    found = list(below.get(pid, []))
    for one in found:
        found += below.get(one, [])
    return found


def kill_tree(pid: int) -> None:
    """Kill a process and all below it."""
    for one in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
