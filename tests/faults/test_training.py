"""Faults of a training and its checkpoints: killed at any step, disks too small, files nobody may read, settings that
cannot work."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from lavis_ext.browse.runs_page import list_runs
from lavis_ext.cli import main
from lavis_ext.common.errors import ConfigError, DiskError, TrainingError
from lavis_ext.common.files import to_disk_error
from lavis_ext.common.registry import lr_schedulers
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.fetch.lock import own_identity
from lavis_ext.models.export import new_folder
from lavis_ext.runners import checkpoint
from lavis_ext.runners.checkpoint import seed_everything
from lavis_ext.runners.runner_base import Hook, RunnerBase
from tests.support.deaths import PLACES, ended, require_same_end, start, write_birds, write_run
from tests.support.killing import own_until_killed
from tests.support.mixing import RawShards
from tests.support.runs import log_lines, resumed, toy_runner, weights
from tests.support.toys import ToyDataset

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
        codes = ended(start(birds, job, ranks, {victim: (step, place, signal.SIGKILL)}, options))
        assert codes == [-signal.SIGKILL if rank == victim else 11 for rank in range(ranks)], (step, place)
    assert ended(start(birds, job, ranks, options=options)) == [0] * ranks
    require_same_end(birds / "runs" / whole, birds / "runs" / job)
    assert json.loads((birds / "runs" / job / "run.json").read_text())["step"] == STEPS


@pytest.mark.fault("H37")
@pytest.mark.parametrize("reaped", [True, False])
def test_a_run_whose_process_was_killed_is_not_listed_as_running(reaped: bool, tmp_path: Path) -> None:
    """Also where the parent of the process (a scheduler, a shell) has not yet waited for it."""
    job = tmp_path / "job"
    job.mkdir()
    (job / "run.json").write_text(json.dumps({"job": "job", "status": "running"}))
    (job / "log.jsonl").touch()
    pid = own_until_killed(job)
    try:
        assert [run.state for run in list_runs(tmp_path)] == ["running"]
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        assert [run.state for run in list_runs(tmp_path)] == ["killed"]
        assert main(["browse", str(job)]) == 0
        assert "killed" in (job / "report.html").read_text()
    finally:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


@pytest.mark.fault("H37")
@pytest.mark.parametrize(
    ("changed", "silent", "state"),
    [
        ({"boot": "an earlier one"}, 3600, "killed"),
        ({"host": "another/machine"}, 3600, "killed"),
        ({"host": "another/machine"}, 5, "running"),
        (None, 0, "killed"),
    ],
)
def test_owners_of_another_boot_or_machine_are_known_by_their_heartbeat(
    changed: dict[str, str] | None, silent: int, state: str, tmp_path: Path
) -> None:
    """None: no owner file, as an earlier version or a clean end of a later start leaves it."""
    (tmp_path / "run.json").write_text(json.dumps({"job": "job", "status": "running"}))
    if changed is not None:
        file = tmp_path / "owner.json"
        file.write_text(json.dumps({**vars(own_identity()), **changed}))
        at = file.stat().st_mtime - silent
        os.utime(file, (at, at))
    before = sorted(tmp_path.iterdir())
    [run] = list_runs(tmp_path)
    assert run.state == state
    assert sorted(tmp_path.iterdir()) == before, "a listing changes nothing"


@pytest.fixture
def umask() -> Iterator[Any]:
    """Sets the umask for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.fault("H38")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077])
def test_all_that_a_run_writes_has_the_mode_that_the_umask_asks_for(mask: int, umask: Any, tmp_path: Path) -> None:
    umask(mask)
    keys: dict[str, Any] = {"valid_splits": ["val"], "max_epoch": 1, "tensorboard": True}
    toy_runner(tmp_path, **keys).train()
    files = [path for path in (tmp_path / "job").rglob("*") if path.is_file()]
    assert {"model.safetensors", "tensors.safetensors", "state.json", "manifest.json"} <= {p.name for p in files}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(0o666 & ~mask) for path in files
    }


@pytest.mark.fault("H38")
def test_an_export_has_the_mode_that_the_umask_asks_for(umask: Any, tmp_path: Path) -> None:
    umask(0o027)
    with new_folder(tmp_path / "out") as part:
        (part / "deep").mkdir(parents=True)
        checkpoint.save_file({"a": torch.zeros(2)}, part / "deep" / "model.safetensors")
    assert (tmp_path / "out" / "deep" / "model.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where the machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def train(base: Path, output: Path, job: str) -> tuple[int, str]:
    """The exit code of a training in a process of its own, and what it said."""
    said = base / f"{job}_0.txt"
    said.unlink(missing_ok=True)
    (code,) = ended(start(base, job, options=[f"run.output_dir={output}"]))
    return code, said.read_text()


@pytest.mark.fault("H39", "K04")
def test_a_disk_too_small_for_a_checkpoint_is_noticed_at_the_start_with_figures(birds: Path, small_disk: Path) -> None:
    code, said = train(birds, small_disk, "small")
    assert code == 6
    assert "step 1 " not in said
    assert re.search(r"[\d.]+ MB, 6[\d.]+ kB are free", said), said
    assert not list(small_disk.glob("small/checkpoint_*"))


@pytest.mark.fault("H39")
@pytest.mark.parametrize("there", [True, False])
def test_a_disk_that_cannot_be_written_is_told_as_such(there: bool, birds: Path, small_disk: Path) -> None:
    """Whether the folder of the job is there already or not."""
    if there:
        (small_disk / "fixed").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, said = train(birds, small_disk, "fixed")
    assert code == 6
    assert "ead-only" in said
    assert "free space" not in said
    assert "internal error" not in said


@pytest.mark.fault("H39")
@pytest.mark.parametrize("name", ["EROFS", "EACCES", "EPERM", "ENOTDIR", "EIO", "ENAMETOOLONG"])
def test_freeing_space_is_the_way_out_only_where_space_lacks(name: str, tmp_path: Path) -> None:
    import errno

    def way_out(number: int) -> str:
        return to_disk_error(OSError(number, os.strerror(number)), tmp_path / "a", "move").problems[0].way_out

    assert way_out(getattr(errno, name)) == "move"
    assert way_out(errno.ENOSPC) == way_out(errno.EDQUOT) == "free space, or move"


@pytest.mark.fault("H39")
def test_a_disk_that_holds_one_checkpoint_but_not_all_that_are_kept_is_a_warning(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.require_space(small_disk, 10_000, 3)
    assert not caplog.records
    checkpoint.require_space(small_disk, 30_000, 3)
    assert "keep_checkpoints" in caplog.text
    with pytest.raises(DiskError) as caught:
        checkpoint.require_space(small_disk, 100_000, 3)
    assert "100.0 kB" in str(caught.value)


@pytest.mark.fault("H22")
@pytest.mark.parametrize(
    "option",
    [
        *("run.num_beams=0", "run.num_beams=-1", "run.num_beams=1.5", "run.max_len=-1", "run.max_len=0"),
        *("run.min_len=-1", "run.min_len=31", "run.batch_size_eval=0", "run.batch_size_train=-2", "run.max_epoch=0"),
        *("run.accum_grad_iters=0", "run.log_freq=0", "run.val_freq=0", "run.keep_checkpoints=0", "run.save_steps=0"),
        *("run.num_workers=-1", "run.wait_minutes=0", "run.clip_grad_norm=0", "run.clip_grad_norm=-1"),
        *("run.repetition_penalty=0", "run.beta2=2", "run.weight_decay=-1"),
        *("run.num_beams=0 run.task=nocaps", "run.num_beams=0 run.task=vqa", "run.num_ans_candidates=0 run.task=vqa"),
        *("run.max_len=-1 run.task=image_text_pretrain run.eval_task=captioning", "run.k_test=-1 run.task=retrieval"),
    ],
)
def test_settings_that_cannot_work_are_found_before_a_step(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    assert main(["train", "--cfg-path", str(tmp_path / "run.yaml"), "--options", *option.split()]) == 3
    assert option.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault("H30")
@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"init_lr": -1.0}, "run.optimizer"),
        ({"init_lr": math.nan}, "run.optimizer"),
        ({"adam_epsilon": math.nan}, "run.optimizer"),
        ({"init_lr": math.inf}, "run.lr_sched"),
        ({"min_lr": math.nan}, "run.lr_sched"),
        ({"lr_sched": "linear_warmup_step_lr", "lr_decay_rate": 1e300}, "run.lr_sched"),
    ],
)
def test_rates_that_cannot_be_are_refused_before_a_step(keys: dict[str, Any], named: str, tmp_path: Path) -> None:
    """Also in a run made in code, and of the epochs to come."""
    with pytest.raises(ConfigError) as caught:
        toy_runner(tmp_path, **keys).train()
    where = caught.value.problems[0].where  # the setting, or what would be made of it
    assert where.startswith((named, *keys)), where
    assert not (tmp_path / "job" / "log.jsonl").exists()


@pytest.mark.fault("H30")
def test_a_rate_that_goes_wrong_late_in_an_epoch_is_refused_before_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr_schedulers.names()
    falling = lambda run, max_epoch: lambda at: 1e-3 - 3e-4 * at.batch  # noqa: E731
    monkeypatch.setitem(lr_schedulers._items, "falls_below_zero", falling)
    with pytest.raises(ConfigError, match="epoch 1"):
        toy_runner(tmp_path, lr_sched="falls_below_zero", max_epoch=1).train()
    assert not (tmp_path / "job" / "log.jsonl").exists()


@pytest.mark.fault("H30")
def test_a_seed_of_any_size_is_one(tmp_path: Path) -> None:
    seed_everything(10**23)
    first = torch.rand(3)
    seed_everything(10**23)
    assert torch.equal(torch.rand(3), first)
    seed_everything(42)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(42))
    assert torch.equal(torch.rand(3), expected), "other seeds give what they gave"
    one, other = (toy_runner(tmp_path / str(seed), seed=seed, max_epoch=1) for seed in (2**63 - 1, 2**63 - 2))
    with pytest.raises(ConfigError):
        toy_runner(tmp_path / "too large", seed=10**23)
    one.train(), other.train()
    assert weights(one) != weights(other)


@pytest.mark.fault("K08")
@pytest.mark.parametrize(
    ("metrics", "best"),
    [
        ([0.5, 0.5, 0.4], 0),
        ([math.nan, 0.1, 0.2], 2),
        ([0.3, math.nan, 0.2], 0),
        ([math.inf, 0.1, 0.0], 1),
        ([math.nan, math.nan, -5.0], 2),
        ([math.nan, math.nan, math.nan], None),
    ],
)
def test_neither_a_tie_nor_what_is_no_number_takes_the_place_of_the_best(
    metrics: list[float], best: int | None, tmp_path: Path
) -> None:
    runner = toy_runner(tmp_path, metrics=metrics, valid_splits=["val"])
    runner.train()
    assert runner.progress.best.get("epoch") == best
    assert (tmp_path / "job" / "best.json").exists() == (best is not None)


@pytest.mark.fault("K08")
def test_a_nan_that_an_earlier_version_kept_as_best_gives_way(tmp_path: Path) -> None:
    toy_runner(tmp_path, metrics=[0.5], valid_splits=["val"], max_epoch=1).train()
    state = tmp_path / "job" / "checkpoint_6"
    saved = checkpoint.load(state)
    saved.state["progress"]["best"]["metric"] = math.nan
    checkpoint.save(tmp_path / "job", 6, saved.model, saved.state)
    runner = resumed(tmp_path, metrics=[0.1], valid_splits=["val"], max_epoch=2)
    runner.train()
    assert runner.progress.best["metric"] == 0.1
    assert log_lines(tmp_path)[-1]["metrics"]["agg_metrics"] == 0.1


@pytest.mark.fault("K01")
def test_the_last_good_checkpoint_stays_where_a_loss_is_none(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, save_steps=1)
    runner.model.poisoned = str(runner.batches.rows()[3][0])
    with pytest.raises(TrainingError) as caught:
        runner.train()
    assert caught.value.exit_code == 11
    assert caught.value.problems[0].where == "step 3"
    again = resumed(tmp_path, save_steps=1)
    assert again.progress.step == 3
    assert all(torch.isfinite(p).all() for p in again.trained())


@pytest.mark.fault("K02")
def test_an_overflow_under_mixed_precision_is_skipped_and_counted_and_moves_no_rate(tmp_path: Path) -> None:
    """The scaler of fp16, here on the CPU. Rates follow the place in the data, as LAVIS' do: a skip shifts none."""

    def scaled(folder: Path) -> RunnerBase:
        runner = toy_runner(folder, max_epoch=2, warmup_steps=4, warmup_lr=1e-3)
        runner.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        runner.accelerator.native_amp, runner.accelerator.state._mixed_precision = True, "fp16"
        runner.stepper = AcceleratedOptimizer(runner.optimizer, scaler=runner.accelerator.scaler)
        return runner

    straight, hit = scaled(tmp_path / "straight"), scaled(tmp_path / "hit")
    straight.train()
    before: list[Any] = []

    class Overflow(Hook):
        def before_step(self, runner: RunnerBase) -> None:
            before[:] = weights(runner)[:9]

        def after_step(self, runner: RunnerBase, step: Any) -> None:
            assert (weights(runner)[:9] == before) == (runner.progress.step == 3)
            kept.remove() if runner.progress.step == 3 else None

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if hit.progress.step == 2 else gradient

    kept = hit.model.head.weight.register_hook(overflow)
    hit.hooks = (*hit.hooks, Overflow())
    hit.train()
    assert (straight.progress.skipped, hit.progress.skipped, hit.progress.step) == (0, 1, 12)
    rates = [[line["lr"] for line in log_lines(tmp_path / name)] for name in ("straight", "hit")]
    assert rates[0] == rates[1]
    assert log_lines(tmp_path / "hit")[-1]["skipped"] == 1


@pytest.mark.fault("K04")
def test_a_disk_that_fills_up_later_leaves_the_checkpoint_and_goes_on_when_there_is_room(
    birds: Path, small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    code, said = train(birds, small_disk, "full")
    assert code == 6, said
    assert "free space" in said
    saved = checkpoint.load_newest(small_disk / "full")
    assert saved is not None
    assert 0 < saved.state["progress"]["step"] < STEPS
    assert not list((small_disk / "full").glob(".checkpoint*"))
    subprocess.run(["mount", "-o", "remount,size=256m", small_disk], check=True)
    assert train(birds, small_disk, "full")[0] == 0
    assert checkpoint.candidates(small_disk / "full")[0].name == f"checkpoint_{STEPS}"


@pytest.mark.fault("K01", "K04")
def test_a_full_disk_does_not_hide_what_ended_a_run(birds: Path, small_disk: Path) -> None:
    """Nor is a full disk hidden by the log of TensorBoard, which a thread writes."""
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    options = [f"run.output_dir={small_disk}", "run.save_steps=null", "run.tensorboard=true"]
    dies = (3, "filled", TrainingError("step 3", "a loss is not finite", "lower it"))
    assert ended(start(birds, "hidden", dies={0: dies}, options=options)) == [11]
    assert "not finite" in (birds / "hidden_0.txt").read_text()


@pytest.mark.fault("K14")
def test_data_without_a_sample_end_before_a_model_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_birds(tmp_path, train=0)
    write_run(tmp_path)
    words = ["train", "--cfg-path", str(tmp_path / "run.yaml"), "--configs", str(tmp_path / "configs")]
    assert main([*words, "--options", "model.tokenizer=nowhere"]) == 3
    assert "tokenizer" not in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


class ToyShards(RawShards):
    """A stream of toy pictures."""

    def load(self, item: int, rng: torch.Generator) -> Any:
        return ToyDataset().load(item, rng)


@pytest.mark.fault("W12")
@pytest.mark.parametrize("cut", [1, 5, 7, 11])
def test_a_training_over_a_stream_goes_on_with_the_next_sample(cut: int, tmp_path: Path) -> None:
    """Two data sets, one of them shards; the samples of every step are written down."""

    def run(folder: Path, last: int | None) -> list[list[str]]:
        runner = toy_runner(folder, save_steps=2)
        mixture = Mixture({"toy": ToyDataset(6), "shards": ToyShards(10)}, batch_size=2, seed=3, num_workers=2)
        runner = RunnerBase.of(
            runner.run, runner.task, mixture, runner.evaluator, [*runner.hooks, Cut(last)], runner.accelerator
        )
        saved = checkpoint.load_newest(folder / "job")
        if saved is not None:
            runner.restore(saved)
        taken: list[list[str]] = []
        step = runner.wrapped.step

        def watched(batch: Any) -> Any:
            taken.append([f"{batch['dataset']} {name}" for name in batch["instance_id"]])
            return step(batch)

        runner.wrapped.step = watched
        if last is not None:
            with pytest.raises(RuntimeError, match="cut"):
                runner.train()
        else:
            runner.train()
        return taken

    whole = run(tmp_path / "whole", None)
    assert len(whole) == 24
    for epoch in (whole[:8], whole[8:16], whole[16:]):
        assert sorted(name for batch in epoch for name in batch if "toy" in name) == [f"toy {n}" for n in range(6)]
        assert sorted(name for batch in epoch for name in batch if "shards" in name) == [
            f"shards {n}" for n in range(10)
        ]
    first = run(tmp_path / "cut", cut)
    assert first == whole[:cut]
    assert run(tmp_path / "cut", None) == whole[cut // 2 * 2 :]


class Cut(Hook):
    """Ends a run after a step, as a crash would."""

    def __init__(self, step: int | None) -> None:
        self.at = step

    def after_step(self, runner: RunnerBase, step: Any) -> None:
        if runner.progress.step == self.at:
            raise RuntimeError("cut")
