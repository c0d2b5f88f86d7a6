"""`lavis-ext watch`: lines as they come, until the run ends, with its exit code."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from lavis_ext.cli import main
from lavis_ext.cli.watch import Seen, curve, line_of, newest
from lavis_ext.common.files import write_atomic
from lavis_ext.runners.job import owned


def leave(folder: Path, status: str = "finished", **facts: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "run.json", json.dumps({"job": folder.name, "status": status, **facts}))
    return folder


def step(number: int, loss: float = 1.0) -> str:
    return (
        json.dumps({"kind": "train", "step": number, "epoch": 0, "loss": loss, "lr": 0.1, "samples_per_s": 46.27})
        + "\n"
    )


def test_lines_come_as_they_are_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = leave(tmp_path / "run", "running")
    (run / "log.jsonl").write_text(step(1) + '{"kind": "tr')

    def go_on() -> None:
        time.sleep(0.3)
        with (run / "log.jsonl").open("a") as file:
            file.write(step(2, 0.123456).removeprefix('{"kind": "tr'))
            file.write(
                json.dumps(
                    {"kind": "eval", "split": "val", "label": "0", "step": 2, "epoch": 0, "metrics": {"CIDEr": 0.5}}
                )
                + "\n"
            )
        leave(run, best={"split": "val", "step": 2})

    writer = Thread(target=go_on)
    writer.start()
    with owned(run):
        assert main(["watch", str(tmp_path), "--every", "0.05"]) == 0
    writer.join()
    said = capfd.readouterr().out.splitlines()
    assert said[0].startswith("train  epoch 1  step 1  loss 1.00") and "loss 0.123" in said[1] and "46.3" in said[1]
    assert any("best CIDEr 0.500" in line for line in said) and str(run) in said[-1]


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        *[({"status": "finished"}, 0), ({"status": "evaluated"}, 0), ({"status": "stopped", "exit_code": 5}, 5)],
        *[({"status": "stopped", "exit_code": None}, 11), ({"status": "running"}, 11)],
    ],
)
def test_the_end_is_that_of_the_run(facts: dict[str, Any], code: int, tmp_path: Path) -> None:
    run = leave(tmp_path / "run", **facts)
    assert main(["watch", str(run), "--every", "0.05"]) == code


def test_objects_for_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (leave(tmp_path / "run") / "log.jsonl").write_text(step(1) + "[]\n\nnothing\n" + step(2))
    assert main(["watch", str(tmp_path / "run"), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one.get("step") for one in found[:2]] == [1, 2] and found[-1] == {"exit_code": 0}


@pytest.mark.parametrize(
    "words", [["nothing"], ["."], ["run", "--every", "0"], ["run", "--every", "nan"], ["run", "--every", "1e9"]]
)
def test_mistakes_are_told(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if words[0] == "run":
        leave(tmp_path / "run")
    assert main(["watch", *words]) == 2


def test_the_newest_of_runs_one_of_which_is_just_writing(tmp_path: Path) -> None:
    leave(tmp_path / "a")
    (tmp_path / "a" / "run.json.tmp").symlink_to("nothing")  # listed, and gone when it is looked at
    os.utime(tmp_path / "a" / "run.json", (1, 1))
    os.utime(tmp_path / "a", (1, 1))
    leave(tmp_path / "b")
    assert newest(tmp_path) == tmp_path / "b"


def test_a_log_that_a_resume_has_cut_is_read_again(tmp_path: Path) -> None:
    seen = Seen(leave(tmp_path / "run"))
    assert seen.more() == []
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(step(1) + step(2) + step(3))
    assert [one["step"] for one in seen.more()] == [1, 2, 3] and seen.more() == []
    log.write_text(step(2))
    assert [one["step"] for one in seen.more()] == [2]


def test_odd_records_have_a_line() -> None:
    for record in (
        {},
        {"kind": 3},
        {"metrics": {"a": "x", "b": None}},
        {"epoch": "x", "loss": float("nan"), "step": []},
    ):
        assert isinstance(line_of(record), str)
    assert curve([1.0, 1.0]) == "▁▁" and curve([0.0, 1.0]) == "▁█"


def test_a_terminal_shows_it_in_place(tmp_path: Path) -> None:
    (leave(tmp_path / "run") / "log.jsonl").write_text("".join(step(n, 3 / n) for n in range(1, 9)))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lavis_ext", "watch", str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:
                break
            if not part:
                break
            shown += part
        assert process.wait(20) == 0
    os.close(ours)
    text = shown.decode()
    assert "step 8" in text and "█" in text and "▁" in text and "finished" in text
