"""Runs a verb of the command line in a process of its own, as a user would, and reads what it answers as JSON."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lavis_ext.errors import LavisExtError

log = logging.getLogger(__name__)
Answer = list[dict[str, Any]]
LOOPBACK = "127.0.0.1"


class Command(Protocol):
    """Runs `lavis-ext WORDS… --json`; gives the objects that it printed."""

    def __call__(self, words: list[str], environment: Mapping[str, str], log_file: Path) -> Answer:
        """`environment`: variables over those of this process; `log_file` takes what the verb says to people."""


def run_verb(words: list[str], environment: Mapping[str, str], log_file: Path) -> Answer:
    """The real Command: `python -m lavis_ext`. What it says goes to the log and to `log_file` while it runs.

    Raises the error class of its exit code, with the messages that it gave.
    """
    command = [sys.executable, "-m", "lavis_ext", *words, "--json"]
    log_file.parent.mkdir(parents=True, exist_ok=True)
    printed = log_file.with_suffix(".jsonl")
    around = {**os.environ, **environment}
    with log_file.open("w", encoding="utf-8") as file, printed.open("w", encoding="utf-8") as answers:
        process = subprocess.Popen(
            command, env=around, stdout=answers, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        with process:
            try:
                relay(process.stderr or (), file)
            except BaseException:
                # A demo that is stopped takes its verb along, which ends as it does on any SIGTERM.
                process.terminate()
                raise
    code = process.returncode
    answer = read_objects(printed)
    if code:
        raise failure(words, code, answer, log_file)
    return answer


def relay(lines: Iterable[str], file: Any) -> None:
    """Each line to the file and to the log, as it comes."""
    for line in lines:
        file.write(line)
        file.flush()
        log.info("    %s", line.rstrip())


def read_objects(path: Path) -> Answer:
    """The JSON objects of a file of lines; other lines are passed over."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def failure(words: list[str], code: int, answer: Answer, log_file: Path) -> LavisExtError:
    """The error of the kind that an exit code stands for."""
    kinds = {kind.exit_code: kind for kind in LavisExtError.__subclasses__()}
    said = [str(error) for item in answer for error in item.get("errors", ())]
    what = f"ended with exit code {code}" + "".join(f"\n  {error}" for error in said)
    kind = kinds.get(code, LavisExtError)
    return kind(f"lavis-ext {' '.join(words[:2])}", what, f"all that it said is in {log_file}")


def environment_for(cache_root: Path, mirror: str = "") -> dict[str, str]:
    """The variables under which a verb of the demo runs: data in `cache_root`, bytes from `mirror` alone."""
    parent = Path(__file__).resolve().parents[2]
    # A checkout need not be installed. An installed package is found as it is: site-packages on this path would go
    # before the standard library, and hold things of the same names.
    checkout = str(parent) if (parent / "setup.cfg").is_file() else ""
    search = list(filter(None, [checkout, os.environ.get("PYTHONPATH")]))
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), LOOPBACK]))
    return {
        "LAVIS_EXT_CACHE_ROOT": str(cache_root),
        "LAVIS_EXT_MIRROR": mirror,
        # The mirror is on this machine: a user who works offline can run the demo too.
        "LAVIS_EXT_OFFLINE": "" if mirror else os.environ.get("LAVIS_EXT_OFFLINE", ""),
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": direct,
        "no_proxy": direct,
        "PYTHONPATH": os.pathsep.join(search),
    }
