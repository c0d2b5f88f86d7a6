"""Legs of a journey below one folder: each done once, recorded when it ended well, and used again by a later call."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_ext.demo.steps import Answer
from lavis_ext.errors import IntegrityError, UsageError
from lavis_ext.files import disk_errors, write_json

log = logging.getLogger(__name__)
ELSEWHERE = "choose another folder with --out"
KEPT = ("job", "report", "words")
Outcome = dict[str, Any]
"""What is recorded of a stage: `seconds`, and of a run its `job` and `report`."""


@dataclass(frozen=True)
class Stage:
    """One leg of the journey; `reused`: it had been done before, and `seconds` is what it took then."""

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
