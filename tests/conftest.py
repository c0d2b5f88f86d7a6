"""What all tests share: the loopback server's and the small disk's fixtures, and no look-ups at the hub.

`-n auto` spreads the files over workers.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch: its threads and the other workers' would queue, and a run in this process, where some tests ask for one
# thread, would round otherwise than one in a process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["LAVIS_EXT_ACCEPT_LICENCE"] = "all"  # of drawn worlds under the names of families
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job, whose children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What one worker or process has compiled the others load, also where the environment asks for no `__pycache__`: else
# each worker rewrote all assertions, and each of some hundred processes compiled the package, anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
gc.disable()  # until all is imported, of which nothing is garbage: a third of the time of collection


def flushed(file: Any) -> None:
    """No test cuts the power: others read what is written, flushed or not. It spares thousands of waits for a disk."""
    os.fstat(file if isinstance(file, int) else file.fileno())  # an error where it is not open


os.fsync = os.fdatasync = flushed  # in this process; those that it starts flush

pytest_plugins = ["tests.support.server", "tests.support.disks", "tests.support.canary"]


def pytest_configure(config: pytest.Config) -> None:
    """Keep what became of every catalogued fault in this session, where LAVIS_EXT_FAULT_OUTCOMES names a file.

    Drawn inputs are the same in each session, and none is too slow: `tests.faults.fuzz` draws others.
    """
    from hypothesis import HealthCheck, settings

    from tests.faults.report import Collector  # after the plug-ins, which pytest rewrites

    settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("suite")
    if target := os.environ.pop("LAVIS_EXT_FAULT_OUTCOMES", ""):
        config.pluginmanager.register(Collector(target=Path(target)), "fault-outcomes")
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Collector(worker=config), "fault-outcomes")


def pytest_collection_finish() -> None:
    """Let garbage be looked for among what the tests make alone, not among a million objects of imported modules."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many workers as processors, up to four: more would wait for the longest file."""
    return min(4, len(os.sched_getaffinity(0)))
