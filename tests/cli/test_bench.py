"""`lavis-ext bench`: what it measures, where it says the time goes, and what it says to change."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_ext.cli import main
from lavis_ext.datasets.bench import LoaderReport, LoaderRun, changes, measure
from lavis_ext.datasets.readers.faults import SampleError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight pictures with a caption each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


def test_own_pictures(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(photos), "--workers", "1", "2", "--seconds", "0.1", "--batch-size", "4"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[0])
    assert found["datasets"] == {"photos": "train"}
    assert [run["workers"] for run in found["runs"]] == [2, 1]
    for run in found["runs"]:
        assert run["samples"] >= 4
        assert run["failed"] == 0
        assert run["samples_per_second"] > 0 < run["first_batch_s"]
        assert sum(run["shares"].values()) == pytest.approx(1) or not any(run["shares"].values())
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.count("samples/s") == 2
    assert "best" in said


def test_a_run_file(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "rows.json").write_text(json.dumps([{"image": f"{n}.jpg", "caption": "a"} for n in range(8)]))
    path = tmp_path / "run.yaml"
    path.write_text(f"""
model: {{arch: blip2_opt, model_type: tiny}}
datasets:
  mine:
    builder: image_caption
    build_info:
      annotations: {{train: {{storage: {photos / "rows.json"}}}}}
      images: {{storage: {photos}}}
    vis_processor: {{train: {{name: blip2_image_train, image_size: 32}}}}
    text_processor: {{train: {{name: blip_caption}}}}
run: {{task: captioning, train_splits: [train], batch_size_train: 2, num_workers: 1, max_epoch: 1}}
""")
    assert main(["bench", str(path), "--workers", "1", "--seconds", "0.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (found["batch_size"], found["now"], found["datasets"]) == (2, 1, {"mine": "train"})


class Slow:
    """A data set whose time goes where it is told to."""

    name, split, tolerance = "slow", "train", 0.9

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def __len__(self) -> int:
        return 16

    def load(self, index: int, rng: torch.Generator) -> dict[str, int]:
        if self.stage == "transform":
            Pause.__call__(Pause(), None)
        if index % 2:
            raise SampleError(str(index), "x.jpg", "is damaged")
        return {"id": index}

    def collater(self, samples: list[dict[str, int]]) -> dict[str, list[int]]:
        if self.stage == "other":
            time.sleep(0.05)
        return {"id": [one["id"] for one in samples]}


class Pause:
    """A processor that takes its time, as if it were of ours."""

    def __call__(self, item: object) -> object:
        time.sleep(0.02)
        return item


Pause.__call__.__code__ = Pause.__call__.__code__.replace(co_filename="/x/lavis_ext/processors/pause.py")


@pytest.mark.parametrize(("stage", "workers"), [("transform", 2), ("transform", 0), ("other", 0)])
def test_the_stage_that_takes_the_time_is_named(stage: str, workers: int) -> None:
    found = measure({"slow": Slow(stage)}, 4, workers, 0.5)  # type: ignore[dict-item]
    assert max(found.shares, key=lambda one: found.shares[one]) == stage
    assert found.failed >= 1
    assert found.workers == workers


def report(*rates: float, **shares: float) -> LoaderReport:
    none = dict.fromkeys(("read", "rows", "decode", "transform", "collate", "other", "wait"), 0.0)
    runs = [LoaderRun(2**n, rate, 0.1, 1.0, 1.0, {**none, **shares}, 100, 0) for n, rate in enumerate(rates)]
    return LoaderReport(64, 4, 1, runs)


def test_what_to_change() -> None:
    files: Any = {"mine": object()}
    stream: Any = {"mine": type("S", (), {"iterate": None})()}
    assert report(100, 195, 200).best.workers == 2
    assert [one.what for one in changes(report(100, 195, 200), files)] == ["num_workers: 2"]
    assert [one.what for one in changes(report(100, 101), files)] == []
    assert "lavis-ext pack mine" in changes(report(100, read=0.6), files)[0].what
    assert "cache_gb" in changes(report(100, read=0.6), stream)[0].what
    assert "processor" in changes(report(100, transform=0.6), files)[0].what


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nothing_of_this_name"], 2),
        (["coco"], 2),
        (["coco_caption"], 8),
        (["photos", "--seconds", "0"], 2),
        (["photos", "--batch-size", "0"], 2),
        (["photos", "--workers", "-1"], 2),
        (["photos", "--split", "elsewhere"], 2),
        (["none.yaml"], 2),
        (["wrong.yaml"], 3),
    ],
)
def test_codes(
    words: list[str], code: int, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("wrong.yaml").write_text("run: {task: captioning, no_such_key: 1}")
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(photos.parent / "root"))
    assert main(["bench", *words]) == code, capsys.readouterr().err


def test_pictures_that_cannot_be_read_end_it(photos: Path) -> None:
    for path in photos.glob("*.jpg"):
        path.write_bytes(b"no picture")
    assert main(["bench", str(photos), "--workers", "0", "--seconds", "0.1", "--batch-size", "4"]) == 8
