"""Checkpoints under attack: torn, flipped, out of space, replaced, pruned."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from lavis_ext.common.errors import DiskError, IntegrityError
from lavis_ext.runners import checkpoint
from tests.support.runs import resumed, toy_runner, weights
from tests.support.toys import ToyModel

MODEL = {"head.weight": torch.ones(2, 2)}


def save(folder: Path, step: int, best: bool = False, **state: Any) -> Path:
    return checkpoint.save(folder, step, MODEL, {"step": step, **state}, best)


def steps(folder: Path) -> list[int]:
    return [int(path.name.rpartition("_")[2]) for path in checkpoint.candidates(folder)]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_holds_what_it_was_given(tmp_path: Path) -> None:
    loaded = checkpoint.load(save(tmp_path, 7, other={"rate": 0.1, "pair": (1, torch.zeros(2))}))
    assert torch.equal(loaded.model["head.weight"], MODEL["head.weight"])
    assert loaded.state["other"]["rate"] == 0.1
    assert torch.equal(loaded.state["other"]["pair"][1], torch.zeros(2))
    assert json.loads((tmp_path / "latest.json").read_text()) == {"checkpoint": "checkpoint_7", "step": 7}


@pytest.mark.parametrize("name", ["model.safetensors", "tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.fault("K05")
def test_a_flipped_bit_falls_back_to_the_previous_one_and_says_so(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    flip(save(tmp_path, 2) / name)
    with caplog.at_level(logging.WARNING):
        loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded.state["step"] == 1
    assert "checkpoint_2" in caplog.text
    assert (tmp_path / "damaged_checkpoint_2").is_dir()  # set aside, not deleted


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.fault("K03")
def test_a_missing_file_is_a_damaged_checkpoint(name: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / name).unlink()
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded.path.name == "checkpoint_1"


@pytest.mark.fault("K05")
def test_nothing_whole_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    flip(save(tmp_path, 1) / "model.safetensors")
    with pytest.raises(IntegrityError, match="no checkpoint is whole"):
        checkpoint.load_newest(tmp_path)


def test_nothing_at_all_is_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint_3.part").mkdir()
    assert checkpoint.load_newest(tmp_path) is None


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("IoError: No space left")]
)
@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.fault("K04")
def test_a_full_disk_is_told_and_the_old_checkpoint_stays(
    error: Exception, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    calls = iter(range(9))
    real = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        if next(calls) == call:
            path.write_bytes(b"half")
            raise error
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DiskError, match=r"(?i)no space left"):
        save(tmp_path, 2)
    monkeypatch.undo()
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded.state["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint_1", "latest.json"]


@pytest.mark.fault("K04")
def test_a_full_disk_ends_a_run_with_its_last_checkpoint_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    toy_runner(tmp_path, max_epoch=1).train()
    runner = resumed(tmp_path, max_epoch=2)
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DiskError) as caught:
        runner.train()
    assert caught.value.exit_code == 6
    monkeypatch.undo()
    assert resumed(tmp_path, max_epoch=2).progress.step == 6


@pytest.mark.parametrize("moment", ["old", "gone"])
@pytest.mark.fault("K03")
def test_a_crash_while_a_step_is_replaced_loses_nothing(moment: str, tmp_path: Path) -> None:
    save(tmp_path, 3, turn=1)
    (tmp_path / "checkpoint_3").rename(tmp_path / "checkpoint_3.old")
    if moment == "gone":  # the new one is in place, the old one not yet deleted
        shutil.copytree(tmp_path / "checkpoint_3.old", tmp_path / "checkpoint_3")
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded.path.name == ("checkpoint_3.old" if moment == "old" else "checkpoint_3")
    save(tmp_path, 3, turn=2)
    assert [p.name for p in checkpoint.candidates(tmp_path)] == ["checkpoint_3"]


def test_the_size_that_is_told_is_that_of_what_is_written(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, max_epoch=1)
    told = runner.checkpoint_size()
    runner.train()
    saved = checkpoint.load_newest(tmp_path / "job")
    assert saved is not None
    moments = [v for state in saved.state["optimizer"]["state"].values() for k, v in state.items() if k != "step"]
    assert told == sum(tensor.nbytes for tensor in [*saved.model.values(), *moments])


def test_a_pointer_to_a_folder_that_is_gone_points_nowhere(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert checkpoint.pointed(tmp_path, "latest") == tmp_path / "checkpoint_1"
    assert checkpoint.pointed(tmp_path, "best") is None
    shutil.rmtree(tmp_path / "checkpoint_1")
    assert checkpoint.pointed(tmp_path, "latest") is None


@pytest.mark.fault("K13")
def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, best=step == 2)
        checkpoint.prune(tmp_path, 2)
    assert steps(tmp_path) == [5, 4, 2]


@pytest.mark.parametrize("keep", [1, 0, -3])
@pytest.mark.fault("K13")
def test_pruning_never_deletes_the_only_one(keep: int, tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert checkpoint.prune(tmp_path, keep) == []
    assert steps(tmp_path) == [1]


@pytest.mark.fault("K13")
def test_what_a_crashed_pruning_leaves_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *args, **kwargs: None)
    checkpoint.prune(tmp_path, 1)
    assert steps(tmp_path) == [2]


@pytest.mark.fault("K07")
def test_frozen_weights_are_not_saved_and_not_touched(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path)
    before = {name: p.clone() for name, p in runner.model.eye.named_parameters()}
    runner.train()
    saved = checkpoint.load_newest(tmp_path / "job")
    assert saved is not None
    assert set(saved.model) == {"head.weight", "head.bias", "scale"}
    assert set(saved.state["frozen"]) >= {"eye.0.weight", "eye.1.bias"}
    assert all(torch.equal(p, before[name]) for name, p in runner.model.eye.named_parameters())


@pytest.mark.fault("K07")
def test_a_checkpoint_of_another_model_is_refused_before_a_tensor_changes(tmp_path: Path) -> None:
    toy_runner(tmp_path, max_epoch=1).train()
    saved = checkpoint.load_newest(tmp_path / "job")
    assert saved is not None
    other = ToyModel(width=5)
    before = other.head.weight.clone()
    with pytest.raises(IntegrityError, match=r"head\.weight"):
        other.load_trainable_state(saved.model)
    assert torch.equal(other.head.weight, before)


@pytest.mark.fault("K05")
def test_a_damaged_newest_checkpoint_costs_only_the_steps_since(tmp_path: Path) -> None:
    straight = toy_runner(tmp_path / "straight", keep_checkpoints=3)
    straight.train()
    toy_runner(tmp_path / "hit", keep_checkpoints=3).train()
    flip(tmp_path / "hit" / "job" / "checkpoint_18" / "model.safetensors")
    runner = resumed(tmp_path / "hit", keep_checkpoints=3)
    assert runner.progress.step == 12
    runner.train()
    assert weights(runner) == weights(straight)


def test_no_pickle_is_written(tmp_path: Path) -> None:
    toy_runner(tmp_path, max_epoch=1).train()
    names = {path.name for path in (tmp_path / "job" / "checkpoint_6").iterdir()}
    assert names == {"model.safetensors", "tensors.safetensors", "state.json", "manifest.json"}
