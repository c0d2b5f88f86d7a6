"""Parts of the demo and of studies: verbs run in processes, stages recorded when done, scores read from logs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lavis_ext.common.errors import IntegrityError, LavisExtError, UsageError
from lavis_ext.common.files import disk_errors, write_json

log = logging.getLogger(__name__)
Answer = list[dict[str, Any]]
LOOPBACK = "127.0.0.1"
ELSEWHERE = "choose another folder with --out"
KEPT = ("job", "report", "words")
Outcome = dict[str, Any]
"""What is recorded of a stage: `seconds`, and of a run its `job` and `report`."""
LOG = "log.jsonl"


class Command(Protocol):
    """Runs `lavis-ext WORDS… --json`; gives the objects that it printed."""

    def __call__(self, words: list[str], environment: Mapping[str, str], log_file: Path) -> Answer:
        """`environment`: variables over those of this process; `log_file` gets what the verb writes to stderr."""


def run_verb(words: list[str], environment: Mapping[str, str], log_file: Path) -> Answer:
    """The real Command: `python -m lavis_ext`. Its stderr goes to the log and to `log_file` while it runs.

    Raises the error class of its exit code, with its messages.
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
                for line in process.stderr or ():
                    file.write(line)
                    file.flush()
                    log.info("    %s", line.rstrip())
            except BaseException:
                # A demo that is stopped takes its verb along, which ends as it does on any SIGTERM.
                process.terminate()
                raise
    code = process.returncode
    answer = read_objects(printed)
    if code:
        raise failure(words, code, answer, log_file)
    return answer


def read_objects(path: Path) -> Answer:
    """The JSON objects of a file of lines; other lines are skipped."""
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
    """The error of the kind of an exit code."""
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
        "LAVIS_EXT_ACCEPT_LICENCE": "all",  # of a drawn world
        "NO_PROXY": direct,
        "no_proxy": direct,
        "PYTHONPATH": os.pathsep.join(search),
    }


@dataclass(frozen=True)
class Stage:
    """One finished stage; `reused`: an earlier call had done it, and `seconds` is what it took then."""

    name: str
    seconds: float
    reused: bool = False


class Stages:
    """The finished stages of a plan, kept in one JSON file; safe to call from several threads.

    `describe` words a plan for the error of a folder that holds another one. Raises UsageError for such a folder,
    IntegrityError for a file that is no record, DiskError where the folder cannot be made.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any], describe: Callable[[Mapping[str, Any]], str]) -> None:
        self.path, self.plan = path, json.loads(json.dumps(plan))
        self.done: dict[str, Outcome] = {}
        self.passed: list[Stage] = []
        self._lock = threading.Lock()
        found = self._read()
        if found != self.plan:
            what = f"holds a demo of {describe(found)}, not of {describe(self.plan)}"
            raise UsageError(str(path.parent), what, ELSEWHERE)

    def do(self, name: str, act: Callable[[], Answer], still_there: Callable[[Outcome], bool]) -> Outcome:
        """Do a stage, unless it is done and its outcome is still there; record it when it has ended well."""
        before = self.done.get(name)
        if before and still_there(before):
            return self._pass(Stage(name, before["seconds"], reused=True), before)
        log.info("%s …", name)
        start = time.monotonic()
        outcome = {key: value for item in act() for key, value in item.items() if key in KEPT}
        outcome["seconds"] = round(time.monotonic() - start, 2)
        return self._pass(Stage(name, outcome["seconds"]), outcome)

    def _pass(self, stage: Stage, outcome: Outcome) -> Outcome:
        with self._lock:
            self.passed.append(stage)
            if not stage.reused:
                self.done[stage.name] = outcome
                with disk_errors(self.path, ELSEWHERE):
                    write_json(self.path, {"plan": self.plan, "stages": self.done})
        return outcome

    def _read(self) -> dict[str, Any]:
        """The plan that the folder holds; ours where it holds none."""
        try:
            with disk_errors(self.path.parent, ELSEWHERE):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if not self.path.exists():
                    return dict(self.plan)
                state = json.loads(self.path.read_text(encoding="utf-8"))
            plan, self.done = dict(state["plan"]), dict(state["stages"])
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(str(self.path), "is not the record of a demo", ELSEWHERE) from error
        return plan


def read_records(job: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; raises IntegrityError where it is not there or no such log."""
    path = job / LOG
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise IntegrityError(str(path), f"cannot be read ({type(error).__name__})", ELSEWHERE) from error
    return [record for record in records if isinstance(record, dict)]


def last_metrics(job: Path, split: str) -> dict[str, float]:
    """The numbers of the last evaluation of a split; raises IntegrityError if there is none."""
    found = [r.get("metrics") for r in read_records(job) if r.get("kind") == "eval" and r.get("split") == split]
    if not found or not isinstance(found[-1], dict):
        raise IntegrityError(str(job / LOG), f"holds no evaluation of the {split} split", ELSEWHERE)
    return {key: float(value) for key, value in found[-1].items() if isinstance(value, (int, float))}
