"""What all tests share: the loopback server's and the small disk's fixtures, and no look-ups at the hub."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LAVIS_EXT_ACCEPT_LICENCE"] = "all"  # of drawn worlds under the names of families
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job, whose children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.support.server", "tests.support.disks", "tests.support.canary"]


def pytest_configure(config: pytest.Config) -> None:
    """Keep what became of every catalogued fault in this session, where LAVIS_EXT_FAULT_OUTCOMES names a file."""
    if target := os.environ.pop("LAVIS_EXT_FAULT_OUTCOMES", ""):
        from tests.faults.report import Collector

        config.pluginmanager.register(Collector(target=Path(target)), "fault-outcomes")
