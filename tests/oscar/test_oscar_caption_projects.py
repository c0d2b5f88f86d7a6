"""Every shipped run file of captioning and pre-training, with the tiny twin of its model, on a small drawn world."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.config.check import check_file
from lavis_ext.common.config.resolve import load_config
from lavis_ext.demo.mirror import serve
from lavis_ext.demo.world import World
from lavis_ext.prepare import PrepareOptions, prepare
from lavis_ext.runners import evaluate, train
from tests.world.export import export_world

PROJECTS = Path(__file__).parents[2] / "configs" / "projects" / "oscar"
CAPTIONS = ("coco_caption", "coco_caption_scst", "coco_caption_vinvl", "nocaps")
FILES = [
    *(PROJECTS / "finetune" / f"{name}.yaml" for name in CAPTIONS),
    *(PROJECTS / "inference" / f"{name}.yaml" for name in ("coco_caption", "nocaps")),
    *sorted((PROJECTS / "pretrain").glob("*.yaml")),
]
WORLD = World(seed=5, train=16, val=4, test=4, hidden=2)
WANTED = ["oscar_coco_caption", "oscar_coco_caption[vinvl]", "oscar_nocaps", "oscar_pretrain", "oscar/base-vg-labels"]
SMALL = ["run.batch_size_train=4", "run.batch_size_eval=2", "run.num_workers=1", "run.report=False", "run.device=cpu"]
TINY = ["model.model_type=tiny", "model.load_pretrained=False", "model.pretrained=null", "model.num_hidden_layers=2"]


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES])
def test_the_file_is_sound(path: Path) -> None:
    assert check_file(path) == []


@pytest.mark.parametrize(
    ("name", "rate", "epochs", "batch", "smoothing", "drop", "tied"),
    [
        ("coco_caption", 3e-5, 30, 64, 0.0, 0.0, False),
        ("coco_caption_scst", 5e-6, 5, 16, 0.0, 0.0, False),
        ("coco_caption_vinvl", 3e-5, 60, 64, 0.1, 0.2, True),
        ("nocaps", 1e-4, 30, 64, 0.0, 0.0, True),
    ],
)
def test_the_values_are_upstream_s(
    name: str, rate: float, epochs: int, batch: int, smoothing: float, drop: float, tied: bool
) -> None:
    config = load_config(PROJECTS / "finetune" / f"{name}.yaml")
    run, model, (dataset,) = config.run, config.model, config.datasets.values()
    assert model is not None and model.head == "caption"
    assert (run.init_lr, run.max_epoch, run.batch_size_train, run.seed) == (rate, epochs, batch, 88)
    assert (model.label_smoothing, model.drop_worst_ratio) == (smoothing, drop)
    assert (model.tie_weights, model.freeze_embedding, model.max_seq_a_length) == (tied, tied, 40)
    assert (run.num_beams, run.max_len, run.scst) == (5, 20, name.endswith("scst"))
    assert (dataset.args["max_seq_length"], dataset.args["max_seq_a_length"]) == (70, 40)


def test_three_classes_of_matching_go_with_false_texts() -> None:
    for path in sorted((PROJECTS / "pretrain").glob("*.yaml")):
        config = load_config(path)
        (dataset,) = config.datasets.values()
        assert config.model is not None
        classes = 3 if 0 < dataset.args["texta_false_prob"] < 0.5 else 2
        assert config.model.num_contrast_classes == classes and config.run.max_iters == 2_000_000


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs go, beside a cache root with the data of captioning and pre-training."""
    base = tmp_path_factory.mktemp("captions")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_EXT_CACHE_ROOT", str(base / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        export_world(WORLD, base / "mirror", ["oscar", "vinvl"])
        with serve(base / "mirror") as url:
            report = prepare(WANTED, PrepareOptions(cache_root=base / "cache", mirror=url))
            assert report.exit_code == 0, report.lines()
        yield base / "runs"


def start(path: Path, runs: Path, *more: str) -> Path:
    """Two steps of a run file, or its evaluation of a few samples, with a tiny model."""
    given = [*SMALL, *TINY, f"run.output_dir={runs / path.parent.name / path.stem}"]
    config = load_config(path, given)
    given += ["run.max_len=5", "run.num_beams=2"] if config.run.task == "oscar_caption" else []
    vocab = "oscar/pretrained_models/base-vg-labels/ep_67_588997/vocab.txt"
    for name in config.datasets:
        given += [f"datasets.{name}.args.vocab={vocab}", f"datasets.{name}.max_samples.train=8"]
    given += ["run.max_iters=2", "run.iters_per_inner_epoch=2"] if config.run.max_iters else ["run.max_epoch=1"]
    whole = load_config(path, [*given, *more])
    return evaluate(whole) if whole.run.evaluate else train(whole)


def finished(job: Path) -> Path:
    facts: dict[str, Any] = json.loads((job / "run.json").read_text(encoding="utf-8"))
    assert facts["status"] in ("finished", "evaluated"), facts
    return job


def test_hidden_words_then_rewards_then_captions(runs: Path) -> None:
    """The three run files of COCO's captions go on from each other, by the folders that they name."""
    xe = finished(start(PROJECTS / "finetune/coco_caption.yaml", runs))
    last = f"model.finetuned={xe / 'checkpoint_best'}"
    scst = finished(start(PROJECTS / "finetune/coco_caption_scst.yaml", runs, last, "run.sc_train_sample_n=2"))
    rewards = [json.loads(line) for line in (scst / "log.jsonl").read_text().splitlines()]
    assert any("reward" in json.dumps(row) for row in rewards)
    best = f"model.finetuned={scst / 'checkpoint_best'}"
    tested = finished(start(PROJECTS / "inference/coco_caption.yaml", runs, best))
    rows = json.loads((tested / "result/test_epochtest.json").read_text())
    assert {type(row["caption"]) for row in rows} == {str} and set(rows[0]) == {"caption", "image_id"}
    (told,) = (tested / "result").glob("pred.oscar_coco_caption.test_*.beam2.max5.odlabels.tsv")
    assert len(told.read_text().splitlines()) == len(rows) == 4
    assert "CIDEr" in json.loads(told.with_suffix(".eval.json").read_text())


def test_nocaps_is_described_by_words_that_were_seen(runs: Path) -> None:
    learnt = finished(start(PROJECTS / "finetune/nocaps.yaml", runs, "model.freeze_embedding=False"))
    more = (f"model.finetuned={learnt / 'checkpoint_best'}", "model.freeze_embedding=False", "run.use_cbs=True")
    described = finished(start(PROJECTS / "inference/nocaps.yaml", runs, *more, "run.max_len=10"))
    (told,) = (described / "result").glob("pred.oscar_nocaps.val_*.cbs2.tsv")
    boxes = (runs.parent / "cache/vinvl/datasets/nocaps/val.cbs_box.tsv").read_text().splitlines()
    seen = {line.split("\t")[0]: {row["class"] for row in json.loads(line.split("\t")[1])} for line in boxes}
    for line in told.read_text().splitlines():
        image, best = line.split("\t")
        caption = json.loads(best)[0]["caption"]
        named = sum(name in caption or f"{name}s" in caption for name in seen[image])
        assert named >= min(2, len(seen[image])), (caption, seen[image])


@pytest.mark.parametrize("path", FILES[6:], ids=[path.stem for path in FILES[6:]])
def test_pretraining_starts(path: Path, runs: Path) -> None:
    job = finished(start(path, runs, "datasets.oscar_pretrain.type=default"))
    assert any((job / name).is_dir() for name in ("checkpoint_1", "checkpoint_2"))


def test_smoothed_words_of_vinvl(runs: Path) -> None:
    finished(start(PROJECTS / "finetune/coco_caption_vinvl.yaml", runs, "run.test_splits=[]", "run.valid_splits=[val]"))
