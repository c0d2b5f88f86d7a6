"""The loop: what a step computes, what it refuses, in which order hooks are called."""

from __future__ import annotations

import cProfile
import json
import pstats
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import PartialError, TrainingError, UsageError
from lavis_ext.common.types import Batch
from lavis_ext.runners.runner_base import Hook, RunnerBase
from lavis_ext.runners.schedule import layer_scales, parameter_groups
from tests.support.runs import log_lines, resumed, toy_runner, weights
from tests.support.toys import ToyModel


def gradients(runner: RunnerBase, size: int) -> torch.Tensor:
    """The gradient of the head after one window, before the optimizer moves."""
    runner.model.drop.p = 0.0
    runner.model.train()
    for index in range(size):
        runner.backward(size, last=index == size - 1)
    return torch.cat([p.grad.flatten() for p in runner.trained() if p.grad is not None])


def test_a_window_has_the_gradient_of_one_large_batch(tmp_path: Path) -> None:
    four = gradients(toy_runner(tmp_path, batch_size_train=2, accum_grad_iters=4), 4)
    one = gradients(toy_runner(tmp_path, batch_size_train=8), 1)
    assert torch.allclose(four, one, atol=1e-6)


def test_the_remainder_of_an_epoch_is_a_step_at_its_own_scale(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, size=6, batch_size_train=2, accum_grad_iters=2, max_epoch=1)
    seen: list[tuple[int, bool]] = []

    class Watch(Hook):
        def before_step(self, runner: RunnerBase) -> None:
            seen.append((runner.progress.batch, bool(runner.model.head.weight.grad.abs().sum() > 0)))

    runner.hooks = (*runner.hooks, Watch())
    runner.train()
    assert seen == [(2, True), (3, True)]
    assert runner.progress.step == 2
    assert all(p.grad is None for p in runner.trained())


def test_the_last_window_is_divided_by_what_it_holds(tmp_path: Path) -> None:
    """Three micro-batches in windows of two: the gradient of the last step is that of its one, not half of it."""

    def gradients_of_steps(accum: int) -> list[torch.Tensor]:
        taken: list[torch.Tensor] = []

        class Watch(Hook):
            def before_step(self, runner: RunnerBase) -> None:
                taken.append(torch.cat([p.grad.flatten() for p in runner.trained() if p.grad is not None]))

        keys: dict[str, Any] = {"size": 6, "batch_size_train": 2, "max_epoch": 1, "init_lr": 0.0}
        runner = toy_runner(tmp_path / str(accum), extra=[Watch()], accum_grad_iters=accum, **keys)
        runner.model.drop.p = 0.0
        runner.train()
        return taken

    first, second, third = gradients_of_steps(1)
    torch.testing.assert_close(gradients_of_steps(2), [(first + second) / 2, third])


def test_a_step_searches_for_nothing(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, max_epoch=1)
    runner.notify("before_train")
    runner.run_step(1)
    with cProfile.Profile() as profile:
        runner.run_step(1)
    looked = {name for _, _, name in pstats.Stats(profile).stats}  # type: ignore[attr-defined]
    assert "run_step" in looked and not looked & {"find_spec", "named_modules", "signature"}


def test_clipping_bounds_the_gradient_and_tells_its_true_norm(tmp_path: Path) -> None:
    class Watch(Hook):
        norm = 0.0

        def after_step(self, runner: RunnerBase, step: Any) -> None:
            Watch.norm = step.norm

    runner = toy_runner(tmp_path, clip_grad_norm=0.01, max_epoch=1, init_lr=1e-9)
    clipped: list[float] = []
    original = runner.stepper.step

    def step() -> None:
        clipped.append(float(torch.nn.utils.get_total_norm([p.grad for p in runner.trained()])))
        original()

    runner.stepper.step = step
    runner.hooks = (*runner.hooks, Watch())
    runner.train()
    assert max(clipped) == pytest.approx(0.01, rel=1e-3)
    assert Watch.norm > 0.1


@pytest.mark.parametrize("accum", [1, 3])
@pytest.mark.fault("K01")
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(accum: int, tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, accum_grad_iters=accum)
    runner.model.poisoned = "7"
    batches = next(batch for batch in runner.batches.rows() if 7 in batch)
    position = runner.batches.rows().index(batches)
    snapshots: list[Any] = []

    class Watch(Hook):
        def after_step(self, runner: RunnerBase, step: Any) -> None:
            snapshots.append(weights(runner))

    runner.hooks = (*runner.hooks, Watch())
    before = weights(runner)
    with pytest.raises(TrainingError) as caught:
        runner.train()
    assert caught.value.exit_code == 11
    assert len(snapshots) == position // accum
    assert weights(runner) == (snapshots[-1] if snapshots else before)
    assert all(torch.isfinite(p).all() for p in runner.trained())
    told = json.loads((tmp_path / "job" / "nonfinite.json").read_text())
    assert told["ids"] == [str(index) for index in batches]
    assert "samples: " + ", ".join(told["ids"]) in str(caught.value)


@pytest.mark.fault("K01")
def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path)
    runner.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = [p.clone() for p in runner.trained()]
    with pytest.raises(TrainingError, match="the gradient is not finite"):
        runner.train()
    assert all(torch.equal(p, q) for p, q in zip(runner.trained(), before, strict=True))


class Recorder(Hook):
    """Writes down what it is told, with a letter of its own."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.letter, self.calls = name, calls

    def before_train(self, runner: RunnerBase) -> None:
        self.calls.append(f"{self.letter}:before_train")

    def before_step(self, runner: RunnerBase) -> None:
        self.calls.append(f"{self.letter}:before_step")

    def after_step(self, runner: RunnerBase, step: Any) -> None:
        self.calls.append(f"{self.letter}:after_step")

    def after_epoch(self, runner: RunnerBase) -> None:
        self.calls.append(f"{self.letter}:after_epoch")

    def after_train(self, runner: RunnerBase) -> None:
        self.calls.append(f"{self.letter}:after_train")


def test_hooks_are_called_in_order_at_every_moment(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, size=2, max_epoch=2)
    calls: list[str] = []
    runner.hooks = (*runner.hooks, Recorder("a", calls), Recorder("b", calls))
    runner.train()
    epoch = ["before_step", "after_step", "after_epoch"]
    moments = ["before_train", *epoch, *epoch, "after_train"]
    assert calls == [f"{letter}:{moment}" for moment in moments for letter in "ab"]


def test_every_hook_is_closed_even_if_one_fails(tmp_path: Path) -> None:
    class Broken(Hook):
        def after_train(self, runner: RunnerBase) -> None:
            raise ValueError("broken")

    calls: list[str] = []
    runner = toy_runner(tmp_path, size=2, max_epoch=1)
    runner.hooks = (*runner.hooks, Broken(), Recorder("b", calls))
    with pytest.raises(ValueError, match="broken"):
        runner.train()
    assert calls[-1] == "b:after_train"


def test_the_best_is_judged_by_val_and_tested_with_its_weights(tmp_path: Path) -> None:
    runner = toy_runner(
        tmp_path, valid_splits=["other", "val"], test_splits=["test"], metrics=[9, 0.1, 9, 0.3, 9, 0.2, 0.7]
    )
    runner.train()
    assert runner.progress.best == {"metric": 0.3, "step": 12, "epoch": 1, "split": "val"}
    assert runner.task.evaluated[-1] == ("test", "best")
    best = resumed_at(tmp_path, "checkpoint_best")
    assert torch.equal(runner.model.head.weight.detach(), best["head.weight"])


def resumed_at(folder: Path, name: str) -> dict[str, torch.Tensor]:
    from lavis_ext.runners import checkpoint

    return checkpoint.load(folder / "job" / name).model


def test_a_metric_below_zero_can_be_the_best(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, valid_splits=["val"], metrics=[-3, -2, -4])
    runner.train()
    assert runner.progress.best["metric"] == -2


def test_without_a_metric_the_last_weights_are_tested(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, test_splits=["test"])
    runner.train()
    assert runner.task.evaluated == [("test", "2")]


def test_validation_happens_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, valid_splits=["val"], val_freq=2, max_epoch=5)
    runner.train()
    assert [label for _, label in runner.task.evaluated] == ["1", "3", "4"]


def test_evaluation_leaves_the_model_in_training_mode_and_the_generators_alone(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, valid_splits=["val"])
    runner.model.train()
    state = torch.get_rng_state()
    runner.evaluate_split("val", "0")
    assert runner.model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_no_usable_sample_is_exit_8(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, valid_splits=["val"])
    runner.task.valid_step = lambda batch: []
    with pytest.raises(PartialError) as caught:
        runner.evaluate_split("val", "0")
    assert caught.value.exit_code == 8


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'val'"):
        toy_runner(tmp_path, valid_splits=["val"]).evaluate_split("vall", "0")


def test_samples_and_steps_are_counted_and_a_log_is_all_that_is_written(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, size=10, batch_size_train=4, max_epoch=2, save_steps=2)
    runner.train()
    at = runner.progress
    assert (at.step, at.epoch, at.batch, at.samples, at.skipped) == (6, 2, 0, 20, 0)
    lines = (tmp_path / "job" / "log.jsonl").read_text().splitlines()
    assert all(0 <= json.loads(line)["data_wait"] < 1 for line in lines)
    assert not (tmp_path / "job" / "tensorboard").exists()
    assert not (tmp_path / "job" / "best.json").exists()


def test_pictures_arrive_normalised(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path)
    seen: list[Batch] = []
    runner.model.register_forward_pre_hook(lambda model, batches: seen.append(batches[0]))
    runner.backward(1, last=True)
    assert seen[0]["image"].dtype == torch.float32
    assert float(seen[0]["image"].min()) < -0.5


def test_log_lines_average_over_steps_and_end_with_the_epoch(tmp_path: Path) -> None:
    toy_runner(tmp_path / "one", log_freq=1, max_epoch=1).train()
    toy_runner(tmp_path / "four", log_freq=4, max_epoch=1).train()
    each = [line["loss"] for line in log_lines(tmp_path / "one")]
    lines = log_lines(tmp_path / "four")
    assert [line["step"] for line in lines] == [4, 6]
    assert [line["loss"] for line in lines] == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 2])


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    toy_runner(tmp_path, max_epoch=1, tensorboard=True).train()
    assert list((tmp_path / "job" / "tensorboard").glob("events.*"))


def test_checkpoints_come_when_asked_for(tmp_path: Path) -> None:
    toy_runner(tmp_path, save_freq=2, keep_checkpoints=9, max_epoch=3, save_last=False).train()
    assert [p.name for p in (tmp_path / "job").glob("checkpoint_*")] == ["checkpoint_12"]


def test_mixed_precision_on_the_cpu(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, precision="bf16", max_epoch=1)
    runner.train()
    assert runner.model.head.weight.dtype == torch.float32
    assert resumed(tmp_path, precision="bf16", max_epoch=1).progress.step == 6


def test_layers_of_the_image_encoder_decay_from_the_top() -> None:
    names = [
        "visual.embeddings.patch_embed.weight",
        "visual.blocks.0.w",
        "visual.blocks.1.w",
        "visual.norm.weight",
        "head.w",
    ]
    # LAVIS' and BEiT's rule: the top block is one power below what stands above it
    assert list(layer_scales(names, 0.5).values()) == [0.125, 0.25, 0.5, 1.0, 1.0]


def test_groups_hold_every_trained_parameter_once() -> None:
    model = ToyModel()
    groups = parameter_groups(model, RunConfig(task="toy", weight_decay=0.1, lr_layer_decay=0.9))
    assert [(g["weight_decay"], g["lr_scale"], len(g["params"])) for g in groups] == [(0.1, 1.0, 1), (0.0, 1.0, 2)]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_an_exhausted_memory_says_what_to_lower(
    error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(self: object, batch: object) -> None:
        raise error

    monkeypatch.setattr(ToyModel, "forward", exhausted)
    with pytest.raises(TrainingError) as caught:
        toy_runner(tmp_path, batch_size_train=8, accum_grad_iters=3).train()
    told = str(caught.value)
    assert "memory" in told
    assert "run.batch_size_train=4 run.accum_grad_iters=6" in told
    assert "use_grad_checkpoint" in told


def test_an_evaluation_that_does_not_fit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(self: object, batch: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ToyModel, "generate", exhausted)
    with pytest.raises(TrainingError, match=r"lower run\.batch_size_eval"):
        toy_runner(tmp_path, valid_splits=["val"]).train()


def test_other_errors_are_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, batch: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(ToyModel, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        toy_runner(tmp_path).train()
