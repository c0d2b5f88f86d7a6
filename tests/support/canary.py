"""A plugin that searches all that a session of tests wrote and printed for the secrets that its tests use.

Tests take secrets that begin with `MARK`. A file that a test itself makes with one in it (a file of tokens, a card with
a signed address) is named with `planted`; everything else that holds one has leaked, and fails the session. Each of
pytest's workers (`-n`) searches its folder when it has ended; what was planted is known once all have.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MARK = "c4n4ry"
_planted: set[Path] = set()
_held: set[Path] = set()
_searched: set[Path] = set()
_leaks: list[str] = []
_began = time.time()


def planted(path: Path) -> Path:
    """Note a file that a test made with a secret in it, as a user would; what the product copies of it is a leak."""
    _planted.add(path.resolve())
    return path


def holding(*roots: Path) -> list[Path]:
    """The files below folders that hold the mark, whatever else is in them."""
    folders = [str(root) for root in roots if root.exists()]
    if not folders:
        return []
    # By --null-data zeros are ends of lines, of which grep skips the empty ones: it passes over the holes of a file
    # of a terabyte, which by lines it takes for one, and all memory for that.
    command = ["grep", "--recursive", "--files-with-matches", "--binary-files=text", "--fixed-strings", "--null"]
    command += ["--null-data"]
    done = subprocess.run(
        [*command, "--devices=skip", MARK, *folders], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    return sorted(Path(name.decode(errors="surrogateescape")) for name in done.stdout.split(b"\0") if name)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Look through what a test that passed printed and logged, beyond what it read itself."""
    if report.when == "call" and report.passed and MARK in report.capstdout + report.capstderr + report.caplog:
        _leaks.append(f"printed by {report.nodeid}")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker's tests planted, and what it found; the folder of one that crashed is still to be searched."""
    for name, known in (("planted", _planted), ("held", _held), ("searched", _searched)):
        known.update(Path(os.fsdecode(path)) for path in getattr(node, "workeroutput", {}).get(name, []))


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Look through what is left of the tests' folders, before they are cleared, and logs of internal errors."""
    factory = getattr(session.config, "_tmp_path_factory", None)
    base = getattr(factory, "_basetemp", None)  # None where no test asked for a folder
    if hasattr(session.config, "workeroutput"):
        folders = [base] if base else []
        known = {"planted": _planted, "held": holding(*folders), "searched": folders}
        session.config.workeroutput.update(
            {name: [os.fsencode(path) for path in paths] for name, paths in known.items()}
        )
        yield
        return
    logs = [path for path in Path(tempfile.gettempdir()).glob("lavis-ext-*.log") if path.stat().st_mtime >= _began]
    left = [one for one in base.iterdir() if one not in _searched and not one.is_symlink()] if base else []
    found = [*sorted(_held), *holding(*left, *logs)]
    _leaks.extend(str(path) for path in found if path.resolve() not in _planted)
    if _leaks and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each place of a leak."""
    for leak in _leaks:
        terminalreporter.write_line(f"SECRET LEAKED: {leak}", red=True)
