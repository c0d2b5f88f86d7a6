"""Faults of a training and its checkpoints: killed at any step, disks too small, files nobody may read, settings that
cannot work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.cli import main
from lavis_ext.cli.runs import list_runs
from lavis_ext.common.errors import DiskError
from lavis_ext.common.files import to_disk_error
from lavis_ext.models.export import new_folder
from lavis_ext.runners import checkpoint
from tests.support.deaths import PLACES, ended, require_same_end, start, write_birds, write_run
from tests.support.runs import toy_runner

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
