"""Peers in environments of their own: one for each list in `constraints/`, kept in the user's cache."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

LISTS = Path(__file__).parent / "constraints"
PATIENCE = 600
"""Seconds for the packages of a peer; where every version is named it is a matter of downloading them."""


class MissingPeer(Exception):
    """A contender that is not here, or that failed; its text says why."""


def cache() -> Path:
    """Where environments and finished rows are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lavis_ext" / "benchmarks"


def environment(name: str) -> Path:
    """The folder of a peer's environment: its list, this Python and what it sees behind its own packages name it."""
    told = (LISTS / f"{name}.txt").read_bytes() + sysconfig.get_path("purelib").encode() + sys.version.encode()
    return cache() / f"{name}-{sha256(told).hexdigest()[:12]}"


def peer_python(name: str) -> str:
    """The Python of a peer that was prepared; raises MissingPeer."""
    folder = environment(name)
    if not (folder / "ready").is_file():
        raise MissingPeer(f"{name} is not installed: `python -m benchmarks --prepare`")
    return str(folder / "bin/python")


def prepare(names: Sequence[str], tell: Callable[[str], None]) -> dict[str, str]:
    """Make the environments that are not there yet; what went wrong, by name.

    A list names every package that a peer needs beyond ours, so that nothing is looked for and torch stays as it is.
    """
    failed: dict[str, str] = {}
    for name in names:
        folder = environment(name)
        if (folder / "ready").is_file():
            continue
        tell(f"{name}: to be installed into {folder}")
        python = folder / "bin/python"
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
            behind = next(folder.glob("lib/python*/site-packages")) / "zz-behind.pth"
            behind.write_text(sysconfig.get_path("purelib"))
            words = [*install, "-r", str(LISTS / f"{name}.txt")]
            subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.CalledProcessError as error:
            lines = [line for line in str(error.stderr).splitlines() if "ERROR" in line]
            failed[name] = (lines or ["it cannot be installed"])[-1][:300]
        except (subprocess.TimeoutExpired, OSError) as error:
            failed[name] = " ".join(str(error).split())[:300]
        else:
            (folder / "ready").touch()
        tell(f"{name}: {failed.get(name, 'ready')}")
    return failed
