"""The process that downloads: killed, crashed, stalled or shared out, no sample is lost and none comes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from lavis_ext.common.errors import DiskError, PartialError
from lavis_ext.prepare.urls import fetch_list, supervise, worker
from lavis_ext.prepare.urls.supervise import run_worker, worker_environment
from tests.prepare.urls.conftest import passes_here
from tests.support.processes import all_ended, descendants
from tests.support.server import Fault, Server, wait_until
from tests.support.weblist import WebList, make_job, picture

FETCH = """
import sys
from pathlib import Path
from lavis_ext.prepare.urls import fetch_list
from tests.support.weblist import make_job
spec = {"output": sys.argv[3], "samples_per_shard": 10}
fetch_list(make_job(Path(sys.argv[1]), Path(sys.argv[2]), spec=spec, threads=2))
"""
ROOT = Path(__file__).parents[3]


def as_worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(supervise, "WORKER", (sys.executable, "-c", code))


def nothing() -> tuple[int, ...]:
    return (0,)


def test_crash_is_reported_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_worker(monkeypatch, "import sys; print('out of luck'); sys.exit(3)")
    with pytest.raises(PartialError, match="ended with code 3: out of luck"):
        run_worker(tmp_path / "order.json", 60, nothing)
    as_worker(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(PartialError, match="was killed by signal 9"):
        run_worker(tmp_path / "order.json", 60, nothing)


def test_stall_ends_the_whole_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    as_worker(monkeypatch, code)
    said = tmp_path / "order.log"

    def begun() -> tuple[int, ...]:  # what moves is no stall: the start of a process takes long on a busy machine
        return (time.monotonic_ns() if not said.exists() or not said.read_text().endswith("\n") else 0,)

    assert run_worker(tmp_path / "order.json", 0.5, begun) == "stalled"
    child = int(said.read_text())
    assert wait_until(lambda: not is_alive(child))


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_interrupt_leaves_no_orphans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_worker(monkeypatch, "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    journal = tmp_path / "order.log"

    def interrupt() -> tuple[int, ...]:
        if journal.exists() and journal.read_text().strip():
            raise KeyboardInterrupt
        return (0,)

    with pytest.raises(KeyboardInterrupt):
        run_worker(tmp_path / "order.json", 30, interrupt)
    assert not is_alive(int(journal.read_text()))


def test_full_disk_is_a_disk_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from lavis_ext.prepare.urls.supervise import report_trouble as r; r(OSError(28, ''), '/x/y')"
    as_worker(monkeypatch, code)
    with pytest.raises(DiskError, match="no space left"):
        run_worker(tmp_path / "order.json", 60, nothing)


@pytest.mark.fault("S05")
def test_secrets_stay_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("LAVIS_EXT_AZURE_SAS_OSCAR", "sig=canary")
    assert "canary" not in str(worker_environment()) and "PATH" in worker_environment()
    code = "print(open('/proc/self/cmdline').read() + open('/proc/self/environ').read())"
    as_worker(monkeypatch, code)
    assert run_worker(tmp_path / "order.json", 60, nothing) == "done"
    said = (tmp_path / "order.log").read_text()
    assert "PATH=" in said and "order.json" in said and "canary" not in said


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = WebList(server)
    for number in range(40):
        web.add(picture(number), *[Fault(latency=250.0)] * (number >= 25))
    annotation = web.write(tmp_path / "sbu.json")
    command = [sys.executable, "-c", FETCH, str(tmp_path), str(annotation), "files"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: len(server.log) >= 26, 120)
    below = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: all_ended(below)), "the process that downloads outlived the one that started it"
    asked = len(server.log)
    server.faults.clear()
    spec = {"samples_per_shard": 10}
    with passes_here(monkeypatch):
        account = fetch_list(make_job(tmp_path, annotation, spec=spec, threads=8))
    assert (account.present, account.expected) == (40, 40)
    done = asked // 10 * 10 - 10
    assert len(server.log) - asked <= 40 - done, "finished shards were asked for again"
    assert {f"sbu/{path.name}" for path in (tmp_path / "images").iterdir()} == set(web.good)


@pytest.mark.slow
@pytest.mark.parametrize("distributor", ["multiprocessing", "pyspark", "ray"])
def test_distributors(distributor: str, server: Server, tmp_path: Path) -> None:
    if distributor != "multiprocessing" and find_spec(distributor) is None:
        pytest.skip(f"{distributor} is not installed")
    web = WebList(server)
    web.fill(40)
    spec = {"output": "shards", "samples_per_shard": 20}
    # three processes import img2dataset at once, which takes long beside other work
    patient = {"stall": 240.0, "timeout": 30.0, "deadline": 60.0}
    how = {"distributor": distributor, "processes": 2, "passes": 0, **patient}
    job = make_job(tmp_path, web.write(tmp_path / "l.json"), spec=spec, **how)
    account = fetch_list(job)
    assert (account.present, account.samples, account.shards) == (26, 26, 2)


def test_what_a_process_prints_is_no_write_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import sys, time
print('{"errno": 5, "path": "no/report"}', flush=True)
time.sleep(0.2)
print('lavis_ext disk trouble: {"errno": 28, "path": "images/1.jpg"}', flush=True)
sys.stdin.readline()
"""
    as_worker(monkeypatch, code)
    with pytest.raises(DiskError) as caught:
        run_worker(tmp_path / "order.json", 60, nothing)
    assert caught.value.problems[0].where == "images/1.jpg"


def test_an_order_without_an_owner_is_followed_to_its_end() -> None:
    code = (
        "import time; from types import SimpleNamespace; from lavis_ext.prepare.urls import worker\n"
        "worker.FENCE = 0.01; worker.follow_owner(SimpleNamespace(owner='', token=''))\n"
        "time.sleep(0.3); print('done')"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert (child.returncode, child.stdout) == (0, "done\n")


def test_a_write_that_failed_on_another_machine_comes_back_with_its_shard() -> None:
    def full(shard: object) -> None:
        supervise.report_trouble(OSError(28, "No space left on device"), f"/there/{shard}")

    assert worker.attempt(full, (7, "tables/7.parquet")) == (
        28,
        "No space left on device",
        "/there/(7, 'tables/7.parquet')",
    )
    assert worker.attempt(lambda _: None, (8, "tables/8.parquet")) is None
    one = [(number, f"{number}") for number in range(3)]
    with pytest.raises(OSError) as caught:
        worker.run_elsewhere(
            lambda work, batch: map(work, batch), lambda shard: full(shard) if shard[0] else None, iter(one)
        )
    assert (caught.value.errno, caught.value.filename) == (28, "/there/(1, '1')")
    supervise.TROUBLES.clear()
