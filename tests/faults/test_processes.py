"""Faults of processes and ranks: killed, crashed, waiting, out of memory; clocks; packages that lack."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_ext.common.errors import ConfigError, NetworkError, TrainingError
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.fetch import Policy, Source, Transfer, backends, fetch
from lavis_ext.runners import checkpoint
from lavis_ext.runners.device import build_accelerator
from lavis_ext.runners.job import owned
from tests.support.deaths import ended, require_same_end, start, write_birds, write_run
from tests.support.mixing import Numbers
from tests.support.processes import forked
from tests.support.runs import toy_runner
from tests.support.server import Server
from tests.support.toys import toy_run


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a run file of two or three steps, and what one rank and two make of it undisturbed."""
    base = tmp_path_factory.mktemp("birds")
    write_birds(base, train=12)
    write_run(base, max_epoch=1, valid_splits=[])
    for ranks in (1, 2):
        assert ended(start(base, f"whole{ranks}", ranks)) == [0] * ranks
    return base


def facts(base: Path, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((base / "runs" / job / "run.json").read_text())
    return found


@pytest.mark.fault("H36")
@pytest.mark.parametrize(("victim", "step", "place"), [(0, 0, "open"), (1, 0, "open"), (1, 2, "before_step")])
def test_a_killed_rank_ends_the_others_with_11(victim: int, step: int, place: str, birds: Path) -> None:
    """Before there is a step, and in one; at the other places by the training that is killed at each step."""
    job = f"killed_{victim}_{place}"
    codes = ended(start(birds, job, 2, {victim: (step, place, signal.SIGKILL)}))
    assert codes == ([-signal.SIGKILL, 11] if victim == 0 else [11, -signal.SIGKILL])
    assert "same command resumes" in (birds / f"{job}_{1 - victim}.txt").read_text()
    if step:
        assert facts(birds, job)["exit_code"] == 11
        assert ended(start(birds, job, 2)) == [0, 0]
        require_same_end(birds / "runs" / "whole2", birds / "runs" / job)


@pytest.mark.fault("P03")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_crashes_ends_all_and_the_checkpoint_stays(victim: int, birds: Path) -> None:
    """The crashed one says what it was (1, a defect), the others that it is gone.

    It fails with the kind of error that a rank that is gone makes in the others.
    """
    job = f"crashed_{victim}"
    codes = ended(start(birds, job, 2, {victim: (2, "before_step", RuntimeError("a bug"))}))
    assert codes == ([1, 11] if victim == 0 else [11, 1])
    saved = checkpoint.load_newest(birds / "runs" / job)
    assert saved is not None
    assert saved.state["progress"]["step"] == 1
    assert facts(birds, job)["exit_code"] == (None if victim == 0 else 11), "rank 0 alone writes"


@pytest.mark.fault("K09")
def test_a_signal_to_one_rank_while_it_evaluates_stops_all_at_the_next_step(birds: Path) -> None:
    """It may not stop alone: the others would wait for its rows."""
    options = ["run.valid_splits=[val]", "run.max_epoch=2", "run.tensorboard=true"]
    assert ended(start(birds, "signalled", 2, {1: (2, "evaluating", signal.SIGTERM)}, options)) == [75, 75]
    assert facts(birds, "signalled")["step"] == 3
    assert len(list((birds / "runs" / "signalled" / "tensorboard").iterdir())) == 1, "rank 0 alone writes"
    assert ended(start(birds, "signalled", 2, options=options)) == [0, 0]
    assert ended(start(birds, "undisturbed", 2, options=options)) == [0, 0]
    require_same_end(birds / "runs" / "undisturbed", birds / "runs" / "signalled")


@pytest.mark.fault("P01")
def test_what_one_rank_cannot_fetch_ends_all_at_once(birds: Path) -> None:
    """Rank 0 goes first: its error is that of all, long before `run.wait_minutes`."""
    error = NetworkError("http://here", "no mirror delivered", "try later")
    options = ["run.wait_minutes=60"]
    assert ended(start(birds, "unfetched", 2, {0: (0, "open", error)}, options)) == [4, 4]


@pytest.mark.fault("P01")
def test_what_the_second_rank_cannot_fetch_ends_all_too(birds: Path) -> None:
    error = NetworkError("http://here", "no mirror delivered", "try later")
    assert ended(start(birds, "unfetched_1", 2, {1: (0, "open", error)})) == [11, 4]


@pytest.mark.fault("P04", "P05")
def test_one_process_without_a_gpu_or_a_launcher(birds: Path) -> None:
    """`device: auto` where no GPU is to be seen; no process group is made, so no barrier can hang."""
    one = forked().Process(target=alone, args=(birds,))
    one.start()
    assert ended([one]) == [0]
    require_same_end(birds / "runs" / "whole1", birds / "runs" / "alone")


def alone(base: Path) -> None:
    """Train, and leave with 0 where all was done in this process on the CPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch.distributed as dist

    from lavis_ext.cli import main

    words = ["train", "--cfg-path", str(base / "run.yaml"), "--configs", str(base / "configs"), "--options"]
    code = main([*words, "run.device=auto", "run.job_id=alone"])
    os._exit(code or int(dist.is_initialized()))


@pytest.mark.fault("P03")
def test_ranks_that_do_not_meet_are_told_where(tmp_path: Path) -> None:
    """The port of rank 0 is taken by another program."""
    one = forked().Process(target=meet_at_a_taken_port, args=(tmp_path,))
    one.start()
    assert ended([one]) == [11]


def meet_at_a_taken_port(folder: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
        try:
            build_accelerator(toy_run(folder))
        except TrainingError as error:
            os._exit(error.exit_code if str(port) in str(error) else 1)
    os._exit(0)


class Greedy(Numbers):
    """One sample asks for more memory than any machine has."""

    def load(self, index: int, rng: Any) -> dict[str, Any]:
        if index == 5:
            np.ones(2**50)
        return super().load(index, rng)


@pytest.mark.fault("P02")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_runs_out_of_memory_ends_with_11_and_the_sample(workers: int) -> None:
    """Loaders are threads: nobody can kill one alone, but it can run out of memory; the process killed is K06."""
    mixture = Mixture({"greedy": Greedy(8)}, batch_size=2, num_workers=workers)
    with pytest.raises(TrainingError) as caught:
        list(mixture)
    assert caught.value.exit_code == 11
    assert "#5" in caught.value.problems[0].where
    assert "MemoryError" in caught.value.problems[0].what


def train_while_the_clock_jumps(folder: Path) -> None:
    """The wall clock goes an hour back at each look, as if it were set all the time."""
    hours = iter(range(0, 10**9, 3600))
    time.time = lambda: 1e9 - next(hours)
    with owned(folder / "job"):
        toy_runner(folder, max_epoch=1).train()


@pytest.mark.fault("P08")
def test_a_clock_that_jumps_changes_no_duration(tmp_path: Path) -> None:
    """Durations, waits and speeds of a run come from the monotonic clock."""
    one = forked().Process(target=train_while_the_clock_jumps, args=(tmp_path,))
    one.start()
    assert ended([one]) == [0]
    steps = [json.loads(line) for line in (tmp_path / "job" / "log.jsonl").read_text().splitlines()]
    assert len(steps) == 6
    assert all(step["samples_per_s"] > 0 and 0 <= step["data_wait"] < 1 for step in steps)


@pytest.mark.fault("P09")
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_package_that_is_not_installed_is_named_or_done_without(
    mirrored: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gdown reads Drive's page between: without it the code is 3, unless another source has the file."""
    for name in ("gdown", "gdown.download", "gdown.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(backends, "DRIVE_ENDPOINT", server.base)
    server.put("/uc", b"<html>Google Drive can't scan this file for viruses</html>", content_type="text/html")
    other = [Source(server.put("/a.bin", b"1234567"))] if mirrored else []
    transfer = Transfer(tmp_path / "a.bin", (Source("gdrive:ID7"), *other), 7)
    policy = Policy(retries=0, fsync=False, allow_private=True)
    if mirrored:
        fetch(transfer, policy)
        assert (tmp_path / "a.bin").read_bytes() == b"1234567"
        return
    with pytest.raises(ConfigError) as caught:
        fetch(transfer, policy)
    assert caught.value.exit_code == 3
    assert "pip install" in str(caught.value)


@pytest.mark.fault("P09")
@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_run_names_or_does_without_what_is_not_installed(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    runner = toy_runner(tmp_path, max_epoch=1, **{package: True})
    if package == "wandb":
        with pytest.raises(ConfigError, match="pip install wandb"):
            runner.train()
    else:
        runner.train()
