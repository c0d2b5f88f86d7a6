"""Faults of a training and its checkpoints: killed at any step, disks too small, files nobody may read, settings that
cannot work."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.deaths import PLACES, ended, require_same_end, start, write_birds, write_run

STEPS = 12


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a run file of twelve steps for one rank; for two, with half the batch."""
    base = tmp_path_factory.mktemp("birds")
    write_birds(base)
    write_run(base)
    return base


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param(1, marks=pytest.mark.fault("K03", "K06", "K13")),
        pytest.param(2, marks=pytest.mark.fault("H36", "K03", "K06", "P03")),
    ],
)
def test_killed_in_each_of_twelve_steps_it_ends_as_if_left_alone(ranks: int, birds: Path) -> None:
    """Start n is killed in step n, each time at the next of PLACES; of two ranks one, and the other ends with 11.

    Each start goes on from the checkpoint of the one before, so that an error of any resume would be in the end.
    """
    options = [f"run.batch_size_train={2 // ranks}"]
    whole, job = f"whole{ranks}", f"cut{ranks}"
    assert ended(start(birds, whole, ranks, options=options)) == [0] * ranks
    for step in range(1, STEPS + 1):
        place = PLACES[step % len(PLACES)]
        victim = step % ranks if place in PLACES[:2] else 0
        codes = ended(start(birds, job, ranks, {victim: (step, place, None)}, options))
        assert codes == [-signal.SIGKILL if rank == victim else 11 for rank in range(ranks)], (step, place)
    assert ended(start(birds, job, ranks, options=options)) == [0] * ranks
    require_same_end(birds / "runs" / whole, birds / "runs" / job)
    assert json.loads((birds / "runs" / job / "run.json").read_text())["step"] == STEPS
