"""What a run of the demo scored, from the log that it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lavis_ext.demo.stages import ELSEWHERE
from lavis_ext.errors import IntegrityError

LOG = "log.jsonl"


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
