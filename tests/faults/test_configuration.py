"""Faults of configurations, as a user meets them: `check` and `train` end with their code, and nothing runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lavis_ext import load_dataset
from lavis_ext.cli import main
from lavis_ext.common.config.resolve import load_config
from lavis_ext.common.errors import LavisExtError
from lavis_ext.common.registry import Registry, RegistryError, registry
from lavis_ext.runners.job import redact_config
from tests.support.fetching import CANARY

RUN = """\
model: {arch: blip2_opt, model_type: tiny}
datasets:
  coco_caption: {}
run:
  task: captioning
  max_epoch: 1
  batch_size_train: 2
  train_splits: [train]
"""


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, verbs: tuple[str, ...] = ()) -> str:
    """What `check` and `train` say of a run file that both refuse with code 3."""
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    said = ""
    for words in (["check", str(path)], ["train", "--cfg-path", str(path)]):
        assert main(words) == 3, words
        out = capsys.readouterr()
        said += out.out + out.err
    assert "Traceback" not in said
    return said


@pytest.mark.fault("D01")
@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [{trap}]",
        "!!python/object/new:os.mkdir [{trap}]",
        "!!python/name:os.system ''",
        "!!python/module:antigravity ''",
    ],
)
def test_yaml_that_would_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    trap = tmp_path / "sprung"
    said = refused(tmp_path, capsys, RUN + f"  seed: {value.format(trap=trap)}\n")
    assert "run.yaml:9" in said and not trap.exists() and "antigravity" not in sys.modules


@pytest.mark.fault("D02")
@pytest.mark.parametrize(
    ("text", "place"),
    [
        (RUN + "  seed: 1\n  seed: 2\n", "run.yaml:10"),
        (
            RUN
            + "a0: &a0 [x, x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)),
            "",
        ),
        (RUN + "  loop: &loop {again: *loop}\n", "run.yaml:9"),
    ],
)
def test_yaml_that_says_things_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, place: str) -> None:
    assert (place or "run.yaml:") in refused(tmp_path, capsys, text)


@pytest.mark.fault("D02")
def test_yaml_of_a_hundred_megabytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "big.yaml").open("w") as file:
        file.write(RUN)
        file.truncate(100 << 20)
    assert main(["check", str(tmp_path / "big.yaml")]) == 3 and "big.yaml" in capsys.readouterr().out


@pytest.mark.fault("D03")
@pytest.mark.parametrize(
    ("old", "new", "place", "nearest"),
    [
        ("  batch_size_train: 2", "  bacth_size_train: 2", "run.yaml:7 run.bacth_size_train", "batch_size_train"),
        ("run:", "rum:", "run.yaml:4 rum", "run"),
        ("model_type: tiny", "model_type: tiny, pretraned: x", "run.yaml:1 model.pretraned", "pretrained"),
        ("coco_caption: {}", "coco_caption: {typ: x}", "run.yaml:3 datasets.coco_caption.typ", "type"),
    ],
)
def test_a_key_that_nobody_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, place: str, nearest: str
) -> None:
    said = refused(tmp_path, capsys, RUN.replace(old, new))
    assert place in said and f"did you mean '{nearest}'" in said


@pytest.mark.fault("D04")
def test_names_that_nobody_registered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["show", "coco_captoin"], ["prepare", "coco_captoin", "--dry-run"], ["browse", "coco_captoin"]):
        assert main(words) == 2 and "coco_caption" in capsys.readouterr().err
    said = refused(
        tmp_path, capsys, RUN.replace("task: captioning", "task: captoining").replace("blip2_opt", "blip2_otp")
    )
    assert "'captioning'" in said and "'blip2_opt'" in said
    for kind in ("builder", "processor", "task", "model", "lr_scheduler", "metric"):
        with pytest.raises(LavisExtError) as caught:
            getattr(registry, f"get_{kind}_class")("no such name at all")
        assert caught.value.exit_code in (2, 3) and caught.value.problems[0].way_out


@pytest.mark.fault("D05")
def test_values_of_another_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN + "  init_lr: '1e-4'\n  max_iters: 2.0\n")
    run = load_config(path).run
    assert (run.init_lr, type(run.init_lr)) == (1e-4, float)
    for line in ("  init_lr: fast", "  evaluate: 'yes'", "  seed: 1.5", "  train_splits: {a: b}", "  log_freq: [1]"):
        text = RUN.replace("  train_splits: [train]\n", "") if "train_splits" in line else RUN
        said = refused(tmp_path, capsys, f"{text}{line}\n")
        assert f"run.{line.split(':')[0].strip()}" in said


@pytest.mark.fault("D06")
def test_one_name_for_two(tmp_path: Path) -> None:
    things: Registry[object] = Registry("thing", {})
    things.register("x")(test_yaml_that_would_run_code)
    with pytest.raises(RegistryError) as caught:
        things.register("x")(test_one_name_for_two)
    assert "test_yaml_that_would_run_code" in str(caught.value) and "test_one_name_for_two" in str(caught.value)
    assert things.get("x") is test_yaml_that_would_run_code


@pytest.mark.fault("D12")
@pytest.mark.parametrize("key", ["pretrained: 'https://host/w.pth?sv=1&sig=${oc.env:MY_SAS}'", "hub_token: x"])
def test_a_secret_of_the_environment_is_in_nothing_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    monkeypatch.setenv("MY_SAS", CANARY)
    path = tmp_path / "run.yaml"
    path.write_text(RUN.replace("model_type: tiny", f"model_type: tiny, {key}"))
    main(["check", str(path)])
    for more in ([], ["--json"]):
        assert main(["config", "show", str(path), *more]) in (0, 3)
    main(["train", "--cfg-path", str(path), "--options", f"run.output_dir={tmp_path}/out", "run.max_epoch=-1"])
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
    if "pretrained" in key:
        resolved = load_config(path).resolved
        assert CANARY in json.dumps(resolved), "the interpolation is not resolved: this tests nothing"
        assert CANARY not in redact_config(resolved)
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and CANARY.encode() in one.read_bytes()]


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    "line",
    [
        "builder: trap.Builder",
        "builder: 'trap:Builder'",
        "builder: {cls}",
        "builder: image_caption, vis_processor: {train: {name: 'trap.Processor'}}",
        "builder: image_caption, _target_: trap.Builder",
    ],
)
def test_a_data_set_s_yaml_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    trap = tmp_path / "sprung"
    code = f"from pathlib import Path\nPath({str(trap)!r}).touch()\nBuilder = Processor = int\n"
    (tmp_path / "trap.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "configs" / "datasets" / "mine"
    folder.mkdir(parents=True)
    (folder / "d.yaml").write_text(f"datasets: {{mine: {{{line.replace('{cls}', '[trap, Builder]')}}}}}")
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "configs"))
    assert main(["check", str(folder)]) == 3
    assert main(["prepare", "mine", "--dry-run"]) in (0, 2, 3) and not trap.exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.fault("S13")
@pytest.mark.parametrize("storage", ["pipe:touch {}", "pipe:cat x | tee {}", "!touch {}", "file:pipe:touch {}"])
def test_a_pipe_as_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    harm = tmp_path / "harm"
    folder = tmp_path / "configs" / "datasets" / "mine"
    folder.mkdir(parents=True)
    shards = {"builder": "image_text_shards", "build_info": {"storage": storage.format(harm)}}
    (folder / "d.yaml").write_text(json.dumps({"datasets": {"mine": shards}}))
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "configs"))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "data"))
    with pytest.raises(LavisExtError):
        for sample in load_dataset("mine")["train"]:
            assert sample
    assert not harm.exists()
