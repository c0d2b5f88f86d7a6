"""Fetches in processes that can be stopped, killed or moved to another machine; forked from one that has it all."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from lavis_ext.common.errors import LavisExtError
from lavis_ext.fetch import Policy, Source, Transfer, fetch, lock
from tests.support.server import wait_until

QUICK = {
    "retries": 3,
    "backoff": 0.01,
    "backoff_cap": 0.05,
    "stall_timeout": 5.0,
    "fsync": False,
    "offline": False,
    "owner_watch": 0.2,
    "owner_stall": 5.0,
}


class Fetcher:
    """A process that fetches one file after the other, each in a child of its own; a context manager."""

    def __init__(self, prefix: tuple[str, ...] = ()) -> None:
        command = [*prefix, sys.executable, "-m", "tests.support.fetchers"]
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=environment
        )
        self.pid = 0

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.pid:
            self.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, path: Path, url: str, size: int | None, sha256: str | None, **more: Any) -> None:
        """Begin to fetch; `stop_at` names a function before whose first call the process stops itself."""
        assert self._process.stdin is not None
        job = {"path": str(path), "url": url, "size": size, "sha256": sha256, **more}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        self.pid = int(self._line()["pid"])

    def wait(self) -> dict[str, Any]:
        """How it ended: `exit` (0, the error's exit code, or minus a signal), `error`, `reused`."""
        self.pid = 0
        return self._line()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait; it may have ended by itself."""
        with suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.wait()

    def wait_stopped(self) -> None:
        """Until it stands still."""
        stat = Path(f"/proc/{self.pid}/stat")
        assert wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


def elsewhere(folder: Path, name: str = "", boot: str = "", machine: str = "") -> tuple[str, ...] | None:
    """A command prefix that runs a program with another host name, boot id and machine id; None where none may."""
    lines = [f"hostname {name}"] if name else []
    for what, text in (("/proc/sys/kernel/random/boot_id", boot), ("/etc/machine-id", machine)):
        if text:
            file = folder / Path(what).name
            file.write_text(f"{text}\n")
            lines.append(f"mount --bind {file} {what}")
    for flags in ("-mu", "-Urmu"):
        prefix = ("unshare", flags, "sh", "-ec", "\n".join([*lines, 'exec "$@"']), "sh")
        if shutil.which("unshare") and not subprocess.run([*prefix, "true"], capture_output=True).returncode:
            return prefix
    return None


def main() -> None:
    """Read a job a line; fork a child for each, print its pid, then how it ended."""
    importlib.import_module("lavis_ext.fetch.http")
    for line in sys.stdin:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            os._exit(child(json.loads(line), writing))
        os.close(writing)
        say({"pid": pid})
        with os.fdopen(reading) as pipe:
            answer = json.loads(pipe.read() or "{}")
        _, status = os.waitpid(pid, 0)
        say({**answer, "exit": os.waitstatus_to_exitcode(status)})


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def child(job: dict[str, Any], pipe: int) -> int:
    """Fetch; the exit code is the error's."""
    lock.HEARTBEAT = job.get("heartbeat", 60.0)
    if job.get("stop_at"):
        stop_before(job["stop_at"], job.get("calls", 1))
    policy = Policy(**{**QUICK, **job.get("policy", {})})
    answer, code = {}, 0
    try:
        result = fetch(Transfer(Path(job["path"]), (Source(job["url"]),), job["size"], job["sha256"]), policy)
        answer = {"reused": result.reused, "sha256": result.sha256}
    except LavisExtError as error:
        answer, code = {"error": str(error)}, error.exit_code
    except BaseException:
        answer, code = {"error": traceback.format_exc()}, 1
    os.write(pipe, json.dumps(answer).encode())
    return code


def stop_before(place: str, calls: int) -> None:
    """Stop this process (SIGSTOP) before the `calls`-th call of `module:function` or `module:Class.method`."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for one in outer:
        owner = getattr(owner, one)
    real: Callable[..., Any] = getattr(owner, name)
    count = [0]

    def stopping(*args: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] == calls:
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(*args, **named)

    setattr(owner, name, stopping)


if __name__ == "__main__":
    main()
