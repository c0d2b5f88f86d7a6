"""Settings of any content are refused with code 3 and the place of each mistake, before anything is written."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.cli import main
from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.check import check_file, load_checked
from lavis_ext.common.config.resolve import load_config, parse_options
from lavis_ext.common.config.schema import DatasetConfig, ModelConfig, TermConfig, run_config
from lavis_ext.common.errors import ConfigError, LavisExtError
from lavis_ext.common.registry import load_plugin_file
from lavis_ext.fetch import Policy, Source, Transfer, fetch
from tests.faults.fuzz_targets import PLACES, VALUES, check_settings, paths_in, text_with

RUN = """\
model: {arch: blip2_opt, model_type: tiny}
datasets:
  coco_caption: {}
run:
  task: captioning
  max_epoch: 1
  train_splits: [train]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def refused(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What `check` and `train` say of a run file that both refuse with code 3; one of them, where there are options."""
    said = ""
    checks: list[list[str]] = [] if options else [["check", str(path)]]
    for words in (*checks, ["train", "--cfg-path", str(path), "--options", "run.output_dir=out", *options]):
        assert main(words) == 3, words
        out = capsys.readouterr()
        said += out.out + out.err
    assert "Traceback" not in said and "internal error" not in said
    return said


MISTAKES = [
    ("datasets: zoo\nrun: {task: vqa}", "run.yaml:1 datasets"),
    ("datasets: {a: b}\nrun: {task: vqa}", "run.yaml:1 datasets.a"),
    ("datasets: [coco_caption]\nrun: {task: vqa}", "run.yaml:1 datasets"),
    ("model: tiny\nrun: {task: vqa}", "run.yaml:1 model"),
    ("run: train", "run.yaml:1 run"),
    ("run: [train]", "run.yaml:1 run"),
    ("env: /data\nrun: {task: vqa}", "run.yaml:1 env"),
    ("plugins: {a: b}\nrun: {task: vqa}", "run.yaml:1 plugins"),
    ("plugins: 3\nrun: {task: vqa}", "run.yaml:1 plugins"),
    ("run: {task: vqa, distill: yes}", "run.yaml:1 run.distill"),
    (RUN + "  seed: ${oc.env:NOPE_NOT_SET}", "run.yaml:8 run.seed"),
    (RUN + "  seed: ${run.nothing}", "run.yaml:8 run.seed"),
    (RUN + "  seed: ${run.seed}", "run.yaml:8 run.seed"),
    (RUN + "  seed: ${", "run.yaml:8 run.seed"),
    (RUN + "  seed: ${no.such.resolver:3}", "run.yaml:8 run.seed"),
    (RUN + "  loop: &a {b: *a}", "run.yaml:8"),
    (RUN + "  loop: &a [*a]", "run.yaml:8"),
    (RUN + "  loop: &a [[{b: [*a]}]]", "run.yaml:8"),
    (RUN + "  ? [a, b]\n  : c", "run.yaml:8"),
    (RUN + "  ? {a: b}\n  : c", "run.yaml:8"),
    (RUN + "  deep: " + "{a: " * 3000 + "}" * 3000, "run.yaml:8"),
    (RUN + "  deep: " + "[" * 3000 + "]" * 3000, "run.yaml:8"),
    (RUN + "".join(f"  {'  ' * n}a:\n" for n in range(3000)), "run.yaml:"),
    (RUN + "  seed: !!int x", "run.yaml:8"),
    (RUN + "  seed: !!bool x", "run.yaml:8"),
    (RUN + "  seed: !!binary aGk=", "run.yaml:8"),
    (RUN + "  seed: !!set {a, b}", "run.yaml:8"),
    (RUN + "  seed: " + "9" * 5000, "run.yaml:8"),
    (RUN + "  seed: 0x" + "f" * 5000, "run.yaml:8"),
    (RUN + "  seed: !!int ''", "run.yaml:8"),
    (RUN + "  seed: !!map x", "run.yaml:8"),
    (RUN + "  seed: !!map [a, b]", "run.yaml:8"),
    (RUN + "  1: 2", "run.yaml:8 run.1"),
    ("1: 2\nrun: {task: vqa}", "run.yaml:1 1"),
    (RUN + "  seed: '\ud800'", "run.yaml"),
    ("a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{l: *a{n - 1}, r: *a{n - 1}}}\n" for n in range(1, 32)), "run.yaml"),
]


@pytest.mark.fault("H29")
@pytest.mark.parametrize(("text", "place"), MISTAKES, ids=[f"{i}" for i in range(len(MISTAKES))])
def test_yaml_that_is_no_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, place: str) -> None:
    text = text if "run:" in text or "a0" in text else RUN + text
    path = written(tmp_path, text + ("\nrun: {task: vqa}\n" if "a0:" in text else "\n"))
    assert place in refused(path, capsys)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Thousands of notices of ignored keys are not kept."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.fault("H29")
@pytest.mark.parametrize("kind", PLACES)
def test_any_value_anywhere_in_a_run_file_a_card_and_a_model_s_yaml(tmp_path: Path, quiet: None, kind: str) -> None:
    tree = PLACES[kind][0]
    places = list(paths_in(tree))
    cases = [(path, VALUES[(7 * n) % len(VALUES)]) for n, path in enumerate(places)]
    for number, (path, value) in enumerate(cases):
        try:
            check_settings(kind, text_with(tree, [(path, value)]), tmp_path / str(number))
        except LavisExtError as error:
            assert str(error).strip()
        except Exception as error:
            raise AssertionError(f"{path}: {value!r}") from error


@pytest.mark.fault("H29")
@pytest.mark.parametrize(
    "option",
    [
        "datasets=zoo",
        "datasets.coco_caption=zoo",
        "model=x",
        "run=[1]",
        "run.seed=${oc.env:NOPE_NOT_SET}",
        "run.seed=" + "[" * 3000,
        "run.seed=0x" + "f" * 5000,
        "run.seed=!!int ''",
        "run.seed=!!map x",
        ".".join(["run"] * 3000) + "=1",
        "run.train_splits={a: b}",
    ],
    ids=lambda option: option[:30],
)
def test_options_that_fit_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    path = written(tmp_path, RUN)
    code = main(["train", "--cfg-path", str(path), "--options", f"run.output_dir={tmp_path}/out", option])
    said = capsys.readouterr().err
    assert code in (2, 3) and "--options" in said and "internal error" not in said


@pytest.mark.fault("H29")
@pytest.mark.parametrize(
    "option", ["run.x={a", "run.x=*a", "run.x=!!python/none x", "run.x=a: b: c", "run..x=1", ".=1"]
)
def test_options_that_are_no_yaml(option: str) -> None:
    with pytest.raises(LavisExtError) as caught:
        parse_options([option])
    assert caught.value.exit_code == 2


@pytest.mark.fault("H29")
def test_options_refer_to_the_run_file(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, RUN + "  seed: 7\n"), ["run.warmup_steps=${run.seed}"])
    assert config.run.warmup_steps == 7


@pytest.mark.fault("H29")
def test_a_hostile_card_is_named_by_every_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "configs" / "datasets" / "zoo" / "artifacts.yaml"
    place.parent.mkdir(parents=True)
    place.write_text("family: zoo\nartifacts: {a: https://x/y}\ndatasets: zoo\n")
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "configs"))
    for words in (["list"], ["show", "coco"], ["status"], ["prepare", "coco", "--dry-run"], ["cite", "coco"]):
        assert main(words) == 3
        said = capsys.readouterr().err
        assert f"{place}:2 artifacts.a" in said and f"{place}:3 datasets" in said
    with pytest.raises(ConfigError) as caught:
        load_cards()
    assert len(caught.value.problems) == 2


BAD_URLS = [
    "https://[bad/x",
    "http://h:99999/x",
    "http://h:x/",
    "https:///x",
    "http://[::1/x",
    "https://h/\x07",
    "http://h:0/",
]


@pytest.mark.fault("H21")
@pytest.mark.parametrize("url", BAD_URLS)
def test_an_address_that_is_none_is_a_mistake_of_its_card(tmp_path: Path, url: str) -> None:
    import yaml

    artifact = {"url": "https://x.org/a", "storage": "z/a", "mirrors": [{"url": url, "equivalence": "byte_exact"}]}
    card = {
        "family": "z",
        "artifacts": {"a": artifact, "b": {"url": url, "storage": "z/b"}},
    }
    path = tmp_path / "configs" / "datasets" / "z" / "artifacts.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(card))
    keys = {problem.where.rpartition(" ")[2] for problem in check_file(path)}
    assert {re.sub(r"\[\d\]", "", key) for key in keys} == {"artifacts.a.mirrors.url", "artifacts.b.url"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "configs"))
        assert set(load_cards().families["z"].artifacts) == {"a", "b"}  # the other file can still be fetched


@pytest.mark.fault("H21")
@pytest.mark.parametrize("proxy", ["http://[bad", "http://h:99999", "http://u:p@[::1"])
def test_a_proxy_that_is_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    main(["doctor", "--options", f"env.cache_root={tmp_path}"])
    policy = Policy(retries=0, backoff=0.01)
    with pytest.raises(LavisExtError) as caught:
        fetch(Transfer(tmp_path / "f", (Source("http://a.example/f"),), sha256="0" * 64), policy)
    assert caught.value.exit_code == 4 and "internal error" not in capsys.readouterr().err


# Numbers

NUMBERS = [
    *("init_lr: -1", "init_lr: .nan", "init_lr: .inf", "init_lr: 1e400", "seed: -1", f"seed: {10**23}", "seed: 1e30"),
    *("seed: 1.5", "seed: true", "max_epoch: 0", f"max_epoch: {2**63}", "batch_size_train: 0", "batch_size_eval: -1"),
    *("num_workers: -1", "accum_grad_iters: 0", "warmup_steps: -3", "weight_decay: -0.1", "beta2: 1.5", "log_freq: 0"),
    *("clip_grad_norm: 0", "clip_grad_norm: .nan", "lr_layer_decay: 2", "keep_checkpoints: 0", "wait_minutes: 0"),
    *("num_beams: 0", "num_beams: -1", "max_len: -1", "max_len: 0", "min_len: 40", "save_freq: -2", "val_freq: 0"),
]


@pytest.mark.fault("H30", "H22")
@pytest.mark.parametrize("line", NUMBERS)
def test_a_number_out_of_its_range_in_a_file_and_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    key = line.partition(":")[0]
    text = RUN.replace("  max_epoch: 1\n", "") if key == "max_epoch" else RUN
    assert f"run.{key}" in refused(written(tmp_path, f"{text}  {line}\n"), capsys)
    assert f"--options run.{key}" in refused(written(tmp_path, RUN), capsys, f"run.{line.replace(': ', '=')}")
    assert not (tmp_path / "out").exists() and not Path("out").exists()


@pytest.mark.fault("H30")
def test_a_whole_number_is_read_to_its_last_digit(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, RUN + f"  seed: {2**53 + 1}\n")).run.seed == 2**53 + 1


MADE: list[tuple[Any, dict[str, Any]]] = [
    (run_config, {"task": "captioning", "init_lr": -1.0}),
    (run_config, {"task": "captioning", "init_lr": float("nan")}),
    (run_config, {"task": "captioning", "seed": 10**23}),
    (run_config, {"task": "captioning", "num_beams": 0}),
    (run_config, {"task": "vqa", "max_len": -1}),
    (run_config, {"task": "captioning", "batch_size_train": 0}),
    (run_config, {"task": "captioning", "job_id": "../x"}),
    (ModelConfig, {"arch": "blip2_opt", "model_type": "tiny", "num_query_token": 0}),
    (DatasetConfig, {"name": "x", "weight": 0.0}),
    (DatasetConfig, {"name": "x", "tolerance": float("nan")}),
    (DatasetConfig, {"name": "x", "max_samples": {"train": 0}}),
    (TermConfig, {"name": "pkd", "weight": -1.0}),
]


@pytest.mark.fault("H30")
@pytest.mark.parametrize(("make", "keys"), MADE)
def test_a_number_out_of_its_range_in_a_section_made_in_code(make: Any, keys: dict[str, Any]) -> None:
    if make is ModelConfig:
        make = ModelConfig.variant(keys)[0]
    with pytest.raises(ConfigError) as caught:
        make(**keys)
    assert caught.value.problems[0].where.partition(".")[0] in keys


# Names and paths


@pytest.mark.fault("H27")
@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "/abs", "a/b", "a\\b", "a\0b", "a\x1bb", "x" * 256, "é" * 128, "\ud800"]
)
def test_a_job_that_is_no_name_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    import yaml

    text = yaml.safe_dump({"job_id": name})
    path = written(tmp_path, RUN + f"  {text}")
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", "--cfg-path", str(path), "--options", f"run.output_dir={tmp_path}/out"]) == 3
    place = "run.yaml:8" if name == "\ud800" else "run.job_id"
    assert place in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before


@pytest.mark.fault("H27")
@pytest.mark.parametrize("name", ["exp-1", "..a", "a b", "é", "20261128-1200", "a.b"])
def test_a_job_that_is_a_name(name: str) -> None:
    assert run_config("captioning", job_id=name).job_id == name


@pytest.mark.fault("H31")
@pytest.mark.parametrize("value", ["a\0b", "x" * 256, "/".join(["d" * 200] * 30), "~no-such-user/x"])
def test_a_cache_root_that_no_disk_can_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    import yaml

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"env": {"cache_root": value}}) + RUN)
    assert "cache_root" in refused(path, capsys)
    with pytest.raises(ConfigError):
        load_plugin_file(Path(value), "run.yaml plugins")


UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Runs a command in which permissions hold for root too."""


@pytest.mark.fault("H31")
@pytest.mark.parametrize("locked", ["", "lavis_ext", "lavis_ext/config.yaml"])
def test_settings_of_the_user_that_may_not_be_read(tmp_path: Path, locked: str) -> None:
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and there is no setpriv")
    home = tmp_path / "config"
    (home / "lavis_ext").mkdir(parents=True)
    (home / "lavis_ext" / "config.yaml").write_text(f"env: {{cache_root: {tmp_path}}}\n")
    (home / locked).chmod(0)
    around = {**os.environ, "XDG_CONFIG_HOME": str(home)}
    around.pop("LAVIS_EXT_CACHE_ROOT", None)
    words = [*(UNPRIVILEGED if os.getuid() == 0 else ()), sys.executable, "-m", "lavis_ext", "doctor"]
    try:
        done = subprocess.run(words, env=around, capture_output=True, text=True, timeout=60, check=False)
    finally:
        (home / locked).chmod(0o700)
    assert done.returncode == 3 and str(home) in done.stderr and "Traceback" not in done.stderr


@pytest.mark.fault("H29")
def test_every_mistake_is_there_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "env: 3\ndatasets: {a: b, c: [d]}\nrun: {task: captioning, init_lr: -1, seed: .nan}\n")
    with pytest.raises(ConfigError) as caught:
        load_checked(path)
    wheres = " ".join(problem.where for problem in caught.value.problems)
    assert all(key in wheres for key in ("env", "datasets.a", "datasets.c")) and len(check_file(path)) >= 3


@pytest.mark.fault("H31")
@pytest.mark.parametrize(
    "name",
    ["x" * 300, "x" * 300 + "/y", "\udcff", "~no-such-user/x", "a/" * 3000, "", "\x1b[2J"],
    ids=["long", "parent", "bytes", "home", "deep", "empty", "escape"],
)
def test_a_path_of_any_kind_given_to_a_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, RUN)
    command = ["python", "oscar/run_vqa.py", "--do_test"]
    for words in (
        ["check", name],
        ["train", "--cfg-path", name],
        ["browse", name],
        ["browse", "coco", "--out", name],
        ["export", name, "o.pth"],
        ["runs", name],
        ["import-args", "--from", name],
        ["import-args", "--out", name, "--", *command],
        ["features", "import", name, "s"],
        ["features", "info", name],
        ["prepare", "coco", "--sas-file", name, "--dry-run"],
        ["prepare", "coco", "--mirror", name, "--dry-run"],
        ["status", "coco", "--options", f"env.cache_root={name}"],
        ["list", "--plugin", name],
        ["chat", "--cfg-path", "run.yaml", "--image", name, "--question", "x"],
    ):
        code = main(words)
        said = capsys.readouterr().err
        assert code != 1 and "internal error" not in said and "\x1b" not in said, (words, said)
