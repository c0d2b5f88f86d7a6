"""Slips of the first hour: each is named at its place, with the way out, and with its exit code; none is silent."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lavis_ext.cli import main
from lavis_ext.common.config.resolve import load_config
from lavis_ext.common.errors import ConfigError
from tests.support.server import Fault, Server
from tests.support.toyfamily import Family, pictures

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
RUN = """
model: {arch: blip2_opt, model_type: tiny%s}
datasets: {coco_caption: {}}
run: {task: captioning, max_epoch: 1, train_splits: [train], init_lr: 1e-3}
"""


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN % "")
    return tmp_path / "run.yaml"


def said_of(words: list[str], code: int, capsys: Capture) -> str:
    assert main(words) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return said.err + said.out


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("max_iters=5", "run.max_iters"),
        ("num_beams=3", "run.num_beams"),
        ("load_finetuned=true", "model.load_finetuned"),
    ],
)
def test_a_key_without_its_section_is_named_with_it(run_file: Path, option: str, meant: str, capsys: Capture) -> None:
    said = said_of(["train", "run.yaml", "--options", option], 3, capsys)
    assert said.startswith("lavis-ext: --options") and f"'{meant}'" in said
    run_file.write_text(run_file.read_text() + option.replace("=", ": ") + "\n")
    said = said_of(["check", "run.yaml"], 3, capsys)
    assert f"run.yaml:5 {meant.partition('.')[2]}" in said and f"'{meant}'" in said


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("LAVIS_EXT_CONFIGS", "/no/where", 3),
        ("LAVIS_EXT_MIRROR", "/no/dir", 3),
        ("LAVIS_EXT_CACHE_ROOT", "/proc/x", 6),
        ("LAVIS_EXT_CACHE_ROOT", "/sys/x", 6),
    ],
)
def test_a_folder_in_the_environment_that_is_none(
    variable: str, value: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv(variable, value)
    said = said_of(["prepare", "nocaps", "--dry-run"], code, capsys)
    assert value in said and ("0 B are free" not in said)


def test_a_mirror_named_by_flag_that_is_none(capsys: Capture) -> None:
    assert "--mirror /no/dir" in said_of(["prepare", "nocaps", "--dry-run", "--mirror", "/no/dir"], 3, capsys)


def test_prepare_without_a_name_lists_each_family_once(capsys: Capture) -> None:
    words = re.findall(r"[\w-]+", said_of(["prepare"], 2, capsys))
    assert words.count("nocaps") == 1
    assert "coco_caption" in words and "list" in words


def test_weights_that_an_option_names_are_read(run_file: Path) -> None:
    found = load_config(run_file, ["model.finetuned=output/run"]).model
    assert found is not None and (found.load_finetuned, found.finetuned) == (True, "output/run")
    given = load_config(run_file, ["model.finetuned=output/run", "model.load_finetuned=false"]).model
    assert given is not None and not given.load_finetuned
    run_file.write_text(RUN % ", load_finetuned: false")
    with pytest.raises(ConfigError, match=r"--options model\.finetuned"):
        load_config(run_file, ["model.finetuned=output/run"])
    run_file.write_text(RUN % ", load_finetuned: false, finetuned: x.pth")
    assert load_config(run_file).model is not None, "LAVIS' files say so"


def test_offline_and_dry_says_what_cannot_come(tmp_path: Path, server: Server, capsys: Capture) -> None:
    words = ["prepare", "nocaps", "--offline", "--dry-run", "--options", f"env.cache_root={tmp_path}"]
    assert ", fits" not in said_of(words, 4, capsys)
    family = Family(server, tmp_path / "root")
    assert ", fits" in family.prepare(dry_run=True).line()
    family.prepare()
    assert family.prepare(dry_run=True, offline=True).exit_code == 0, "all of it is here"


def test_a_repair_says_that_it_repaired(tmp_path: Path, server: Server) -> None:
    from lavis_ext.prepare import verify

    family = Family(server, tmp_path / "root")
    family.prepare()
    next(family.images.rglob("*.jpg")).write_bytes(b"damaged")
    report = verify(["toy"], repair=True, options=family.options(), cards=family.cards())
    assert (len(report.findings), report.exit_code) == (1, 0)
    assert "all repaired" in report.line()


def test_ctrl_c_is_no_failure_of_the_source(tmp_path: Path, server: Server) -> None:
    family = Family(server, tmp_path / "root", declared=False)
    family.archive("train", pictures("train", 3, 1_000_000))
    server.script(family.path("train.zip"), *[Fault(rate=200_000)] * 20)
    configs = family.write_card(tmp_path / "configs")
    command = [sys.executable, "-m", "lavis_ext", "prepare", "toy", "--json"]
    process = subprocess.Popen(
        command, env=family.environment(configs), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not list(tmp_path.rglob("train.zip.part*")) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "ended early" not in err and "failed" not in err
    assert json.loads(out.splitlines()[-1])["exit_code"] == 130
