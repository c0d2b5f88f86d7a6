"""Each example of docs/extend runs for real on a few small pictures, and its misspelt key is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_ext import load_dataset
from lavis_ext.cli import main
from lavis_ext.common.config.check import check_file

EXTEND = Path(__file__).parents[2] / "docs" / "extend"
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20)}


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight pictures of one colour each, with captions that name it, below a cache root."""
    (tmp_path / "birds" / "photos").mkdir(parents=True)
    rows = []
    for number in range(8):
        colour = list(COLOURS)[number % 2]
        Image.new("RGB", (24, 24), COLOURS[colour]).save(tmp_path / "birds" / "photos" / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"a {colour} bird", "species": colour, "place": "lake"})
    for name in ("train", "val", "sightings"):
        (tmp_path / "birds" / f"{name}.json").write_text(json.dumps(rows))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path))
    return tmp_path


def train(name: str, root: Path, *options: str) -> list[dict[str, Any]]:
    """The lines of the log of an example's run."""
    words = ["train", "--cfg-path", str(EXTEND / f"{name}.yaml"), "--options", f"run.output_dir={root}/out", *options]
    assert main(words) == 0
    return [json.loads(line) for line in (root / "out" / name / "log.jsonl").read_text().splitlines()]


def misspelt(name: str, root: Path, old: str, new: str) -> str:
    """What `check` says of an example after one word is changed."""
    text = (EXTEND / f"{name}.yaml").read_text()
    assert old in text
    path = root / f"{name}.yaml"
    path.write_text(text.replace(f"[{name}.py]", f"[{EXTEND / name}.py]").replace(old, new))
    (problem,) = check_file(path)
    line = next(n for n, row in enumerate(path.read_text().splitlines(), 1) if new in row)
    assert problem.where.startswith(f"{path}:{line} ")
    return str(problem)


def last(log: list[dict[str, Any]], key: str) -> float:
    """The last value of a key of the lines of training, or of a metric."""
    return float([found[key] for line in log if key in (found := line.get("metrics", line))][-1])


@pytest.mark.parametrize("path", sorted(EXTEND.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_has_no_problem(path: Path, birds: Path) -> None:
    assert [str(problem) for problem in check_file(path)] == []


def test_a_data_set_is_one_yaml(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = birds / "mine" / "datasets" / "birds"
    folder.mkdir(parents=True)
    (folder / "defaults.yaml").write_text((EXTEND / "dataset.yaml").read_text())
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(birds / "mine"))
    found = load_dataset("birds")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 8, "val": 8}
    assert found["train"][1]["text_input"] == "a green bird"
    assert "did you mean 'image_caption'" in misspelt("dataset", birds, "image_caption", "image_captoin")


def test_a_shape_is_one_file(birds: Path) -> None:
    log = train("shape", birds)
    assert last(log, "loss") > 0
    told = misspelt("shape", birds, "args: {template", "args: {tempalte")
    assert "datasets.sightings.args.tempalte" in told and "'template'" in told


def test_a_loss_joins_those_of_the_first_stage(birds: Path) -> None:
    log = train("loss", birds)
    parts = {name: last(log, f"loss_{name}") for name in ("itc", "itm", "lm", "spread")}
    assert parts["spread"] < 0
    weighted = parts["itc"] + 0.5 * parts["itm"] + parts["lm"] + 0.1 * parts["spread"]
    assert last(log, "loss") == pytest.approx(weighted, rel=1e-3)
    assert "'sharpness'" in misspelt("loss", birds, "sharpness", "sharpnes")
    assert "out of its range" in misspelt("loss", birds, "sharpness: 3", "sharpness: -3")


def test_a_metric_is_one_file(birds: Path) -> None:
    words = ["evaluate", "--cfg-path", str(EXTEND / "metric.yaml"), "--options", f"run.output_dir={birds}/out"]
    assert main(words) == 0
    (found,) = json.loads((birds / "out" / "metric" / "evaluate.json").read_text()).values()
    assert 0 <= found["naming"] <= 1
    assert "CIDEr" in found
    assert "'words'" in misspelt("metric", birds, "words:", "wrods:")
    assert "'naming'" in misspelt("metric", birds, "name: naming", "name: nameing")


def test_a_task_is_one_file(birds: Path) -> None:
    log = train("task", birds)
    assert 0 <= last(log, "short") <= 1
    assert "'most_words'" in misspelt("task", birds, "most_words", "most_word")
    assert "out of its range" in misspelt("task", birds, "most_words: 3", "most_words: 0")


def test_a_model_is_one_file(birds: Path) -> None:
    log = train("model", birds)
    assert last(log, "loss") < 0.1
    assert last(log, "CIDEr") > 0  # words in an order of its own
    assert "'width'" in misspelt("model", birds, "width", "widht")
