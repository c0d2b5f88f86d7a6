"""Starts the process that downloads, and watches it: a crash, a stall or a failing disk ends it with an error."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from lavis_ext.common.errors import LavisExtError, PartialError
from lavis_ext.common.files import decode_json
from lavis_ext.fetch.transfer import disk_error

log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "lavis_ext.prepare.urls.worker")
POLL = 0.1
SECRETS = ("TOKEN", "AZURE_SAS", "SECRET", "PASSWORD", "API_KEY")
TAIL = 2000
TROUBLE = "disk_trouble.json"

End = Literal["done", "stalled"]
Measure = Callable[[], tuple[int, ...]]


def run_worker(order: Path, out: Path, stall: float, measure: Measure) -> End:
    """Run one pass to its end; `measure` is polled, and a change of what it returns is progress.

    Without progress for `stall` seconds the whole process group is killed. Raises DiskError where a write failed,
    PartialError where the process died.
    """
    (out / TROUBLE).unlink(missing_ok=True)
    journal = order.with_suffix(".log")
    with journal.open("ab") as sink:
        process = subprocess.Popen(
            [*WORKER, str(order)],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=worker_environment(),
        )
        try:
            end = _watch(process, out, stall, measure)
        finally:
            end_group(process)
    if end == "done" and process.returncode:
        raise _crash(process.returncode, journal)
    return end


def _watch(process: subprocess.Popen[bytes], out: Path, stall: float, measure: Measure) -> End:
    seen, moved = measure(), time.monotonic()
    while process.poll() is None:
        time.sleep(POLL)
        trouble = read_trouble(out)
        if trouble is not None:
            raise trouble
        now = measure()
        if now != seen:
            seen, moved = now, time.monotonic()
        elif time.monotonic() - moved > stall:
            log.warning("no progress for %.0f s: the process that downloads is stopped", stall)
            return "stalled"
    measure()
    trouble = read_trouble(out)
    if trouble is not None:
        raise trouble
    return "done"


def worker_environment() -> dict[str, str]:
    """This environment without secrets, which a process that asks a million hosts has no use for."""
    kept = {name: value for name, value in os.environ.items() if not any(word in name.upper() for word in SECRETS)}
    return {**kept, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONUNBUFFERED": "1", "PYSPARK_PYTHON": sys.executable}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process and its children, and wait for it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


def read_trouble(out: Path) -> LavisExtError | None:
    """The DiskError that a writer reported in TROUBLE, or None."""
    try:
        raw = decode_json((out / TROUBLE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    error = OSError(raw["errno"], os.strerror(raw["errno"] or 0))
    return disk_error(error, Path(raw["path"]))


def _crash(code: int, journal: Path) -> LavisExtError:
    lines = journal.read_text("utf-8", "replace")[-TAIL:].strip().splitlines()
    last = lines[-1] if lines else "it wrote no log"
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return PartialError("img2dataset", f"{how}: {last}", f"see {journal}, then run again: finished shards are kept")
