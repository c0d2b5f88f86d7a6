"""The thirteen command lines of the distillation document, one after the other, as they stand there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lavis_ext.cli import main
from lavis_ext.common.config.check import load_checked
from lavis_ext.demo.world import World
from lavis_ext.oscar.import_args import import_command
from lavis_ext.prepare import PrepareOptions, prepare
from lavis_ext.runners import evaluate, train
from tests.oscar.test_oscar_projects import require_submission
from tests.support.oscar_commands import COMMANDS, written
from tests.world.export import export_world

WORLD = World(seed=5, train=24, val=6, test=6, hidden=2)
WANTED = ["oscar_vqa", "oscar_gqa", "oscar_nlvr2", "oscar_coco_ir", "oscar/base-vg-labels"]
DOCUMENT = [name for name in COMMANDS if not name.startswith("caption")]
SMALL = [
    *("run.batch_size_train=4", "run.batch_size_eval=4", "run.num_workers=0", "run.report=False", "run.device=cpu"),
    *("run.max_epoch=1", "run.save_steps=null"),
]
"""Only sizes: where models and data are is what the command lines say."""
COUNTS = {"train": 8, "val": 4, "test": 4}
TASKS = {"vqa": "vqa", "gqa": "gqa", "nlvr": "nlvr2", "ir": "coco_ir"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory, beside a cache root with the published data and models of the drawn world."""
    base = tmp_path_factory.mktemp("document")
    (base / "here").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_EXT_CACHE_ROOT", str(base / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        export_world(WORLD, base / "mirror", ["oscar"])
        report = prepare(WANTED, PrepareOptions(cache_root=base / "cache", mirror=str(base / "mirror"), reserve=0))
        assert report.exit_code == 0, report.lines()
        patch.chdir(base / "here")
        yield base / "here"


def start(name: str) -> Path:
    """Import a command line, then run what it became; returns the folder of the run."""
    path = Path(f"{name}.yaml")
    path.write_text(import_command([written(name)]).text, encoding="utf-8")
    (data,) = load_checked(str(path), []).datasets
    small = [*SMALL, *(f"datasets.{data}.max_samples.{split}={count}" for split, count in COUNTS.items())]
    config = load_checked(str(path), [one for one in small if "epoch" not in one or "_test" not in name])
    return evaluate(config) if config.run.evaluate else train(config)


def test_all_thirteen_run_as_they_stand(checkout: Path) -> None:
    """Fine-tune → distil → infer → submission, for VQA, GQA, NLVR2 and retrieval; then both models are exported."""
    assert len(DOCUMENT) == 13
    folders = {name: start(name) for name in DOCUMENT}
    for short, task in TASKS.items():
        assert folders[short] == checkout / "model" / task / "teacher"
        student = checkout / "model" / task / "student"
        tests = [name for name in DOCUMENT if name.startswith(short) and name.endswith(("_test", "_1k", "_5k"))]
        assert {folders[name] for name in (f"{short}_taught", *tests)} == {student}
        for folder in (folders[short], student):
            facts = json.loads((folder / "run.json").read_text())
            assert (facts["status"], facts["step"]) == ("evaluated" if folder == student else "finished", 2)
        # an evaluation leaves what the training run wrote of itself
        assert "distill:" in (student / "config.yaml").read_text() and (student / "evaluate.yaml").is_file()
        require_chain(short, student)
    for short, task in TASKS.items():
        for role in ("teacher", "student"):
            require_export(checkout / "model" / task / role, checkout / f"{short}_{role}")
    # a run of an earlier version, which did not write down what the data had filled in
    kept = checkout / "model" / "gqa" / "teacher" / "config.yaml"
    kept.write_text("".join(line for line in kept.open() if "num_labels" not in line))
    require_export(kept.parent, checkout / "gqa_older")


def require_chain(short: str, student: Path) -> None:
    """Fail unless the student's folder holds what the task's server takes, or the ranks of both tests."""
    if short == "ir":
        ranks = sorted(path.name for path in (student / "result").glob("test.*.eval.json"))
        assert len(ranks) == 2 and "test_img_keys_1k" in "".join(ranks)
        return
    files = [path for path in (student / "result").iterdir() if path.name.startswith("test_results.")]
    assert len(files) == 1
    if short == "nlvr":
        require_submission("nlvr2", student / "result")
    else:
        rows = json.loads(files[0].read_text())
        assert len(rows) == 4 and set(rows[0]) in ({"question_id", "answer"}, {"questionId", "prediction"})


def require_export(run: Path, out: Path) -> None:
    """Fail unless a run's folder alone yields a folder of upstream's with the same tensors, which is opened again."""
    from lavis_ext.oscar.convert import read_folder

    assert main(["export", str(run), str(out), "--form", "oscar"]) == 0
    theirs, ours = read_folder(out, "OUT"), read_folder(run, "RUN")
    assert (out / "vocab.txt").is_file()
    assert theirs.settings.num_labels == ours.settings.num_labels
    assert set(theirs.state) == set(ours.state)
    assert all(torch.equal(theirs.state[name], ours.state[name]) for name in ours.state)
