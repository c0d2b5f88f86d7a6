"""Progress of downloads: nested bars on a terminal, else a plain line per file every 5 % or 30 seconds."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from lavis_ext.common.secrets import printable
from lavis_ext.common.wording import human
from lavis_ext.fetch.transfer import Progress, Silent

if TYPE_CHECKING:
    import rich.progress

Write = Callable[[str], None]
BIG = 1 << 20


@dataclass
class _File:
    total: int | None
    done: int = 0
    shown_share: int = 0
    shown_at: float = 0.0


class Lines:
    """One line of text at most every `step` percent or `every` seconds per file, and one when it ends.

    Only files of at least 1 MiB, and failures, get lines, so that the log of a run of forty thousand images stays
    readable.
    """

    def __init__(
        self, write: Write, step: int = 5, every: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._step = step
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, label: str, total: int | None) -> None:
        """A file starts."""
        with self._lock:
            self._files[label] = _File(total, shown_at=self._clock())

    def advance(self, label: str, count: int) -> None:
        """Bytes came; a line if it is time for one."""
        with self._lock:
            file = self._files.get(label)
            if file is None:
                return
            file.done += count
            line = self._due(label, file)
        if line:
            self._write(line)

    def end(self, label: str, outcome: str) -> None:
        """A file is done."""
        with self._lock:
            file = self._files.pop(label, None)
        if file is None or (outcome in ("fetched", "reused") and max(file.done, file.total or 0) < BIG):
            return
        size = f", {human(file.done or file.total or 0)}" if outcome != "failed" else ""
        self._write(f"{printable(label, kept='')}: {outcome}{size}")

    def _due(self, label: str, file: _File) -> str:
        now = self._clock()
        share = file.done * 100 // file.total if file.total else 0
        late = now - file.shown_at >= self._every
        if not late and (share < file.shown_share + self._step or (file.total or 0) < BIG or share >= 100):
            return ""
        file.shown_share, file.shown_at = share - share % self._step, now
        of = f" of {human(file.total)} ({share} %)" if file.total else ""
        return f"{printable(label, kept='')}: {human(file.done)}{of}"


class Bars:
    """Nested bars by rich: one over all files, one for each that is under way; a context manager."""

    def __init__(self, stream: TextIO | None = None, colour: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Rich

        console = Console(file=stream or sys.stderr, no_color=not colour)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
        self._bars = Rich(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self._lock = threading.Lock()
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._counts: dict[str, int] = {"begun": 0, "done": 0}
        self._known = 0
        self._overall = self._bars.add_task("all files", total=None)

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, label: str, total: int | None) -> None:
        """Add a bar."""
        with self._lock:
            self._tasks[label] = self._bars.add_task(printable(label, kept=""), total=total)
            self._counts["begun"] += 1
            self._known += total or 0
            self._describe()

    def advance(self, label: str, count: int) -> None:
        """Move the file's bar and the one over all."""
        with self._lock:
            task = self._tasks.get(label)
        if task is not None:
            self._bars.advance(task, count)
            self._bars.advance(self._overall, count)

    def end(self, label: str, outcome: str) -> None:
        """Remove the file's bar; failures stay as a line."""
        with self._lock:
            task = self._tasks.pop(label, None)
            self._counts["done"] += 1
            self._describe()
        if task is not None:
            self._bars.remove_task(task)
        if outcome == "failed":
            self._bars.console.print(f"{printable(label, kept='')}: failed", markup=False)

    def _describe(self) -> None:
        text = f"{self._counts['done']} of {self._counts['begun']} files"
        self._bars.update(self._overall, description=text, total=self._known or None)


def make_progress(write: Write, stream: TextIO | None = None, quiet: bool = False) -> Lines | Bars | QuietProgress:
    """Bars where `stream` (default stderr) is a terminal, else lines through `write`; `NO_COLOR` is honoured."""
    if quiet:
        return QuietProgress()
    out = stream or sys.stderr
    if out.isatty() and os.environ.get("TERM") != "dumb":
        return Bars(out, colour=not os.environ.get("NO_COLOR"))
    return Lines(write)


class QuietProgress(Silent):
    """Shows nothing; a context manager as the others are."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass
