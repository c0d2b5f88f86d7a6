"""A run that was cut off and resumed gives the numbers of one that was not, bit by bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.runners import checkpoint
from lavis_ext.runners.microbatch import Step
from lavis_ext.runners.runner_base import Hook, RunnerBase
from tests.support import kill
from tests.support.processes import forked
from tests.support.runs import log_lines, resumed, toy_runner, weights

KEYS: dict[str, Any] = {
    "valid_splits": ["val"], "accum_grad_iters": 4, "save_steps": 1, "log_freq": 2, "clip_grad_norm": 1.0,
    "warmup_steps": 3, "warmup_lr": 0.001, "keep_checkpoints": 3,
}  # fmt: skip


class Cut(Hook):
    """Ends a run after a step, as a crash would."""

    def __init__(self, step: int) -> None:
        self.at = step

    def after_step(self, runner: RunnerBase, step: Step) -> None:
        if runner.progress.step == self.at:
            raise RuntimeError("cut")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("straight")
    runner = toy_runner(folder, size=13, **KEYS)
    runner.train()
    return weights(runner), log_lines(folder)


@pytest.mark.parametrize("step", range(1, 7))
@pytest.mark.fault("K06")
def test_a_cut_at_any_step_leaves_no_trace(step: int, tmp_path: Path, straight: Any) -> None:
    with pytest.raises(RuntimeError, match="cut"):
        toy_runner(tmp_path, extra=[Cut(step)], size=13, **KEYS).train()
    runner = resumed(tmp_path, size=13, **KEYS)
    assert runner.progress.step == step
    runner.train()
    assert weights(runner) == straight[0]
    assert log_lines(tmp_path) == straight[1]


@pytest.mark.fault("K06")
def test_a_cut_between_checkpoints_repeats_the_steps_since(tmp_path: Path, straight: Any) -> None:
    keys = {**KEYS, "save_steps": 2}
    with pytest.raises(RuntimeError, match="cut"):
        toy_runner(tmp_path, extra=[Cut(5)], size=13, **keys).train()
    assert log_lines(tmp_path)[-1]["step"] >= 4
    runner = resumed(tmp_path, size=13, **keys)
    assert runner.progress.step == 4
    runner.train()
    assert weights(runner) == straight[0]
    assert log_lines(tmp_path) == straight[1]


def test_a_checkpoint_from_before_the_first_line_of_the_log_is_resumed(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"log_freq": 4, "save_steps": 1, "keep_checkpoints": 99, "max_epoch": 1}
    toy_runner(tmp_path, **keys).train()
    whole = log_lines(tmp_path)
    *later, first = checkpoint.candidates(tmp_path / "job")
    assert (first.name, len(whole)) == ("checkpoint_1", 2)
    for folder in later:
        shutil.rmtree(folder)
    resumed(tmp_path, **keys).train()
    assert log_lines(tmp_path) == whole


def test_a_different_seed_gives_different_numbers(tmp_path: Path, straight: Any) -> None:
    runner = toy_runner(tmp_path, size=13, **KEYS, seed=7)
    runner.train()
    assert weights(runner) != straight[0]


def test_evaluation_does_not_change_training(tmp_path: Path, straight: Any) -> None:
    runner = toy_runner(tmp_path, size=13, **{**KEYS, "valid_splits": []})
    runner.train()
    assert weights(runner) == straight[0]


@pytest.mark.fault("K08")
def test_the_best_metric_survives(tmp_path: Path) -> None:
    keys = {"valid_splits": ["val"], "max_epoch": 3}
    with pytest.raises(RuntimeError, match="cut"):
        toy_runner(tmp_path, extra=[Cut(8)], metrics=[0.9, 0.1], **keys).train()
    runner = resumed(tmp_path, metrics=[0.3, 0.2], **keys)
    runner.train()
    assert runner.progress.best["metric"] == 0.9
    assert (tmp_path / "job" / "checkpoint_best").resolve().name == "checkpoint_6"


def test_a_finished_run_that_is_started_again_says_nothing_twice(tmp_path: Path) -> None:
    keys = {"valid_splits": ["val"], "test_splits": ["test"]}
    toy_runner(tmp_path, **keys).train()
    before = log_lines(tmp_path)
    resumed(tmp_path, **keys).train()
    assert log_lines(tmp_path) == before


@pytest.mark.slow
@pytest.mark.fault("K06")
def test_ten_kills_at_random_moments(tmp_path: Path) -> None:
    context = forked()
    keys = {**KEYS, "save_steps": 3, "max_epoch": 40, "keep_checkpoints": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    _finish(context, whole, keys)
    chance = random.Random(5)
    for _ in range(10):
        _kill(context, cut, keys, chance.uniform(0.0, 0.12))
    _finish(context, cut, keys)
    assert (cut / "weights.json").read_text() == (whole / "weights.json").read_text()
    assert log_lines(cut) == log_lines(whole)


def _finish(context: Any, folder: Path, keys: dict[str, Any]) -> None:
    process = context.Process(target=kill.run, args=(str(folder), 0.0, keys))
    process.start()
    process.join(250)
    assert process.exitcode == 0


def _kill(context: Any, folder: Path, keys: dict[str, Any], after_s: float) -> None:
    """Kill -9 some time after the first step, of eighty, and at the latest behind the sixth."""
    alive = folder / "alive"
    alive.unlink(missing_ok=True)
    process = context.Process(target=kill.run, args=(str(folder), 0.02, keys, 6))
    process.start()
    deadline = time.monotonic() + 120
    while not alive.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(after_s)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_log_lines_of_a_resume_are_json(tmp_path: Path) -> None:
    toy_runner(tmp_path).train()
    log = tmp_path / "job" / "log.jsonl"
    with log.open("a") as file:
        file.write('{"kind": "train", "step"')  # torn by a crash
    resumed(tmp_path).train()
    assert all(json.loads(line) for line in log.read_text().splitlines())
