"""Slips of the first hour: each is named at its place, with the way out, and with its exit code; none is silent."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lavis_ext.cli import main
from lavis_ext.common.config.resolve import load_config, parse_options
from lavis_ext.common.errors import ConfigError
from tests.support.server import Fault, Server, wait_until
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
    assert wait_until(lambda: any(family.images.glob("train.zip.part*")), 60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "ended early" not in err and "failed" not in err
    assert json.loads(out.splitlines()[-1])["exit_code"] == 130


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run file, a folder of runs, and a folder of settings with the data set `birds`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN % "")
    (tmp_path / "output" / "first").mkdir(parents=True)
    (tmp_path / "output" / "first" / "run.json").write_text("{}")
    (tmp_path / "output" / "first" / "config.yaml").write_text(RUN % "")
    (tmp_path / "mine" / "datasets").mkdir(parents=True)
    (tmp_path / "mine" / "datasets" / "birds.yaml").write_text(
        "datasets: {birds: {builder: image_caption, build_info: {annotations: {train: {storage: a.json}}}}}"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        ("help", 0, ["usage:"]),
        ("help list", 0, ["--installed"]),
        ("download coco", 2, ["'prepare'"]),
        ("info coco", 2, ["'show'"]),
        ("validate run.yaml", 2, ["'check'"]),
        ("version", 2, ["'--version'"]),
        ("prepare COCO_Caption", 2, ["'coco_caption'"]),
        ("prepare --split val coco_caption", 2, ["prepare coco_caption --split"]),
        ("prepare coco_caption val", 2, ["val: is a split", "--split val"]),
        ("prepare coco_caption --splits val", 2, ["'--split'"]),
        ("show coco_caption/val", 2, ["no family 'coco_caption'"]),
        ("show nocaps/val", 2, ["--split"]),
        ("train", 2, ["not named", "lavis-ext train FILE"]),
        ("train run.yml", 2, ["run.yml: ", "'run.yaml'"]),
        ("train coco_caption", 2, ["is a data set"]),
        ("train output", 2, ["output: is a folder"]),
        ("evaluate output/first", 2, ["folder of a run", "output/first/config.yaml"]),
        ("train run.yaml run.max_epoch=5", 2, ["--options run.max_epoch=5"]),
        ("train run.yaml --run.max_epoch=5", 2, ["--options run.max_epoch="]),
        ("train run.yaml --epochs 5", 2, ["--options run.max_epoch="]),
        ("train run.yaml --lr 1e-4", 2, ["--options run.init_lr="]),
        ("train run.yaml --resume", 2, ["--options run.job_id="]),
        ("train run.yaml --options run.max_epoch = 5", 2, ["write run.max_epoch=5"]),
        ("train run.yaml --options run.max_epoch =5", 2, ["write run.max_epoch=5"]),
        ("train run.yaml --options run.max_epoch= 5", 2, ["write run.max_epoch=5"]),
        ("train run.yaml --options run.max_epoch: 5", 2, ["write run.max_epoch=5"]),
        ("train run.yaml --options run.train_splits=train,val", 3, ["--options run.train_splits", "[train,val]"]),
        ("train --config run.yaml", 2, ["--configs run.yaml", "--cfg-path run.yaml"]),
        ("export run.yaml x.pth", 2, ["run.yaml: ", "no checkpoint"]),
        ("export output x.pth", 2, ["1 run,", "none with a checkpoint"]),
        ("export output/first x.pth", 2, ["holds no checkpoint"]),
        ("check run.yml", 2, ["'run.yaml'"]),
        ("list nothing", 2, ["list nothing: matches no data set"]),
    ],
)
def test_what_a_newcomer_types(folder: Path, words: str, code: int, parts: list[str], capsys: Capture) -> None:
    said = said_of(words.split(), code, capsys)
    assert [part for part in parts if part not in said] == [], said
    assert len(said) < 1500 or code == 0, "no list of everything"


def test_flags_may_stand_before_the_verb(folder: Path, capsys: Capture) -> None:
    assert "birds" in said_of(["--configs", "mine", "list", "birds"], 0, capsys)
    said_of(["--json", "list", "nocaps"], 0, capsys)
    assert said_of(["--version"], 0, capsys).startswith("lavis-ext ")


@pytest.mark.parametrize(("verb", "code"), [("config show", 0), ("check", 3), ("train", 8), ("train --cfg-path", 8)])
def test_a_run_file_finds_the_data_sets_beside_it(folder: Path, verb: str, code: int, capsys: Capture) -> None:
    place = folder / "own" / "datasets" / "birds"
    place.mkdir(parents=True)
    (folder / "mine" / "datasets" / "birds.yaml").rename(place / "defaults.yaml")
    (folder / "own" / "run.yaml").write_text((RUN % "").replace("coco_caption", "birds"))
    assert "a.json" in said_of([*verb.split(), "own/run.yaml"], code, capsys)


def test_a_file_that_holds_nothing_is_a_problem(folder: Path, capsys: Capture) -> None:
    (folder / "empty.yaml").write_text("# nothing yet\n")
    assert "empty.yaml: holds nothing" in said_of(["check", "empty.yaml"], 3, capsys)


def test_an_empty_option_and_colons_in_values_stay_as_they_are() -> None:
    assert parse_options(["run.a=", "run.b=2"]) == {"run": {"a": None, "b": 2}}
    assert parse_options(["run.prompt", "'Question:'"]) == {"run": {"prompt": "Question:"}}
    assert parse_options(["run.prompt='a: b ='", "run.x=1"])["run"]["prompt"] == "a: b ="


def test_a_folder_of_settings_that_holds_none_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(folder / "output"))
    assert "output holds no datasets/" in said_of(["list", "nocaps"], 0, capsys)
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(folder / "mine"))
    assert "holds no" not in said_of(["list", "nocaps"], 0, capsys)


def test_a_cache_root_below_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(folder / "run.yaml" / "x"))
    assert f"{folder / 'run.yaml'}: is a file" in said_of(["prepare", "nocaps", "--dry-run"], 6, capsys)
