"""Two gloo ranks on the CPU give what one rank gives with both their batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import log_lines

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def launch(folder: Path, processes: int, **keys: Any) -> subprocess.CompletedProcess[str]:
    """Run the toy under torchrun and wait for it."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += ["--module", "tests.support.ranks", str(folder), json.dumps(keys)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in log_lines(folder) if line["kind"] == "train"]


def test_two_ranks_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"accum_grad_iters": 2, "valid_splits": ["val"], "max_epoch": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, processes, size in ((one, 1, 4), (two, 2, 2)):
        done = launch(folder, processes, batch_size_train=size, **keys)
        assert done.returncode == 0, done.stderr[-6000:]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert len(losses(one)) == 4
    saved = json.loads((two / "job" / "latest.json").read_text())
    assert saved["step"] == 4
    done = launch(two, 2, batch_size_train=2, **{**keys, "max_epoch": 3})
    assert done.returncode == 0, done.stderr[-6000:]
    assert len(losses(two)) == 6


def test_a_bad_sample_of_one_rank_stops_all_and_is_named(tmp_path: Path) -> None:
    done = launch(tmp_path / "job2", 2, batch_size_train=2, poisoned="7")
    assert done.returncode != 0
    told = json.loads((tmp_path / "job2" / "job" / "nonfinite.json").read_text())
    assert "7" in told["ids"]
    assert len(told["ids"]) == 2
