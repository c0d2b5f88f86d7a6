"""One live process a job folder: an owner file with a heartbeat, stale when its process is gone."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lavis_ext.errors import OwnedError
from lavis_ext.runner.files import disk_errors

BEAT_S = 15.0
STALE_S = 120.0


def identity() -> dict[str, Any]:
    """This process as others can find it: pid and its start, host, boot."""
    return {"pid": os.getpid(), "started": started(os.getpid()), "host": socket.gethostname(), "boot": boot_id()}


def boot_id() -> str:
    """The kernel's id of this boot; "" where it has none."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.is_file() else ""


def started(pid: int) -> str:
    """When a process of this host started, in clock ticks; "" if it is gone or the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def is_alive(owner: dict[str, Any], age_s: float) -> bool:
    """Whether an owner's process still runs: known on the same host and boot, else judged by its heartbeat."""
    me = identity()
    if owner.get("host") != me["host"]:
        return age_s < STALE_S
    if owner.get("boot") != me["boot"]:
        return False
    if me["started"]:
        return started(int(owner.get("pid", -1))) == owner.get("started")
    return age_s < STALE_S


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold `folder` for the block; raises OwnedError if another live process holds it."""
    file = folder / "owner.json"
    with disk_errors(file):
        folder.mkdir(parents=True, exist_ok=True)
        claim(file)
    done = threading.Event()
    beat = threading.Thread(target=heartbeat, args=(file, done), daemon=True, name="owner-heartbeat")
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        file.unlink(missing_ok=True)


def claim(file: Path) -> None:
    """Make the owner file appear complete, by linking a finished one; a stale one makes way first."""
    mine = file.with_name(f".owner.{os.getpid()}.{threading.get_ident()}")
    mine.write_text(json.dumps(identity()), encoding="utf-8")
    try:
        for _ in range(2):
            try:
                os.link(mine, file)
                return
            except FileExistsError:
                remove_stale(file)
        raise OwnedError(str(file.parent), "another process has just taken it", "use another run.job_id")
    finally:
        mine.unlink(missing_ok=True)


def remove_stale(file: Path) -> None:
    """Set the owner file of a dead process aside and delete it; raises OwnedError if the owner lives.

    It is renamed first and judged again: of two that find it stale, only one takes it away, and none takes a fresh one.
    """
    refuse_live(file, file.parent)
    aside = file.with_name(f".owner.stale.{os.getpid()}.{threading.get_ident()}")
    try:
        file.rename(aside)
    except FileNotFoundError:
        return
    try:
        refuse_live(aside, file.parent)
    except OwnedError:
        os.link(aside, file)
        raise
    finally:
        aside.unlink(missing_ok=True)


def refuse_live(file: Path, folder: Path) -> None:
    """Raise OwnedError if the owner that `file` names lives; a file that names none is judged by its age."""
    try:
        text, age_s = file.read_text(encoding="utf-8"), time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return
    try:
        found = json.loads(text)
    except ValueError:
        found = {}
    owner = found if isinstance(found, dict) else {}
    if is_alive(owner, age_s):
        who = f"process {owner.get('pid')} on {owner.get('host')}"
        raise OwnedError(str(folder), f"{who} works on it", "wait for it, or use another run.job_id")


def heartbeat(file: Path, done: threading.Event) -> None:
    """Touch the owner file until `done`."""
    while not done.wait(BEAT_S):
        if file.exists():
            os.utime(file)
