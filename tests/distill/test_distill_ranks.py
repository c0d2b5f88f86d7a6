"""Two ranks teach one student, and keep one teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.distill_ranks import leave_moved
from tests.support.processes import run_ranks
from tests.support.runs import LINEAR, log_lines

pytestmark = pytest.mark.slow
KEYS: dict[str, Any] = {
    "teacher_update": "reptile",
    "meta_lr": 0.3,
    "inner_lr": 0.1,
    "strategy": "skip",
    "max_epoch": 2,
    "clip_grad_norm": 1.0,
    **LINEAR,
}


def launch(folder: Path, **keys: Any) -> None:
    folder.mkdir()
    done = run_ranks(leave_moved, 2, (str(folder), keys), folder)
    assert done.returncode == 0, done.stderr[-6000:]


def numbers(path: Path) -> np.ndarray:
    """Everything that moved, in one row."""

    def flat(value: Any) -> list[float]:
        return [x for item in value for x in flat(item)] if isinstance(value, list) else [float(value)]

    return np.array(flat(json.loads(path.read_text())))


def test_two_ranks_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    leave_moved(str(one), {"batch_size_train": 4, **KEYS})
    launch(two, batch_size_train=2, **KEYS)
    first, second = numbers(two / "moved_0.json"), numbers(two / "moved_1.json")
    assert np.array_equal(first, second), "both ranks step by the same reduced gradient"
    # by LINEAR as in require_close_weights; both moments of Adam, which are among these, are as exact as the gradient
    np.testing.assert_allclose(first, numbers(one / "moved_0.json"), rtol=1e-5, atol=1e-5)
    told = [[line["loss"] for line in log_lines(folder)] for folder in (one, two)]
    assert told[1] == pytest.approx(told[0], rel=1e-5)
