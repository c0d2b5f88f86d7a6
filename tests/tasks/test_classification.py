"""multimodal_classification: classes of pictures and texts, by a model that says whether they match."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_ext.common.config.schema import run_config
from lavis_ext.common.errors import ConfigError
from lavis_ext.tasks import setup_task
from tests.support.blip2 import small_batch, small_model, small_stage1


@pytest.fixture(scope="module")
def model() -> Any:
    return small_stage1(arch="blip2_image_text_matching")


def task(model: Any, **keys: Any) -> Any:
    return setup_task(run_config(task="multimodal_classification", **keys), model)


def labelled(**extra: Any) -> Any:
    return small_batch(3, instance_id=["a", "b", "c"], **extra)


def test_the_class_with_the_highest_logit(model: Any) -> None:
    batch = labelled(label=torch.tensor([1, 0, 1]))
    rows = task(model).valid_step(batch)
    assert [row["prediction"] for row in rows] == model(batch).argmax(-1).tolist()
    assert [row["target"] for row in rows] == [1, 0, 1]
    assert [row["target"] for row in task(model).valid_step(labelled(label=[None, 1, None]))] == [None, 1, None]
    assert {row["target"] for row in task(model).valid_step(labelled())} == {None}


def rows_of(*pairs: tuple[int, int | None]) -> list[dict[str, Any]]:
    return [{"instance_id": str(i), "prediction": p, "target": t} for i, (p, t) in enumerate(pairs)]


def test_accuracy_as_lavis_has_it(model: Any, tmp_path: Path) -> None:
    rows = rows_of((1, 1), (0, 1), (0, 0), (1, 1))
    data = [SimpleNamespace(classes=["False", "True"])]
    found = task(model).after_evaluation([*rows, rows[1]], "val", data, tmp_path, 2)
    assert found == {"acc": 0.75, "False_acc": 1.0, "True_acc": 0.6667, "agg_metrics": 0.75}
    assert json.loads((tmp_path / "val_epoch2.json").read_text()) == rows


def test_what_has_no_class_is_written_and_not_scored(model: Any, tmp_path: Path) -> None:
    assert task(model).after_evaluation(rows_of((1, None)), "test", [], tmp_path, 0) == {}
    assert (tmp_path / "test_epoch0.json").is_file()
    assert task(model).after_evaluation(rows_of((1, None), (0, 0)), "test", [], tmp_path, 0)["acc"] == 1.0


@pytest.mark.parametrize(
    ("batch", "named"), [({"image0": 1}, "model.arch"), (labelled(label=torch.tensor([0, 2, 1])), "two classes")]
)
def test_a_model_that_cannot_serve_says_so(batch: Any, named: str, model: Any) -> None:
    with pytest.raises(ConfigError, match=named):
        model.predict(batch)


def test_a_model_without_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="predict"):
        task(small_model())
