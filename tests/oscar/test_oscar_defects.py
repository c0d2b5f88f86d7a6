"""Defects of upstream's training loops that a run here must not have; those of scores stand with the tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lavis_ext.common.errors import DiskError
from lavis_ext.runners import checkpoint
from tests.support.runs import toy_runner

VALIDATED = {"valid_splits": ["val"], "save_freq": 10}


def best(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "job" / "best.json").read_text())
    return found


def test_a_score_that_never_rises_above_zero_still_has_a_best_model(tmp_path: Path) -> None:
    """Upstream ends in a KeyError then, after the whole training."""
    toy_runner(tmp_path, metrics=(0.0,), **VALIDATED).train()
    assert best(tmp_path) == {"checkpoint": "checkpoint_6", "step": 6}
    assert (tmp_path / "job" / "checkpoint_best" / "model.safetensors").is_file()


def test_the_best_is_that_of_its_epoch_and_the_last_that_of_the_last(tmp_path: Path) -> None:
    """Upstream's `checkpoint-N` hold the best weights so far under the name of epoch N; a fork writes no best."""
    runner = toy_runner(tmp_path, metrics=(0.2, 0.9, 0.5), **VALIDATED)
    runner.train()
    assert best(tmp_path)["checkpoint"] == "checkpoint_12"
    last = checkpoint.load(tmp_path / "job" / "checkpoint_18")
    kept = checkpoint.load(tmp_path / "job" / "checkpoint_12")
    assert last.model["head.weight"].tolist() != kept.model["head.weight"].tolist()
    assert runner.model.state_dict()["head.weight"].tolist() == last.model["head.weight"].tolist()


def test_a_full_disk_is_told_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream tries ten times in a bare `except:` and then goes on as if it had saved."""
    tries = []

    def full(*_: object) -> None:
        tries.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DiskError, match=r"(?i)no space left"):
        toy_runner(tmp_path, **VALIDATED).train()
    assert len(tries) == 1


def test_an_interruption_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same `except:` takes a Ctrl-C for a failed write."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toy_runner(tmp_path, **VALIDATED).train()
