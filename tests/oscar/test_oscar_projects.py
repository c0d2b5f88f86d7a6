"""Every shipped run file of Oscar's four tasks, with the tiny twin of its model, on a small drawn world."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.check import check_file
from lavis_ext.common.config.resolve import load_config
from lavis_ext.demo.mirror import serve
from lavis_ext.demo.world import World
from lavis_ext.prepare import PrepareOptions, prepare
from lavis_ext.runners import evaluate, train
from tests.world.export import export_world

PROJECTS = Path(__file__).parents[2] / "configs" / "projects" / "oscar"
NAMES = ("vqa", "gqa", "nlvr2", "coco_ir")
TESTS = ("vqa", "gqa", "nlvr2", "coco_ir_1k", "coco_ir_5k")
WORLD = World(seed=5, train=24, val=6, test=6, hidden=2)
WANTED = ["oscar_vqa", "oscar_gqa", "oscar_nlvr2", "oscar_coco_ir", "oscar/base-vg-labels"]
SMALL = ["run.batch_size_train=4", "run.batch_size_eval=4", "run.num_workers=1", "run.report=False", "run.device=cpu"]
TINY = ["model.model_type=tiny", "model.load_pretrained=False", "model.pretrained=null"]


def files(folder: str, names: tuple[str, ...]) -> list[Path]:
    return [PROJECTS / folder / f"{name}.yaml" for name in names]


FILES = [*files("finetune", NAMES), *files("distill", NAMES), *files("inference", TESTS)]


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES])
def test_the_file_is_sound(path: Path) -> None:
    assert check_file(path) == []


@pytest.mark.parametrize(
    ("name", "rate", "epochs", "batch", "warmup", "drop", "tokens", "regions"),
    [
        ("vqa", 5e-5, 25, 32, 0, 0.3, 128, 50),
        ("gqa", 5e-5, 5, 48, 0, 0.3, 165, 45),
        ("nlvr2", 3e-5, 20, 72, 10000, 0.3, 55, 40),
        ("coco_ir", 2e-5, 30, 32, 0, 0.1, 70, 50),
    ],
)
def test_the_values_are_upstream_s(
    name: str, rate: float, epochs: int, batch: int, warmup: int, drop: float, tokens: int, regions: int
) -> None:
    for path in (PROJECTS / "finetune" / f"{name}.yaml", PROJECTS / "distill" / f"{name}.yaml"):
        config = load_config(path)
        run, model, (dataset,) = config.run, config.model, config.datasets.values()
        assert model is not None
        assert (run.init_lr, run.max_epoch, run.batch_size_train, run.warmup_steps) == (rate, epochs, batch, warmup)
        assert (run.weight_decay, run.clip_grad_norm, run.seed, model.drop_out) == (0.05, 1.0, 88, drop)
        assert (run.lr_sched, run.warmup_lr, run.optimizer) == ("linear_warmup_linear_lr", 0, "adamw")
        assert (dataset.args["max_seq_length"], dataset.args["max_img_seq_length"]) == (tokens, regions)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs go, beside a cache root with the data of all four tasks."""
    base = tmp_path_factory.mktemp("oscar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_EXT_CACHE_ROOT", str(base / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        export_world(WORLD, base / "mirror", ["oscar"])
        with serve(base / "mirror") as url:
            report = prepare(WANTED, PrepareOptions(cache_root=base / "cache", mirror=url))
            assert report.exit_code == 0, report.lines()
        yield base / "runs"


def start(path: Path, runs: Path, **more: Any) -> Path:
    """Two steps of a run file, or its evaluation of a few samples, with a tiny model."""
    name = path.stem.removesuffix("_1k").removesuffix("_5k")
    given = [*SMALL, *TINY, f"run.output_dir={runs / name}"]
    config = load_config(path, given)
    counts = {"train": 8, "val": 4, "test": 4}
    given += [f"datasets.{data}.max_samples.{split}={n}" for data in config.datasets for split, n in counts.items()]
    given += ["model.num_hidden_layers=3"] if path.parent.name != "finetune" else ["model.num_hidden_layers=6"]
    given += [] if config.run.evaluate else ["run.max_epoch=1"]
    given += [f"run.distill.teacher={runs / name / 'teacher'}"] if path.parent.name == "distill" else []
    given += [f"model.finetuned={runs / name / 'student' / 'checkpoint_best'}"] if config.run.evaluate else []
    whole = load_config(path, [*given, *(f"{key}={value}" for key, value in more.items())])
    return evaluate(whole) if whole.run.evaluate else train(whole)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_fine_tuned_then_taught_then_tested(name: str, runs: Path) -> None:
    """The three run files of a task go on from each other without a change."""
    for folder in ("finetune", "distill"):
        job = start(PROJECTS / folder / f"{name}.yaml", runs)
        facts = read(job / "run.json")
        assert (facts["status"], facts["step"] >= 2) == ("finished", True)
        assert (job / "checkpoint_best" / "model.safetensors").is_file()
        assert (job / "checkpoint_best" / "labels.json").is_file() == (name in ("vqa", "gqa"))
    for path in files("inference", tuple(test for test in TESTS if test.startswith(name))):
        job = start(path, runs)
        assert read(job / "run.json")["status"] == "evaluated"
        require_submission(name, job / "result")


def require_submission(name: str, folder: Path) -> None:
    """Fail unless the result is what the server of the task takes."""
    if name == "vqa":
        rows = read(folder / "test_results.json")
        assert all(type(row["question_id"]) is int and type(row["answer"]) is str for row in rows)
        assert (len({row["question_id"] for row in rows}), set(rows[0])) == (len(rows), {"question_id", "answer"})
        assert (folder / "test_dev_results.json").is_file()
    elif name == "gqa":
        rows = read(folder / "test_results.json")
        assert {(type(row["questionId"]), type(row["prediction"])) for row in rows} == {(str, str)}
    elif name == "nlvr2":
        lines = list(csv.reader((folder / "test_results.csv").open()))
        assert {said for _, said in lines} <= {"True", "False"}
        assert len(lines) == 4
    else:
        (told,) = folder.glob("test.test_img_keys*.eval.json")
        assert set(read(told)) == {"i2t_retrieval", "t2i_retrieval"}
        assert set(read(told)["i2t_retrieval"]) == {"R@1", "R@5", "R@10"}
