"""Signals end a run after a step: SIGTERM and the first SIGINT let it finish and save, a second SIGINT is immediate."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

from lavis_ext.runner.loop import Hook, Runner

log = logging.getLogger(__name__)


class SignalHook(Hook):
    """Asks the runner to stop: after the step it saves and raises Preempted (75) or KeyboardInterrupt (130)."""

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Listen, if this is the main thread (elsewhere python cannot)."""
        if threading.current_thread() is not threading.main_thread():
            return
        runner.stop_requested = self.requested
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)

    def requested(self) -> int:
        """The signal that came, 0 if none."""
        return self.received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        log.warning("%s: finishing the step, then saving", signal.Signals(number).name)
        if number == signal.SIGINT:  # the next one is not ours to delay
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def after_train(self, runner: Runner) -> None:
        """Give the handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
