"""oscar_vqa and oscar_gqa: the class chosen, the files for the servers, the scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_ext.common.config.schema import Config, DatasetConfig, run_config
from lavis_ext.common.errors import ConfigError
from lavis_ext.oscar.config import OscarConfig
from tests.support.oscar_tasks import Asked, Words, task

WORDS = Words(["yes", "no", "red", "two"])


def logits(*chosen: int) -> Tensor:
    """One row an input, highest at the class chosen, a close second after it."""
    rows = torch.zeros(len(chosen), 4)
    for row, number in enumerate(chosen):
        rows[row, number], rows[row, (number + 1) % 4] = 2.0, 1.9
    return rows


def given(name: str, *chosen: int, **keys: Any) -> Any:
    return task(name, lambda batch: logits(*chosen), **keys)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def batch(*ids: Any, **more: Any) -> dict[str, Any]:
    return {"question_id": list(ids), "instance_id": [f"n{at}" for at in range(len(ids))], **more}


def test_vqa_takes_the_soft_target_of_the_best_class() -> None:
    targets = torch.tensor([[0.3, 1.0, 0, 0], [0, 0, 0.6, 0], [0.9, 0, 0, 0]])
    rows = given("oscar_vqa", 0, 2, 1).valid_step(batch(7, 8, 9, targets=targets))
    assert [row["class"] for row in rows] == [0, 2, 1]
    assert [row["score"] for row in rows] == pytest.approx([0.3, 0.6, 0.0])
    assert [row["most"] for row in rows] == pytest.approx([1.0, 0.6, 0.9])
    assert json.loads(json.dumps(rows)) == rows


def test_vqa_is_scored_and_written(tmp_path: Path) -> None:
    vqa = given("oscar_vqa", 0, 2, 1)
    data = Asked(WORDS)
    vqa.before_evaluation("val", [data])
    targets = torch.tensor([[0.3, 1.0, 0, 0], [0, 0, 0.6, 0], [0.9, 0, 0, 0]])
    rows = vqa.valid_step(batch(7, "000000000008", torch.tensor(9), targets=targets))
    metrics = vqa.after_evaluation([*rows, dict(rows[0])], "val", [data], tmp_path, 3)
    assert metrics == {"overall": 30.0, "upper_bound": 83.33, "agg_metrics": 30.0}
    results = [{"question_id": n, "answer": a} for n, a in ((7, "yes"), (8, "red"), (9, "no"))]
    assert read(tmp_path / "val_results.json") == results
    told = read(tmp_path / "val_epoch3_answers.json")
    assert [(row["answer"], round(row["score"], 6)) for row in told] == [("yes", 0.3), ("red", 0.6), ("no", 0.0)]
    assert read(tmp_path / "val_epoch3_metrics.json") == {"inputs": 3, "metrics": metrics}


def test_the_scores_of_questions_without_ids_are_kept_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Upstream keys them by the question's id, which its files leave at 0, so that one is left of all."""
    vqa = given("oscar_vqa", 0, 1)
    rows = vqa.valid_step(batch(0, 0, targets=torch.eye(4)[:2]))
    assert vqa.after_evaluation(rows, "val", [Asked(WORDS)], tmp_path, 0)["overall"] == 100.0
    assert len(read(tmp_path / "val_epoch0_answers.json")) == 2
    assert not (tmp_path / "val_results.json").exists()
    assert "share the id 0" in caplog.text


def test_official_answers_add_the_leave_one_out_accuracy(tmp_path: Path) -> None:
    notes = [
        {"question_id": 7, "answer_type": "yes/no", "answers": [{"answer": "yes"}] * 3 + [{"answer": "no"}] * 7},
        {"question_id": 8, "answer_type": "other", "answers": [{"answer": "blue"}] * 10},
    ]
    file = tmp_path / "official.json"
    file.write_text(json.dumps({"annotations": notes}))
    vqa = given("oscar_vqa", 0, 2, anno_files={"val": str(file)})
    rows = vqa.valid_step(batch(7, 8, targets=torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0, 0]])))
    found = vqa.after_evaluation(rows, "val", [Asked(WORDS)], tmp_path, 0)
    # three of ten: leaving one of them out leaves two thirds, leaving another out leaves all three
    assert found["official_yes/no"] == 90.0
    assert (found["official"], found["official_other"], found["agg_metrics"]) == (45.0, 0.0, 50.0)


def test_gqa_counts_right_classes_and_keeps_ids_as_text(tmp_path: Path) -> None:
    gqa = given("oscar_gqa", 3, 2, 1)
    rows = gqa.valid_step(batch("05515938", "201079951", "3", labels=torch.tensor([3, 0, -100])))
    metrics = gqa.after_evaluation(rows, "val", [Asked(WORDS)], tmp_path, "best")
    assert metrics == {"overall": 50.0, "agg_metrics": 50.0}
    assert read(tmp_path / "val_results.json")[0] == {"questionId": "05515938", "prediction": "two"}
    assert len(read(tmp_path / "val_epochbest_answers.json")) == 2


@pytest.mark.parametrize("name", ["oscar_vqa", "oscar_gqa"])
def test_a_split_without_answers_is_written_for_its_server(name: str, tmp_path: Path) -> None:
    one = given(name, 2)
    assert one.after_evaluation(one.valid_step(batch(5)), "test", [Asked(WORDS)], tmp_path, "test") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["test_results.json"]
    (row,) = read(tmp_path / "test_results.json")
    assert row == (
        {"question_id": 5, "answer": "red"} if name == "oscar_vqa" else {"questionId": "5", "prediction": "red"}
    )


def test_samples_of_two_data_sets_are_told_apart(tmp_path: Path) -> None:
    gqa = given("oscar_gqa", 1)
    rows = [gqa.valid_step(batch(name, labels=torch.tensor([1]), dataset=name))[0] for name in ("a", "b", "a")]
    gqa.after_evaluation(rows, "val", [Asked(WORDS), Asked(WORDS)], tmp_path, 0)
    assert [row["questionId"] for row in read(tmp_path / "val_results.json")] == ["a", "b"]


def test_questions_whose_answers_have_no_class_are_not_scored(tmp_path: Path) -> None:
    """Upstream leaves them out of its validation; files for a server have nothing else."""
    vqa = given("oscar_vqa", 0, 0)
    rows = vqa.valid_step(batch(1, 2, targets=torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])))
    assert vqa.after_evaluation(rows, "val", [Asked(WORDS)], tmp_path, 0)["overall"] == 100.0
    assert len(read(tmp_path / "val_results.json")) == 2
    rows = vqa.valid_step(batch(1, 2, targets=torch.zeros(2, 4)))
    assert vqa.after_evaluation(rows, "test", [Asked(WORDS)], tmp_path / "test", 0) == {}


def test_data_sets_must_agree_on_their_answers() -> None:
    gqa = given("oscar_gqa", 1)
    with pytest.raises(ConfigError, match="label_file"):
        gqa.before_evaluation("val", [Asked(None)])
    with pytest.raises(ConfigError, match="different vocabularies"):
        gqa.before_evaluation("val", [Asked(WORDS), Asked(Words(["no", "yes", "red", "two"]))])
    gqa.before_evaluation("val", [Asked(WORDS), Asked(Words(list(WORDS.answers)))])


def test_without_report_metric_nothing_is_scored(tmp_path: Path) -> None:
    vqa = given("oscar_vqa", 0, report_metric=False)
    rows = vqa.valid_step(batch(7, targets=torch.eye(4)[:1]))
    assert vqa.after_evaluation(rows, "val", [Asked(WORDS)], tmp_path, 0) == {}


def told(name: str, loss: Any = "ce", args: Any = None, trains: bool = True, **model: Any) -> list[str]:
    """What `check` says of a task with a model section."""
    section = OscarConfig(arch="oscar", model_type="tiny", loss_type=loss, **model)
    data = {"set": DatasetConfig(name="set", args=args or {})}
    run = run_config(task=name, train_splits=["train"] if trains else [])
    config = Config(run=run, model=section, datasets=data, cache_root="")
    return [problem.where for problem in run.problems(config)]


def test_check_knows_heads_and_losses() -> None:
    assert told("oscar_vqa", "bce") == told("oscar_vqa", "kl") == told("oscar_gqa") == told("oscar_retrieval") == []
    assert told("oscar_vqa", "ce") == ["model.loss_type"]
    assert told("oscar_vqa", "ce", {"soft_targets": False}) == told("oscar_vqa", "ce", trains=False) == []
    assert told("oscar_gqa", "bce") == ["model.loss_type"]
    assert told("oscar_nlvr2") == ["model.head"]
    assert told("oscar_nlvr2", head="pair") == told("oscar_nlvr2", use_pair=True) == []
    assert told("oscar_retrieval", "bce", head="caption") == ["model.head", "model.loss_type"]
