"""`lavis_ext/runners/logs.py`: what a line of the log says of memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASKED = "from lavis_ext.runners.logs import peak_memory_mb; print(peak_memory_mb())"
STARTED = f"""
import subprocess, sys
held = bytearray(b"x") * (1 << 31)
print(subprocess.check_output([sys.executable, "-c", {ASKED!r}], text=True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own figure is read from /proc")
def test_the_memory_of_the_program_that_starts_a_run_is_not_the_runs() -> None:
    told = subprocess.run([sys.executable, "-c", STARTED], check=True, capture_output=True, text=True, timeout=120)
    assert 100 < float(told.stdout) < 1500
