"""vqa, gqa, aok_vqa: what is asked, what is written, what is scored."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lavis_ext.common.config.schema import run_config
from lavis_ext.common.errors import ConfigError
from lavis_ext.tasks import answering, setup_task
from lavis_ext.tasks.answering import one_answer_each, read_official
from tests.support.blip2 import small_batch, small_model


@dataclass
class Questions:
    """The part of a data set that the tasks ask for."""

    answers: dict[Any, list[str]] = field(default_factory=dict)
    coco_fmt_anno_file: str | None = None

    def references(self) -> dict[Any, list[str]]:
        return self.answers


class Answerer(nn.Module):
    """Answers what the test laid down, and remembers how it was asked."""

    def __init__(self, answers: list[str], lemmas: bool = False) -> None:
        super().__init__()
        self.answers, self.asked = answers, {}
        self.config = SimpleNamespace(apply_lemmatizer=lemmas)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.asked = batch
        return {"loss": torch.zeros(())}

    def predict_answers(self, samples: dict[str, Any], **asked: Any) -> list[str]:
        self.asked = {**asked, "samples": samples}
        return self.answers


def task(name: str, answers: list[str], lemmas: bool = False, **keys: Any) -> Any:
    return setup_task(run_config(task=name, **keys), Answerer(answers, lemmas))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(answers: dict[Any, str]) -> list[dict[str, Any]]:
    return [{"question_id": name, "answer": answer} for name, answer in answers.items()]


def official(path: Path) -> Path:
    notes = [
        {"question_id": 1, "answer_type": "yes/no", "answers": [{"answer": "yes"}] * 10},
        {"question_id": 2, "answer_type": "other", "answers": [{"answer": "red"}] * 10},
        {"question_id": 3, "answer_type": "other", "answers": [{"answer": "blue"}] * 10},
    ]
    path.write_text(json.dumps({"annotations": notes}))
    return path


def test_the_run_section_is_the_recipe() -> None:
    vqa = task("vqa", ["red", "no"], prompt="Question: {} Answer:", num_beams=4, max_len=7, min_len=2)
    batch = {"image": torch.zeros(2, 3, 4, 4), "text_input": ["a", "b"], "question_id": torch.tensor([7, 8])}
    assert vqa.valid_step(batch) == rows({7: "red", 8: "no"})
    asked = vqa.model.asked
    assert (asked["num_beams"], asked["max_len"], asked["min_len"]) == (4, 7, 2)
    assert (asked["prompt"], asked["length_penalty"]) == ("Question: {} Answer:", -1.0)
    assert asked["samples"]["apply_lemmatizer"] is False
    assert task("vqa", [], length_penalty=0.0).length_penalty == 0.0


def test_ids_that_are_text_keep_their_zeros() -> None:
    gqa = task("gqa", ["a"])
    assert (
        gqa.valid_step({"image": 0, "text_input": ["q"], "question_id": ["05515938"]})[0]["question_id"] == "05515938"
    )


def test_rows_of_a_real_model() -> None:
    vqa = setup_task(run_config(task="vqa", num_beams=2, max_len=3), small_model())
    found = vqa.valid_step(
        {**small_batch(2), "text_input": ["what?", "how many?"], "question_id": torch.tensor([1, 2])}
    )
    assert [row["question_id"] for row in found] == [1, 2]
    assert json.loads(json.dumps(found)) == found


def test_vqa_files_and_scores_by_answer_type(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Questions(coco_fmt_anno_file=str(official(tmp_path / "gt.json")))
    predicted = [*rows({1: "Yes", 2: "green"}), *rows({1: "a repeated sample"})]
    metrics = task("vqa", [], num_beams=5).after_evaluation(predicted, "val", [data], tmp_path, 0)
    assert metrics == {"overall": 50.0, "yes/no": 100.0, "other": 0.0, "agg_metrics": 50.0}
    assert read(tmp_path / "val_vqa_result.json") == rows({1: "Yes", 2: "green"})
    assert "2 of 3 questions" in caplog.text
    recipe = read(tmp_path / "val_epoch0_recipe.json")
    assert (recipe["num_beams"], recipe["length_penalty"], recipe["questions"]) == (5, -1.0, 2)
    assert recipe["metrics"] == metrics


def test_answers_of_the_samples_come_first(tmp_path: Path) -> None:
    data = Questions({1: ["no"] * 10}, str(official(tmp_path / "gt.json")))
    assert task("vqa", []).after_evaluation(rows({1: "no"}), "val", [data], tmp_path, 0)["overall"] == 100.0
    named = task("vqa", [], anno_files={"val": str(tmp_path / "gt.json")})
    assert named.after_evaluation(rows({1: "no"}), "val", [data], tmp_path, 0)["overall"] == 0.0


@pytest.mark.parametrize("name", ["vqa", "gqa", "aok_vqa"])
def test_a_split_without_answers_is_written_for_its_server(name: str, tmp_path: Path) -> None:
    assert task(name, []).after_evaluation(rows({"0a": "red"}), "test", [Questions()], tmp_path, 0) == {}
    key = "answer" if name == "vqa" else "pred_ans"
    assert read(tmp_path / "test_vqa_result.json")[0][key] == "red"
    if name == "gqa":
        assert read(tmp_path / "test_submission.json") == [{"questionId": "0a", "prediction": "red"}]
    if name == "aok_vqa":
        form = {"0a": {"direct_answer": "red", "multiple_choice": ""}}
        assert read(tmp_path / "test_leaderboard.json") == form


def test_without_report_metric_nothing_is_scored(tmp_path: Path) -> None:
    off = task("vqa", [], report_metric=False)
    assert off.after_evaluation(rows({1: "a"}), "val", [Questions({1: ["a"] * 10})], tmp_path, 0) == {}


def test_gqa_shows_both_answers(tmp_path: Path) -> None:
    data = Questions({"1": ["left"], "2": ["yes"]})
    metrics = task("gqa", []).after_evaluation(rows({"1": "Left", "2": "no"}), "val", [data], tmp_path, 0)
    assert metrics == {"overall": 50.0, "agg_metrics": 50.0}
    assert read(tmp_path / "val_vqa_result.json")[0] == {"question_id": "1", "pred_ans": "Left", "gt_ans": "left"}


@pytest.mark.parametrize(("normalize", "right"), [("both", 100.0), ("prediction", 0.0)])
def test_gqa_normalises_given_answers_or_leaves_them(normalize: str, right: float, tmp_path: Path) -> None:
    data = Questions({"1": ["the left"]})
    asked = task("gqa", [], gqa_normalize=normalize)
    assert asked.after_evaluation(rows({"1": "The left"}), "val", [data], tmp_path, 0)["overall"] == right
    assert read(tmp_path / "breakdown" / "val.json")["answer_types"][0]["accuracy"] == right


def test_aokvqa_counts_thirds(tmp_path: Path) -> None:
    data = Questions({"x": ["ride", "ride", *["sit"] * 8]})
    assert task("aok_vqa", []).after_evaluation(rows({"x": "ride"}), "val", [data], tmp_path, 0)["overall"] == 66.67


def test_both_scores_with_a_lemmatizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "lemmatize", lambda answers: [answer.removesuffix("s") for answer in answers])
    data = Questions({1: ["dog"] * 10})
    metrics = task("vqa", [], lemmas=True).after_evaluation(rows({1: "dogs"}), "test", [data], tmp_path, 0)
    assert metrics == {"overall": 100.0, "overall_raw": 0.0, "agg_metrics": 100.0}
    assert read(tmp_path / "test_vqa_result.json")[0]["answer"] == "dog"
    assert read(tmp_path / "test_vqa_result_raw.json")[0]["answer"] == "dogs"


def vqa_batch() -> dict[str, Any]:
    weights = torch.tensor([0.25, 0.75, 1.0])
    counts = torch.tensor([2, 1])
    asked = {"image": small_batch(2)["image"], "text_input": ["what colour?", "how many?"]}
    return {**asked, "answer": ["red", "blue", "two"], "weight": weights, "n_answers": counts}


def test_one_answer_is_drawn_by_its_weight() -> None:
    torch.manual_seed(0)
    drawn = Counter(one_answer_each(vqa_batch(), "Q: {} A:")["text_output"][0] for _ in range(800))
    assert drawn["blue"] / 800 == pytest.approx(0.75, abs=0.05)
    found = one_answer_each(vqa_batch(), "Q: {} A:")
    assert found["text_input"] == ["Q: what colour? A:", "Q: how many? A:"]
    assert found["text_output"][1] == "two"
    assert not {"answer", "weight", "n_answers"} & set(found)


def test_a_step_on_questions_learns_the_answers_alone() -> None:
    model = small_model()
    torch.manual_seed(0)
    loss = setup_task(run_config(task="vqa", prompt="Q: {} A:"), model).step(vqa_batch())["loss"]
    torch.manual_seed(0)
    assert loss.item() == model(one_answer_each(vqa_batch(), "Q: {} A:"))["loss"].item()
    plain = small_batch(2)
    assert setup_task(run_config(task="vqa"), model).step(plain)["loss"].item() == model(plain)["loss"].item()


def test_what_is_no_official_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "gt.json"
    for bad in ("{", "[1]", '{"annotations": [{"image_id": 1}]}'):
        file.write_text(bad)
        with pytest.raises(ConfigError, match="anno_files"):
            read_official(file)
    with pytest.raises(ConfigError, match="No such file"):
        read_official(tmp_path / "gone.json")


def test_ranking_takes_the_answer_lists_of_the_split() -> None:
    vqa = task("vqa", ["red"], inference_method="rank", num_ans_candidates=3)
    sets = [SimpleNamespace(answer_list=["red", "two"]), SimpleNamespace(answer_list=["two", "no"])]
    vqa.before_evaluation("val", sets)
    vqa.valid_step({"image": torch.zeros(1, 3, 4, 4), "text_input": ["a"], "question_id": [7]})
    asked = vqa.model.asked
    assert (asked["inference_method"], asked["num_ans_candidates"]) == ("rank", 3)
    assert asked["answer_list"] == ["red", "two", "no"]


@pytest.mark.parametrize("sets", [[], [Questions()], [SimpleNamespace(answer_list=None)]])
def test_ranking_without_a_list_is_refused(sets: list[Any]) -> None:
    with pytest.raises(ConfigError, match="split 'val' has no answer_list"):
        task("vqa", ["red"], inference_method="rank").before_evaluation("val", sets)
    task("vqa", ["red"]).before_evaluation("val", sets)


@dataclass
class Asked(Questions):
    """Questions that know what they ask."""

    asked: dict[Any, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.asked)

    def row(self, index: int) -> dict[str, Any]:
        name = list(self.asked)[index]
        return {"question_id": name, "question": self.asked[name]}


def test_how_answers_fared_by_kind_is_left_for_the_report(tmp_path: Path) -> None:
    data = Asked(
        {1: ["yes"] * 10, 2: ["3"] * 10, 3: ["red"] * 10},
        asked={1: "Is it red?", 2: "How many are there?", 3: "What color is it?"},
    )
    task("vqa", []).after_evaluation(rows({1: "yes", 2: "red", 3: "blue"}), "val", [data], tmp_path, 0)
    found = read(tmp_path / "breakdown" / "val.json")
    assert found["split"] == "val"
    assert {row["name"]: row["accuracy"] for row in found["answer_types"]} == {"yes/no": 100, "number": 0, "other": 0}
    assert [row["name"] for row in found["question_types"]] == ["how many", "is it", "what color"]
    assert found["confusion"] == {"yes/no": {"yes/no": 1}, "number": {"other": 1}, "other": {"other": 1}}
    assert {"type": "number", "truth": "3", "said": "red", "questions": 1} in found["mistakes"]


def test_official_files_say_the_kinds(tmp_path: Path) -> None:
    data = Questions(coco_fmt_anno_file=str(official(tmp_path / "answers.json")))
    task("vqa", []).after_evaluation(rows({1: "no", 2: "red"}), "val", [data], tmp_path, 0)
    found = read(tmp_path / "breakdown" / "val.json")
    assert {row["name"]: row["accuracy"] for row in found["answer_types"]} == {"yes/no": 0, "other": 100}
    assert found["question_types"] == []


@pytest.mark.parametrize(("name", "given", "worth"), [("gqa", ["red"], 100.0), ("aok_vqa", ["red", "blue"], 33.33)])
def test_kinds_are_scored_as_the_task_scores(name: str, given: list[str], worth: float, tmp_path: Path) -> None:
    task(name, []).after_evaluation(rows({"q": "red"}), "val", [Questions({"q": given})], tmp_path, 0)
    assert read(tmp_path / "breakdown" / "val.json")["answer_types"] == [
        {"name": "other", "questions": 1, "accuracy": worth}
    ]
