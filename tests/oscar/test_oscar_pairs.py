"""oscar_nlvr2: accuracy, consistency and the csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.errors import ConfigError
from lavis_ext.oscar.answering import sentence_of
from tests.support.oscar_tasks import Asked, task

NAMES = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-2-0-0"]


def evaluated(tmp_path: Path, said: list[int], labels: list[int] | None, names: list[str] = NAMES) -> dict[str, float]:
    nlvr = task("oscar_nlvr2", lambda batch: torch.eye(2)[said])
    batch: dict[str, Any] = {"question_id": names, "instance_id": [f"{at}" for at in range(len(names))]}
    rows = nlvr.valid_step(batch | ({"labels": torch.tensor(labels)} if labels else {}))
    found: dict[str, float] = nlvr.after_evaluation(rows, "dev", [Asked()], tmp_path, 0)
    return found


def test_a_sentence_is_consistent_where_all_its_pairs_are_right(tmp_path: Path) -> None:
    metrics = evaluated(tmp_path, [1, 0, 1, 0], [1, 1, 1, 0])
    # three of four pairs; of three sentences the one with two pairs is wrong once
    assert metrics == {"overall": 75.0, "agg_metrics": 75.0, "consistency": 66.67}


def test_the_csv_is_the_one_of_the_official_evaluation(tmp_path: Path) -> None:
    assert evaluated(tmp_path, [1, 0, 1, 0], None) == {}
    lines = (tmp_path / "dev_results.csv").read_bytes().decode().split("\n")
    assert lines == ["dev-1-0-0,True", "dev-1-1-0,False", "dev-1-0-1,True", "dev-2-0-0,False", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["dev_results.csv"]


def test_without_official_names_there_is_no_consistency(tmp_path: Path) -> None:
    assert "consistency" not in evaluated(tmp_path, [1, 0], [1, 0], ["dev-1-0-0", "17"])


class Pairs:
    """Four pairs as upstream's file has them: one sentence of a set about two of its pairs, and of another set."""

    name = "oscar_nlvr2"
    rows = (("dev-7-0", "a dog"), ("dev-7-1", "a dog"), ("dev-8-0", "a dog"), ("dev-8-0", "a cat"))

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> dict[str, Any]:
        name, sentence = self.rows[index]
        images = {side: f"nlvr2_{name}-img{at}" for at, side in enumerate(("left", "right"))}
        return {"instance_id": str(index), "q": sentence, "img_id": images}


def test_images_and_sentences_tell_what_belongs_together(tmp_path: Path) -> None:
    nlvr = task("oscar_nlvr2", lambda batch: torch.eye(2)[[1, 0, 1, 0]])
    nlvr.before_evaluation("dev", [Pairs()])
    names = {"question_id": [f"val_{at}" for at in range(4)], "instance_id": [*"0123"], "dataset": "oscar_nlvr2"}
    rows = nlvr.valid_step({**names, "labels": torch.tensor([1, 1, 1, 0])})
    assert nlvr.after_evaluation(rows, "val", [Pairs()], tmp_path, 0)["consistency"] == 66.67


@pytest.mark.parametrize(
    ("name", "group"),
    [("test1-28-3-1", "test1-28-1"), ("train-10171-0-0", "train-10171-0"), ("dev-1-0", ""), ("dev-1-0-0-img0", "")],
)
def test_what_names_a_sentence(name: str, group: str) -> None:
    assert sentence_of(name) == group


def test_an_identifier_that_breaks_the_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="comma"):
        evaluated(tmp_path, [1], None, ["dev,1"])
