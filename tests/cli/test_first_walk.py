"""From photographs to answers by the commands that are printed; random weights are told."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lavis_ext.cli import main
from lavis_ext.cli.chat import find_weights
from lavis_ext.cli.runs import best_lines
from lavis_ext.common.errors import UsageError
from lavis_ext.models import default_config, load_model_and_preprocess
from lavis_ext.models.settings import Blip2AnyConfig, Blip2OptConfig, starts_random

TINY = "models/blip2_opt/tiny.yaml"


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (16, 16), (7 * number % 256, 90, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a bird {number % 3}")
    return folder


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_printed_commands_evaluate_what_was_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    photos(tmp_path / "photos", 40)
    monkeypatch.chdir(tmp_path)
    assert main(["new", "birds", "photos", "--out", "my birds"]) == 0
    capsys.readouterr()
    settings = ["run.max_epoch=2", "run.val_freq=1", "run.num_workers=0", "run.device=cpu", "run.max_len=6"]
    assert main(["train", "--cfg-path", "my birds/train.yaml", "--options", *settings, "run.job_id=first"]) == 0
    lines = capsys.readouterr().out.splitlines()
    trained = read(tmp_path / "output" / "birds" / "first" / "run.json")
    assert trained["samples"] == {"train": {"birds": 36}, "val": {"birds": 4}} and "weights" not in trained
    said = [shlex.split(line.partition(": ")[2]) for line in lines if ": lavis-ext " in line]
    assert [words[1] for words in said] == ["evaluate", "chat"]

    assert main([*said[0][1:], "run.job_id=again"]) == 0
    again = tmp_path / "output" / "birds" / "again"
    assert "weights" not in read(again / "run.json") and "random" not in caplog.text
    assert main(["evaluate", "my birds/eval.yaml", "--options", *settings[2:], "run.job_id=random"]) == 0
    random = tmp_path / "output" / "birds" / "random"
    assert read(random / "run.json")["weights"] == "random"
    assert [one.levelname for one in caplog.records if "random" in one.getMessage()] == ["WARNING"]
    assert "weights are random" in (random / "report.html").read_text()
    assert "weights are random" not in (again / "report.html").read_text()
    log = [json.loads(line) for line in (tmp_path / "output/birds/first/log.jsonl").read_text().splitlines()]
    best = next(one for one in log if one["kind"] == "eval" and one["step"] == trained["best"]["step"])
    assert read(again / "evaluate.json")["val"] == best["metrics"] != read(random / "evaluate.json")["val"]

    talk = [word.replace("PICTURE", "photos/3.png") for word in said[1][1:]]
    assert main([talk[0], "--question", "what?", *talk[1:]]) == 0
    assert caplog.text.count("random") == 1


@pytest.mark.parametrize(("count", "steps"), [(12, None), (40, 2), (400, 10)])
def test_a_warm_up_ends_within_the_first_epoch(
    count: int, steps: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{number}.png,a bird\n" for number in range(count))
    photos(tmp_path / "photos", 12)
    for number in range(12, count):
        (tmp_path / "photos" / f"{number}.png").symlink_to("0.png")
    for text in (tmp_path / "photos").glob("*.txt"):
        text.unlink()
    (tmp_path / "photos" / "mine.csv").write_text(f"image,caption\n{rows}")
    assert main(["new", "birds", "photos"]) == 0
    assert yaml.safe_load(Path("birds/train.yaml").read_text())["run"].get("warmup_steps") == steps


@pytest.mark.parametrize(
    ("keys", "random"),
    [
        ({}, True),
        ({"pretrained": "folder"}, False),
        ({"pretrained": "folder", "load_pretrained": False}, True),
        ({"finetuned": "run"}, True),
        ({"finetuned": "run", "load_finetuned": True}, False),
        ({"qformer_weight_path": "run"}, False),
        ({"opt_model": "opt", "vision": "siglip"}, True),  # both frozen: what learns lies between them
        ({"opt_model": "opt", "freeze_llm": False}, False),
        ({"vision": "siglip", "freeze_vit": False}, False),
        ({"vision": {"model_type": "dinov2"}, "freeze_vit": False}, True),
        ({"arch": "mine"}, False),  # it may have keys of its own for weights
    ],
)
def test_which_models_start_random(keys: dict[str, Any], random: bool) -> None:
    assert starts_random(Blip2OptConfig(**{"arch": "blip2_opt", "model_type": "x", **keys})) is random


def test_a_configuration_of_a_language_model_holds_no_weights() -> None:
    keys: dict[str, Any] = {"arch": "blip2_causal", "model_type": "x", "freeze_llm": False}
    assert starts_random(Blip2AnyConfig(**keys, llm={"model_type": "qwen3"}))
    assert not starts_random(Blip2AnyConfig(**keys, llm="folder"))
    assert starts_random(default_config("oscar", "tiny"))


def test_loading_by_name_tells_it_once(caplog: pytest.LogCaptureFixture) -> None:
    load_model_and_preprocess("blip2_opt", "tiny")
    (record,) = (one for one in caplog.records if one.levelname == "WARNING")
    assert "random" in record.getMessage()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["--image", "absent.png"], 2),
        (["--image", "text.png"], 5),
        (["--image", "0.png", "--question", " "], 2),
        (["--checkpoint", "absent"], 2),
    ],
)
def test_chat_looks_at_its_arguments_first(words: list[str], code: int, tmp_path: Path) -> None:
    photos(tmp_path / "p", 1)
    (tmp_path / "p" / "text.png").write_text("no picture")
    script = "import sys; from lavis_ext.cli import main; code = main(sys.argv[1:]); "
    script += "sys.exit(99 if 'torch' in sys.modules else code)"
    command = [sys.executable, "-c", script, "chat", "--cfg-path", TINY, *words]
    done = subprocess.run(command, cwd=tmp_path / "p", env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr


def test_a_folder_of_runs_names_the_newest_that_holds_a_checkpoint(tmp_path: Path) -> None:
    for name in ("b_old", "a_new", "z_evaluation"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        find_weights(str(tmp_path))
    assert "z_evaluation" not in str(caught.value)
    for name, when in (("b_old", 1000), ("a_new", 2000)):
        (tmp_path / name / "checkpoint_3").mkdir()
        (tmp_path / name / "latest.json").write_text('{"checkpoint": "checkpoint_3"}')
        os.utime(tmp_path / name / "checkpoint_3", (when, when))
    with pytest.raises(UsageError) as caught:
        find_weights(str(tmp_path))
    assert str(tmp_path / "a_new") in str(caught.value)


def test_the_best_is_told_with_its_epoch_and_file(tmp_path: Path) -> None:
    lines = [
        {"kind": "eval", "split": "val", "label": str(n), "step": n, "epoch": n, "metrics": {"CIDEr": value}}
        for n, value in enumerate([0.1, 0.75, 0.2])
    ]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    facts = {"best": {"split": "val", "step": 1}, "samples": {"val": {"birds": 5}}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "val_epoch1.json").write_text("[]")
    (line,) = best_lines(tmp_path)
    assert all(words in line for words in ("0.75", "epoch 2 of 3", "5 samples", "result/val_epoch1.json"))
