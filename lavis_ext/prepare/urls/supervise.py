"""Starts the process that downloads, and watches it: a crash, a stall or a failing disk ends it with an error."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from lavis_ext.common.errors import LavisExtError, PartialError
from lavis_ext.common.files import decode_json
from lavis_ext.fetch.transfer import disk_error

log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "lavis_ext.prepare.urls.worker")
POLL = 0.1
SECRETS = ("TOKEN", "AZURE_SAS", "SECRET", "PASSWORD", "API_KEY")
TAIL = 2000
MARK = b"lavis_ext disk trouble: "
BLOCK = 1 << 16

End = Literal["done", "stalled"]
Measure = Callable[[], tuple[int, ...]]


def run_worker(order: Path, stall: float, measure: Measure) -> End:
    """Run one pass to its end; `measure` is polled, and a change of what it returns is progress.

    Without progress for `stall` seconds the whole process group is killed. Raises DiskError where a write failed,
    PartialError where the process died.
    """
    process = subprocess.Popen(
        [*WORKER, str(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=worker_environment(),
    )
    output = Output(process, order.with_suffix(".log"))
    output.start()
    try:
        end = _watch(process, output, stall, measure)
    finally:
        end_group(process)
        output.join(5.0)
    if output.trouble is not None:
        raise output.trouble
    if end == "done" and process.returncode:
        raise _crash(process.returncode, output)
    return end


def _watch(process: subprocess.Popen[bytes], output: Output, stall: float, measure: Measure) -> End:
    seen, moved = measure(), time.monotonic()
    while process.poll() is None and output.trouble is None:
        time.sleep(POLL)
        now = measure()
        if now != seen:
            seen, moved = now, time.monotonic()
        elif time.monotonic() - moved > stall:
            log.warning("no progress for %.0f s: the process that downloads is stopped", stall)
            return "stalled"
    measure()
    return "done"


class Output(threading.Thread):
    """Copies what the process writes to its log, and finds in it that a write failed (see `report_trouble`)."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        super().__init__(name="worker-output", daemon=True)
        self._stream, self.log = process.stdout, log
        self.last = b""
        self.trouble: LavisExtError | None = None

    def run(self) -> None:
        """Until the last process that writes has ended."""
        with ExitStack() as stack:
            sink: IO[bytes] | None = None
            with suppress(OSError):  # on a disk that is full there is no log
                sink = stack.enter_context(self.log.open("ab", buffering=0))
            while self._stream is not None and (data := os.read(self._stream.fileno(), BLOCK)):
                with suppress(OSError):
                    if sink is not None:
                        sink.write(data)
                self.last = (self.last + data)[-BLOCK:]
                self._find_trouble()

    def _find_trouble(self) -> None:
        found, line = self.last.rpartition(MARK)[1:]
        if found and b"\n" in line and self.trouble is None:
            with suppress(ValueError, TypeError, KeyError):
                raw = decode_json(line.split(b"\n")[0])
                self.trouble = disk_error(OSError(raw["errno"], os.strerror(raw["errno"])), Path(raw["path"]))


TROUBLES: list[tuple[int, str, str]] = []
"""Number, text and path of each write that failed in this process, for those whose standard error goes elsewhere."""


def report_trouble(error: OSError, path: str) -> None:
    """Tell the process that watches of a write that failed: img2dataset itself goes on after it.

    By standard error, which needs no disk, and which processes on this machine inherit; from another machine it comes
    as the result of the work (`worker.attempt`).
    """
    name = error.filename if isinstance(error.filename, str) else path
    TROUBLES.append((error.errno or errno.EIO, error.strerror or str(error), name))
    told = json.dumps({"errno": error.errno or errno.EIO, "path": name}).encode()
    with suppress(OSError):
        os.write(2, b"\n" + MARK + told + b"\n")


@contextmanager
def reporting(path: str) -> Iterator[None]:
    """Report an OSError inside it, which is raised on."""
    try:
        yield
    except OSError as error:
        report_trouble(error, path)
        raise


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


def _crash(code: int, output: Output) -> LavisExtError:
    lines = output.last[-TAIL:].decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else "it wrote no log"
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return PartialError("img2dataset", f"{how}: {last}", f"see {output.log}, then run again: finished shards are kept")
