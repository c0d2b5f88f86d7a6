"""A small distillation on one of several ranks: each leaves what training moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.distilling import distill_runner, moved


def leave_moved(folder: str, keys: dict[str, Any]) -> None:
    """A run to its end, without dropout, which ranks draw apart; every rank writes `moved_RANK.json`."""
    runner = distill_runner(Path(folder), drop_out=0.0, **keys)
    runner.train()
    (Path(folder) / f"moved_{runner.accelerator.process_index}.json").write_text(json.dumps(moved(runner)))
