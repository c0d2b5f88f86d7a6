"""Rank 0 goes first: what it prepares, tells, refuses, and how long the others wait."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lavis_ext.common.errors import ConfigError, Problem, TrainingError
from lavis_ext.runners.distributed import as_picklable, broadcast_from_main, main_first
from tests.support.processes import run_ranks
from tests.support.waiting import tell_and_wait

ALONE: Any = SimpleNamespace(num_processes=1, is_main_process=True)


@pytest.mark.fault("P04")
def test_one_process_waits_for_nobody() -> None:
    def refuse() -> None:
        raise ConfigError("here", "no")

    assert broadcast_from_main(ALONE, lambda: 3, 1) == 3
    assert main_first(ALONE, lambda: 4, 1) == 4
    with pytest.raises(ConfigError):
        broadcast_from_main(ALONE, refuse, 1)


def test_errors_travel() -> None:
    error = ConfigError.of([Problem("a", "b", "c"), Problem("d", "e")])
    assert str(pickle.loads(pickle.dumps(as_picklable(error)))) == str(error)
    other = as_picklable(ValueError("x"))
    assert isinstance(other, TrainingError)
    assert "ValueError: x" in str(other)


@pytest.mark.slow
@pytest.mark.fault("P01")
def test_two_ranks(tmp_path: Path) -> None:
    done = run_ranks(tell_and_wait, 2, (tmp_path,), tmp_path)
    first, second = ((tmp_path / f"told_{rank}").read_text().splitlines() for rank in (0, 1))
    assert first[:3] == ["once", "of 0", "ConfigError here: rank 0 cannot; do this"], done.stderr[-3000:]
    assert second[:3] == first[:3]
    assert first[3] == "ZeroDivisionError in a library"
    assert second[3] == "TrainingError rank 0: failed with ZeroDivisionError: in a library; see its own output"
    assert "0.02 minutes" in second[4]
    assert "raise run.wait_minutes" in second[4]
