"""Two gloo ranks on the CPU give what one rank gives with both their batches, but for the order of sums.

Losses are compared as they are logged, of runs under `LINEAR`, whose weights differ by rounding alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.runners import checkpoint
from tests.support.processes import Ended, run_ranks
from tests.support.ranks import leave_rows, leave_shares, leave_weights, trained
from tests.support.runs import LINEAR, log_lines, require_close_weights

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def launch(folder: Path, processes: int, **keys: Any) -> Ended:
    """Run the toy on so many ranks and wait for it."""
    folder.mkdir(exist_ok=True)
    return run_ranks(leave_weights, processes, (str(folder), keys), folder)


def torchrun(folder: Path, processes: int, **keys: Any) -> subprocess.CompletedProcess[str]:
    """The same under torchrun, as a user starts it."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += ["--module", "tests.support.ranks", str(folder), json.dumps(keys)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in log_lines(folder) if line["kind"] == "train"]


def test_two_ranks_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"accum_grad_iters": 2, "valid_splits": ["val"], "max_epoch": 2, **LINEAR}
    one, two = tmp_path / "one", tmp_path / "two"
    trained(one, batch_size_train=4, **keys)
    done = torchrun(two, 2, batch_size_train=2, **keys)
    assert done.returncode == 0, done.stderr[-6000:]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert len(losses(one)) == 4
    saved = json.loads((two / "job" / "latest.json").read_text())
    assert saved["step"] == 4
    done = launch(two, 2, batch_size_train=2, **{**keys, "max_epoch": 3})
    assert done.returncode == 0, done.stderr[-6000:]
    assert len(losses(two)) == 6


def test_a_loop_of_the_tasks_own_gives_the_same_weights(tmp_path: Path) -> None:
    """Under DDP, killed by nobody; FSDP is refused, since LAVIS' loops know nothing of shards."""
    keys: dict[str, Any] = {"batch_size_train": 2, "max_epoch": 2, "dropout": 0.1}
    for name in ("runner", "task"):
        done = launch(tmp_path / name, 2, loop_of_task=name == "task", **keys)
        assert done.returncode == 0, done.stderr[-6000:]
    runner, task = (json.loads((tmp_path / name / "weights.json").read_text()) for name in ("runner", "task"))
    assert runner == task
    done = launch(tmp_path / "sharded", 2, loop_of_task=True, parallel="fsdp", **keys)
    assert done.returncode != 0 and "run.parallel" in done.stderr


@pytest.mark.fault("K01")
def test_a_bad_sample_of_one_rank_stops_all_and_is_named(tmp_path: Path) -> None:
    done = launch(tmp_path / "job2", 2, batch_size_train=2, poisoned="7")
    assert done.returncode != 0
    told = json.loads((tmp_path / "job2" / "job" / "nonfinite.json").read_text())
    assert "7" in told["ids"]
    assert len(told["ids"]) == 2


def test_every_rank_is_handed_the_work_of_all(tmp_path: Path) -> None:
    done = run_ranks(leave_shares, 2, (str(tmp_path),), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        handed = json.loads((tmp_path / f"handed_{rank}.json").read_text())
        assert handed == [["val", 0, 2, 4], ["val", 1, 2, 4]]


def test_rows_of_a_tasks_own_evaluation_are_joined(tmp_path: Path) -> None:
    for by_task in (False, True):
        folder = tmp_path / str(by_task)
        folder.mkdir()
        done = run_ranks(leave_rows, 2, (str(folder), by_task), folder)
        assert done.returncode == 0, done.stderr[-3000:]
    runner, task = (tmp_path / str(by_task) / "job/result/val_epoch0.json" for by_task in (False, True))
    assert json.loads(task.read_text()) == json.loads(runner.read_text()) and len(json.loads(task.read_text())) == 4
    done = run_ranks(leave_rows, 2, (str(tmp_path), True, False), tmp_path)
    assert done.returncode != 0 and "run.task" in done.stderr


@pytest.mark.parametrize("arch", ["", "blip2_opt"])
def test_sharded_parameters_give_the_same_run(arch: str, tmp_path: Path) -> None:
    """FSDP of two ranks against one rank: losses, weights, and checkpoints of the same form."""
    picture = {"arch": arch, "edge": 64} if arch else {}
    keys: dict[str, Any] = {"valid_splits": ["val"], "max_epoch": 2, "clip_grad_norm": 1.0, "size": 8, **LINEAR}
    keys |= picture
    one, two = tmp_path / "one", tmp_path / "two"
    trained(one, batch_size_train=4, **keys)
    done = launch(two, 2, batch_size_train=2, parallel="fsdp", **keys)
    assert done.returncode == 0, done.stderr[-6000:]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    alone, shared = (newest(folder) for folder in (one, two))
    require_close_weights(alone.model, shared.model)
    sizes = [[{k: v.shape for k, v in s.items()} for s in slots(saved)] for saved in (alone, shared)]
    assert sizes[0] == sizes[1]
    if not arch:
        again = launch(two, 2, batch_size_train=2, parallel="ddp", **{**keys, "max_epoch": 3})
        assert again.returncode == 0, again.stderr[-6000:]
        assert len(losses(two)) == 6


def newest(folder: Path) -> checkpoint.Checkpoint:
    saved = checkpoint.load_newest(folder / "job")
    assert saved is not None
    return saved


def slots(saved: checkpoint.Checkpoint) -> list[dict[str, torch.Tensor]]:
    """What the optimizer keeps of each parameter."""
    return list(saved.state["optimizer"]["state"].values())
