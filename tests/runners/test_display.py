"""What is seen of a run: first what runs; then lines where there is no terminal, a bar where there is one, or JSON."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_ext.cli import main
from lavis_ext.runners.display import Bar, Display, display_for, opening_lines, short, summary
from lavis_ext.runners.microbatch import Step
from lavis_ext.runners.schedule import RunLength
from tests.support.runs import toy_runner

ROOT = Path(__file__).parents[2]
CARD = """
datasets:
  birds:
    builder: image_caption
    build_info:
      annotations: {train: {storage: birds/rows.jsonl}, val: {storage: birds/rows.jsonl}}
      images: {storage: birds}
    vis_processor: {train: {name: clip_image_train, image_size: 64}, eval: {name: blip_image_eval, image_size: 64}}
    text_processor: {train: {name: blip_caption}, eval: {name: blip_caption}}
"""
RUN = """
model: {arch: blip2_opt, model_type: tiny}
datasets: {birds: {}}
run: {task: captioning, max_iters: 4, batch_size_train: 3, batch_size_eval: 4, train_splits: [train], init_lr: 1e-3,
  valid_splits: [val], log_freq: 1, output_dir: out, report: false, num_workers: 0, max_len: 3, device: cpu}
"""


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight photographs with captions, a card and a run file of a tiny model; the working directory."""
    photos, cards = tmp_path / "root" / "birds", tmp_path / "mine" / "datasets"
    photos.mkdir(parents=True)
    cards.mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (64, 64), (30 * number, 90, 10)).save(photos / f"{number}.jpg")
    rows = [{"image": f"{n}.jpg", "caption": f"bird {n}", "image_id": n} for n in range(8)]
    (photos / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (cards / "birds.yaml").write_text(CARD)
    (tmp_path / "run.yaml").write_text(RUN)
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "mine"))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_json_is_one_object_a_line_from_the_start_to_the_exit_code(
    birds: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert main(["train", "run.yaml", "--json", "--options", "run.job_id=a"]) == 0
    said = capfd.readouterr()
    start, *records, job, end = [json.loads(line) for line in said.out.splitlines()]
    assert start["kind"] == "start"
    assert start["model"] == {"arch": "blip2_opt", "model_type": "tiny"}
    assert start["data"] == {"train": {"birds": 8}, "val": {"birds": 8}}
    assert (start["device"], start["precision"], start["steps"], start["done"]) == ("cpu", "fp32", 4, 0)
    assert start["parameters"]["trained"] > 100_000
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4]
    assert records == [json.loads(line) for line in (birds / "out" / "a" / "log.jsonl").read_text().splitlines()]
    assert (Path(job["job"]).name, end) == ("a", {"exit_code": 0})
    assert "\x1b" not in said.err + said.out
    for part in ("blip2_opt/tiny", "birds 8 samples", "4 steps of 3 samples", "on cpu, fp32", "step 4"):
        assert part in caplog.text
    assert main(["evaluate", "run.yaml", "--json", "--options", "run.job_id=b", "model.finetuned=out/a"]) == 0
    start, evaluated, *_ = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert (start["data"], "steps" in start) == ({"val": {"birds": 8}}, False)
    assert (evaluated["kind"], evaluated["split"]) == ("eval", "val")


def in_terminal(words: list[str], width: int, **more: str) -> tuple[subprocess.Popen[bytes], int]:
    """A command in a pseudo-terminal, and the descriptor to read its screen from."""
    primary, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", **more}
    command = [sys.executable, "-m", "lavis_ext", *words]
    process = subprocess.Popen(
        command, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True
    )
    os.close(other)
    return process, primary


def read_until(descriptor: int, what: bytes = b"", timeout: float = 120.0) -> bytes:
    """All that comes up to `what`, or to the end."""
    shown, end = b"", time.monotonic() + timeout
    with contextlib.suppress(OSError):  # EIO is the end of a terminal
        while time.monotonic() < end and (data := os.read(descriptor, 1 << 16)):
            shown += data
            if what and what in shown:
                break
    return shown


def test_a_bar_on_a_terminal_and_ctrl_c_says_how_to_go_on(birds: Path) -> None:
    words = ["train", "run.yaml", "--options", "run.max_iters=100000", "run.valid_splits=[]"]
    process, screen = in_terminal(words, 80)
    shown = read_until(screen, b"/100000")
    assert b"100,000 steps of 3 samples" in shown
    assert b"\x1b[" in shown, "a bar"
    assert b"step 1 " not in shown, "no line for each record"
    process.send_signal(signal.SIGINT)
    rest = read_until(screen)
    os.close(screen)
    assert process.wait(60) == 130
    (job,) = (birds / "out").iterdir()
    assert f"run.job_id={job.name}".encode() in rest.replace(b"\r\n", b"")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_bar_where_the_terminal_cannot_draw_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(display_for(Terminal()), Bar)
    assert type(display_for(io.StringIO())) is Display
    monkeypatch.setenv("TERM", "dumb")
    assert type(display_for(Terminal())) is Display


def test_the_bar_keeps_evaluations_and_the_last_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    runner = toy_runner(tmp_path)
    bar = Bar(io.StringIO(), colour=False)
    bar.step(runner, Step({"loss": 2.0}, 1.0, 4, 0.0, 0.1))
    bar.evaluating("val", 0, 3)
    bar.record({"kind": "train", "step": 1, "epoch": 0, "loss": 2.0}, 1)
    bar.record({"kind": "eval", "split": "val", "step": 1, "epoch": 0, "metrics": {"CIDEr": 0.5}}, 1)
    bar.record({"kind": "train", "step": 2, "epoch": 0, "loss": 1.0}, 1)
    bar.close()
    bar.close()
    assert [line.split()[0] for line in caplog.messages] == ["val", "train"]


def test_a_line_writes_a_score_of_nothing_as_0() -> None:
    metrics = {"Bleu_1": 0.0659, "Bleu_2": 1.575e-9, "loss": 2e-6}
    text = summary({"kind": "eval", "split": "val", "step": 1, "epoch": 0, "metrics": metrics}, 1)
    assert text.endswith("Bleu_1 0.0659  Bleu_2 0  loss 2e-6")
    assert "lr 1e-6" in summary({"kind": "train", "step": 1, "epoch": 0, "loss": 1.0, "lr": 1e-6}, 1)


@pytest.mark.parametrize(
    ("length", "steps"), [(RunLength(10, 30), 30), (RunLength(10, 25, 4), 3 + 3 + 2), (RunLength(7, 7, 8), 1)]
)
def test_steps_of_a_run(length: RunLength, steps: int) -> None:
    assert length.steps == steps


def test_first_lines() -> None:
    facts: dict[str, Any] = {"task": "captioning", "model": {"arch": "a", "model_type": ""}, "processes": 4}
    facts |= {"parameters": {"trained": 107_133_696, "frozen": 3_600_000_000}, "device": "cuda:0", "precision": "bf16"}
    facts |= {"data": {"train": {"x": 1_000_000, "y": None}}, "epochs": 1, "steps": 5_000, "done": 20}
    text = "\n".join(opening_lines({**facts, "batch_size": 16, "accumulated": 2}))
    for part in ("107.1M", "3.6B", "x 1,000,000, y ?", "1 epoch, 5,000 steps of 128 samples, 20", "4 × cuda:0, bf16"):
        assert part in text
    assert [short(n) for n in (0, 999, 1_000, 999_999)] == ["0", "999", "1.0k", "1.0M"]


def test_a_bar_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    alone, beside = Terminal(), Terminal()
    bar = Bar(alone, colour=False)
    bar.evaluating("val", 0, 3)
    bar.close()
    assert "evaluate val" in alone.getvalue()
    bar = Bar(beside, colour=False)
    bar.step(toy_runner(tmp_path, max_epoch=3), Step({"loss": 2.0}, 1.0, 4, 0.0, 0.1))
    bar._bars.refresh()
    assert "epoch 1/3" in beside.getvalue() and "loss 2" in beside.getvalue()
    bar.evaluating("val", 4, 7)
    bar.close()
    assert "5 of 7" in beside.getvalue()


def test_the_bar_is_that_of_the_first_rank_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(display_for(), Bar)
    monkeypatch.setenv("RANK", "1")
    assert type(display_for()) is Display
