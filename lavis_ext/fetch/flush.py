"""Flushing folders to the disk: threads that finish files in one folder at the same time share one flush of it."""

from __future__ import annotations

import threading
from pathlib import Path

from lavis_ext.files import flush_folder


class _Turn:
    """Flushes of one folder, numbered: one runs at a time, and it serves all that asked before it began."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.asked = 0
        self.done = 0
        self.running = False


class Flusher:
    """`flush` returns when the folder's entries of the moment of the call are on the disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[Path, _Turn] = {}

    def flush(self, folder: Path) -> None:
        """Flush a folder; raises OSError."""
        with self._lock:
            turn = self._turns.setdefault(folder, _Turn())
        with turn.changed:
            turn.asked += 1
            mine = turn.asked
            while turn.done < mine and turn.running:
                turn.changed.wait()
            if turn.done >= mine:
                return
            turn.running, serves = True, turn.asked
        try:
            flush_folder(folder)
        except OSError:
            serves = 0  # the next in line tries again, and sees the error for itself
            raise
        finally:
            with turn.changed:
                turn.running, turn.done = False, max(turn.done, serves)
                turn.changed.notify_all()
