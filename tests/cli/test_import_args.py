"""The verb: words after --, a file, standard input; the run file on standard output or in a new file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lavis_ext.cli import main
from tests.support.oscar_commands import COMMANDS, written

WORDS = ["python", *f"oscar/{COMMANDS['vqa']}".split()]


def test_words_after_the_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-args", "--", *WORDS]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Made by `lavis-ext import-args` from a command of run_vqa.py.\n")
    assert "task: oscar_vqa" in text


def test_a_file_goes_to_a_file_that_passes_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.sh").write_text(written("ir_taught"), encoding="utf-8")
    out = tmp_path / "new" / "run.yaml"
    assert main(["import-args", "--from", str(tmp_path / "run.sh"), "--out", str(out)]) == 0
    assert f"check it: lavis-ext check {out}" in capsys.readouterr().out
    assert main(["check", str(out)]) == 0
    before = out.read_bytes()
    assert main(["import-args", "--out", str(out), "--", *WORDS]) == 2
    assert out.read_bytes() == before
    assert "is there already" in capsys.readouterr().err


def test_standard_input_and_objects(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(written("nlvr")))
    assert main(["import-args", "--json", "--from", "-"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[0])
    assert told["script"] == "run_nlvr"
    assert told["config"]["model"]["head"] == "pair"
    assert "task_name" in told["left_out"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["--from", "x", "--", *WORDS], 2),
        (["--from", "no/such/file"], 6),
        (["--", *WORDS, "--do_tset"], 2),
        (["--", "rm", "-rf", "somewhere"], 2),
    ],
)
def test_mistakes_end_with_their_code(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-args", *words]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_bytes(b"\xff\xfe\x00run_vqa.py")
    assert main(["import-args", "--from", str(tmp_path / "run.sh")]) == 2
