"""Faults of a training and its checkpoints: killed at any step, disks too small, files nobody may read, settings that
cannot work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lavis_ext.cli import main
from lavis_ext.cli.runs import list_runs
from tests.support.deaths import PLACES, ended, require_same_end, start, write_birds, write_run

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
        codes = ended(start(birds, job, ranks, {victim: (step, place, None)}, options))
        assert codes == [-signal.SIGKILL if rank == victim else 11 for rank in range(ranks)], (step, place)
    assert ended(start(birds, job, ranks, options=options)) == [0] * ranks
    require_same_end(birds / "runs" / whole, birds / "runs" / job)
    assert json.loads((birds / "runs" / job / "run.json").read_text())["step"] == STEPS


OWNING = """
import sys, time
from pathlib import Path
from lavis_ext.runners.job import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.mark.fault("H37")
@pytest.mark.parametrize("reaped", [True, False])
def test_a_run_whose_process_was_killed_is_not_listed_as_running(
    reaped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the parent of the process (a scheduler, a shell) has not yet waited for it."""
    job = tmp_path / "job"
    command = [sys.executable, "-c", OWNING, str(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        (job / "run.json").write_text(json.dumps({"job": "job", "status": "running"}))
        (job / "log.jsonl").touch()
        assert [run.state for run in list_runs(tmp_path)] == ["running"]
        process.kill()
        if reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        [run] = list_runs(tmp_path)
        assert run.state == "killed"
        assert main(["browse", str(job)]) == 0
        assert "killed" in (job / "report.html").read_text()


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
    from lavis_ext.fetch.lock import own_identity

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
