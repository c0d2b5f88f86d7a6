"""R12: a process killed ten times at random moments converges, and fetches again only what the sidecar did not list."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.fetch import Source, Transfer, fetch
from lavis_ext.fetch.lock import Ownership
from tests.support.fetching import FAST
from tests.support.server import Fault, Server, payload, wait_until

SIZE = 6_000_000
CHECKPOINT = 1 << 18
KILLS = 10

CHILD = """
import sys
from pathlib import Path
from lavis_ext.fetch import Policy, Source, Transfer, fetch, fetch_all
path, url, size, sha256, segments, checkpoint = sys.argv[1:]
policy = Policy(segments=int(segments), parallel_from=1 << 20, segment_bytes=1 << 20, checkpoint_bytes=int(checkpoint))
print("begin", flush=True)
transfer = Transfer(Path(path), (Source(url),), int(size), sha256)
fetch_all([transfer], policy) if "all" in path else fetch(transfer, policy)
"""


def child(transfer: Transfer, segments: int) -> subprocess.Popen[str]:
    arguments = [str(transfer.path), transfer.sources[0].url, str(transfer.size), str(transfer.sha256), str(segments)]
    command = [sys.executable, "-c", CHILD, *arguments, str(CHECKPOINT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    return process


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.fault("R12")
def test_kill_nine_ten_times_then_complete(server: Server, tmp_path: Path, segments: int) -> None:
    data = payload(SIZE)
    url = server.put("/big.bin", data)
    transfer = Transfer(tmp_path / "d" / "big.bin", (Source(url),), SIZE, hashlib.sha256(data).hexdigest())
    server.script("/big.bin", Fault(rate=3_000_000.0 / segments))
    chance = random.Random(segments)
    for _ in range(KILLS):
        process = child(transfer, segments)
        time.sleep(chance.uniform(0.0, 0.15))
        process.kill()
        process.wait()
    assert not transfer.path.exists()
    server.faults.clear()
    result = fetch(transfer, FAST)
    assert transfer.path.read_bytes() == data and result.verified
    # what a kill may cost: bytes since the last record and those in flight in the sockets, per connection
    in_flight = 4 << 20
    assert server.sent() <= SIZE + KILLS * segments * (CHECKPOINT + (1 << 17)) + in_flight
    assert sorted(p.name for p in transfer.path.parent.iterdir()) == [".lavis_ext", "big.bin"]


@pytest.mark.parametrize("name", ["one.bin", "all.bin"])
@pytest.mark.fault("P06")
def test_interrupt_leaves_a_valid_partial_file(server: Server, tmp_path: Path, name: str) -> None:
    data = payload(SIZE)
    transfer = Transfer(tmp_path / name, (Source(server.put("/big.bin", data)),), SIZE)
    transfer = replace(transfer, sha256=hashlib.sha256(data).hexdigest())
    for segments, stall_at, enough in ((1, 1_500_000, 1_400_000), (4, 4_500_000, 4_000_000)):
        server.script("/big.bin", Fault(stall_at=stall_at, stall=60.0))
        process = child(transfer, segments)
        assert wait_until(lambda enough=enough: server.sent() >= enough)
        time.sleep(0.1)
        begun = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=5) not in (0, None)
        assert time.monotonic() - begun < 4.0
        assert (tmp_path / f"{name}.part.json").exists() and not (tmp_path / f"{name}.part.owner").exists()
        assert "KeyboardInterrupt" in (process.stderr.read() if process.stderr else "")
    server.faults.clear()
    moved = fetch(transfer, FAST).bytes_moved
    assert transfer.path.read_bytes() == data and moved < SIZE // 2


@pytest.mark.parametrize("alive", [False, True])
@pytest.mark.fault("R13")
def test_what_a_kill_after_the_last_byte_leaves_is_removed(tmp_path: Path, alive: bool) -> None:
    """Killed between the rename and the end of the ownership: the file is whole, its companions are not needed."""
    data = payload(5000)
    transfer = Transfer(tmp_path / "f.bin", (Source("http://127.0.0.1:1/f.bin"),), len(data))
    transfer.path.write_bytes(data)
    owner, sidecar = (tmp_path / f"f.bin.part{suffix}" for suffix in (".owner", ".json"))
    with Ownership(owner, tmp_path / "f.bin.part", FAST):
        left = owner.read_bytes()
        sidecar.write_text("{}")
        if alive:
            assert fetch(transfer, FAST).reused and owner.read_bytes() == left and sidecar.exists()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner.write_bytes(json.dumps({**json.loads(left), "pid": gone.pid}).encode())
    assert fetch(transfer, FAST).reused
    assert not owner.exists() and not sidecar.exists() and transfer.path.read_bytes() == data
