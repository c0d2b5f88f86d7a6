"""Two machines, as two network namespaces with a cable between them: torchrun trains over both, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.killing import checkpoints, kill_tree
from tests.support.runs import log_lines
from tests.support.server import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # of six torchruns, on a machine that has other work
ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29511
KEYS: dict[str, Any] = {"size": 160, "batch_size_train": 2, "max_epoch": 2, "save_steps": 5, "dropout": 0.1}


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=20)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """The pids that hold two namespaces, which are gone with them; skipped where they are not allowed."""
    if "LAVIS_EXT_TEST_NODES" not in os.environ:  # six torchruns: a stage of CI has it
        pytest.skip("takes a minute: set LAVIS_EXT_TEST_NODES=1")
    if not all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip")):
        pytest.skip("no unshare, nsenter or ip here")
    with ExitStack() as stack:
        pids = []
        for _ in ADDRESSES:
            words = ["unshare", "--net", "sh", "-c", "echo ready; exec sleep 600"]
            holder = stack.enter_context(
                subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            )
            stack.callback(holder.kill)
            if holder.stdout is None or holder.stdout.readline() != "ready\n":
                pytest.skip("network namespaces are not allowed here")
            pids.append(str(holder.pid))
        inside = [["nsenter", "-t", pid, "--net", "ip"] for pid in pids]
        try:
            run(*inside[0], "link", "add", "cable0", "type", "veth", "peer", "name", "cable1", "netns", pids[1])
            for number, (ip, address) in enumerate(zip(inside, ADDRESSES, strict=True)):
                run(*ip, "addr", "add", f"{address}/24", "dev", f"cable{number}")
                run(*ip, "link", "set", f"cable{number}", "up")
                run(*ip, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no cable between namespaces here: {error.stderr.decode().strip()}")
        yield pids


def start(nodes: list[str], folder: Path) -> list[subprocess.Popen[bytes]]:
    """torchrun on both nodes."""
    folder.mkdir(exist_ok=True)
    started = []
    for number, pid in enumerate(nodes):
        words = ["nsenter", "-t", pid, "--net", sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        words += [f"--node-rank={number}", "--nproc-per-node=1", f"--master-addr={ADDRESSES[0]}"]
        words += [f"--master-port={PORT}", "--module", "tests.support.ranks", str(folder), json.dumps(KEYS)]
        more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"cable{number}"}
        with (folder / f"node_{number}.log").open("ab") as log:
            started.append(subprocess.Popen(words, env={**os.environ, **more}, stdout=log, stderr=log))
    return started


def finish(started: list[subprocess.Popen[bytes]]) -> list[int]:
    """Wait for both; what is left of them is killed."""
    try:
        return [process.wait(240) for process in started]
    finally:
        for process in started:
            kill_tree(process.pid)
            process.wait()


def test_a_run_over_two_nodes_goes_on_after_one_is_lost(nodes: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finish(start(nodes, whole)) == [0, 0], (whole / "node_0.log").read_text()[-3000:]
    started = start(nodes, cut)
    try:
        assert wait_until(lambda: any(one.poll() is not None for one in started) or bool(checkpoints(cut / "job")), 240)
        kill_tree(started[1].pid)  # the node is lost; the other cannot go on, and ends by itself
        started[0].wait(120)
    finally:
        for process in started:
            kill_tree(process.pid)
            process.wait()
    assert finish(start(nodes, cut)) == [0, 0], (cut / "node_0.log").read_text()[-3000:]
    assert (cut / "weights.json").read_text() == (whole / "weights.json").read_text()
    assert [line["loss"] for line in log_lines(cut)] == [line["loss"] for line in log_lines(whole)]
