"""`check` tells every mistake of a file at once, whatever kind of YAML it is."""

from pathlib import Path

import pytest

from lavis_ext.check import check, check_file
from lavis_ext.config import load_config
from lavis_ext.errors import ConfigError

RUN = """
model: {arch: blip2_opt, model_type: tiny}
datasets:
  coco_caption:
    vis_processor: {train: {name: blip2_image_train, image_size: 96}}
run: {task: captioning, max_epoch: 1, train_splits: [train], valid_splits: [val]}
"""


def texts(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return [str(problem) for problem in check_file(path)]


def test_good_run_has_no_problem(tmp_path: Path) -> None:
    assert texts(tmp_path, RUN) == []


def test_all_semantic_mistakes_at_once(tmp_path: Path) -> None:
    bad = (
        RUN.replace("captioning", "captoining")
        .replace("image_size: 96", "imagesize: 96")
        .replace("valid_splits: [val]", "valid_splits: [vla], runner: runner_bsae, lr_sched: cosine, log_freq: 0")
        .replace("max_epoch: 1,", "")
        .replace("    vis_processor", "    weight: -1\n    vis_processor")
    )
    found = "\n".join(texts(tmp_path, bad))
    for part in (
        "run.task: no task named 'captoining'; did you mean 'captioning'?",
        "run.runner: no runner named 'runner_bsae'",
        "run.lr_sched: no lr_scheduler named 'cosine'",
        "run.log_freq: 0 is below 1",
        "run.valid_splits: no data set of this run has a split 'vla'; did you mean 'val'?",
        "neither max_epoch nor max_iters is given",
        "'blip2_image_train' takes no such argument; did you mean 'image_size'?",
        "weight: -1.0 is not positive",
    ):
        assert part in found
    assert f"{tmp_path / 'x.yaml'}:7 run.task" in found


def test_check_raises_what_check_file_lists(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(RUN.replace("captioning", "nothing"))
    with pytest.raises(ConfigError, match="no task named 'nothing'"):
        check(load_config(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: {mine: {builder: image_captoin}}", "did you mean 'image_caption'"),
        (
            "datasets: {mine: {builder: image_caption, vis_processor: {eval: {name: nope}}}}",
            "no processor named 'nope'",
        ),
        ("datasets: {mine: {}}", "names no shape"),
        ("datasets: {mine: {builder: image_caption, max_samples: {val: 0}}}", "0 is not positive"),
        ("model: {arch: blip3, model_type: tiny}", "no model named 'blip3'"),
        (
            "model: {arch: a, model_type: t}\npreprocess: {vis_processor: {eval: {name: clip_image_eval, x: 1}}}",
            "no such argument",
        ),
        ("runn: {}", "unknown section; did you mean 'run'?"),
        ("datasets: {coco_caption: {}}\nrun: {task: captioning, evaluate: true}", "model: is missing"),
    ],
)
def test_each_kind_of_yaml(tmp_path: Path, text: str, message: str) -> None:
    assert message in "\n".join(texts(tmp_path, text))
