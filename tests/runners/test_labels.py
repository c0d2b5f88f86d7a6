"""How many classes a model gets, and that no weights of another order of answers are taken."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lavis_ext.common.config.schema import Config, run_config
from lavis_ext.common.errors import ConfigError, UnsafeError
from lavis_ext.distill.settings import DistillConfig
from lavis_ext.features.vocabulary import LabelVocabulary
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.runners import checkpoint
from lavis_ext.runners import data as labels

WORDS = LabelVocabulary([5, 0, 9], ["net", "down", "blue"])
SWAPPED = LabelVocabulary([5, 9, 0], ["net", "blue", "down"])


def opened(*found: Any) -> Any:
    return {f"set{at}": {"train": SimpleNamespace(labels=one)} for at, one in enumerate(found)}


def config(run: dict[str, Any] | None = None, **model: Any) -> Config:
    settings = OscarConfig(arch="oscar", model_type="tiny", **model)
    keys = {"task": "distill" if run else "oscar_vqa", **(run or {})}
    return Config(run=run_config(**keys), model=settings, datasets={}, cache_root="")


def test_data_sets_without_answers_have_no_vocabulary() -> None:
    assert labels.vocabulary(opened(None)) is None
    assert labels.vocabulary({"set": {"train": SimpleNamespace()}}) is None
    assert labels.vocabulary(opened(None, WORDS, replace(WORDS))) == WORDS


def test_the_first_class_that_differs_is_named() -> None:
    with pytest.raises(ConfigError, match=r"class 1 is 'blue', in datasets.set0 train it is 'down'") as caught:
        labels.vocabulary(opened(WORDS, SWAPPED))
    assert "datasets.set1 train" in str(caught.value)
    with pytest.raises(ConfigError, match=r"has 2 classes, datasets\.set0 train has 3"):
        labels.vocabulary(opened(WORDS, LabelVocabulary([5, 0], ["net", "down"])))


def test_the_number_of_classes_comes_from_the_data() -> None:
    found = labels.with_num_labels(config(), WORDS)
    assert found.model is not None
    assert found.model.num_labels == 3
    assert labels.with_num_labels(config(num_labels=2), None).model == config(num_labels=2).model
    with pytest.raises(ConfigError, match=r"model.num_labels: is 3129, the answers of the data sets are 3"):
        labels.with_num_labels(config(num_labels=3129), WORDS)


def test_a_teacher_gets_as_many() -> None:
    teacher = OscarConfig(arch="oscar", model_type="tiny")
    found = labels.with_num_labels(config({"distill": DistillConfig(task="oscar_vqa", teacher=teacher)}), WORDS)
    assert found.run.distill is not None
    assert found.run.distill.teacher == replace(teacher, num_labels=3)
    told = labels.with_num_labels(config({"distill": DistillConfig(task="oscar_vqa", teacher="somewhere")}), WORDS)
    assert told.run.distill is not None
    assert told.run.distill.teacher == "somewhere"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of ours with answers in another order."""
    saved = checkpoint.save(tmp_path / "job", 4, {}, {}, beside=labels.beside(SWAPPED))
    assert json.loads((saved / "labels.json").read_text())[1] == {"id": 9, "answer": "blue"}
    assert "labels.json" in json.loads((saved / "manifest.json").read_text())["files"]
    return saved


def test_a_checkpoint_of_ours_carries_its_answers(folder: Path) -> None:
    checkpoint.load(folder)
    with pytest.raises(ConfigError, match="class 1 is 'blue', in the data set it is 'down'") as caught:
        labels.with_num_labels(config(load_finetuned=True, finetuned=str(folder)), WORDS)
    assert "model.finetuned" in str(caught.value)
    assert labels.with_num_labels(config(load_finetuned=True, finetuned=str(folder)), SWAPPED)
    assert labels.with_num_labels(config(load_finetuned=False, finetuned=str(folder)), WORDS)
    assert labels.with_num_labels(config(load_finetuned=True, finetuned=str(folder / "model.safetensors")), SWAPPED)
    with pytest.raises(ConfigError, match="class 1"):
        labels.with_num_labels(config(load_finetuned=True, finetuned=str(folder / "model.safetensors")), WORDS)


def test_a_teacher_s_folder_is_looked_at(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.distill.teacher .*class 1"):
        labels.with_num_labels(config({"distill": DistillConfig(task="oscar_vqa", teacher=str(folder))}), WORDS)
    teacher = OscarConfig(arch="oscar", model_type="tiny", load_finetuned=True, finetuned=str(folder))
    with pytest.raises(ConfigError, match=r"run.distill.teacher.finetuned .*class 1"):
        labels.with_num_labels(config({"distill": DistillConfig(task="oscar_vqa", teacher=teacher)}), WORDS)


def test_a_run_is_resumed_with_the_answers_it_had(folder: Path) -> None:
    labels.require_beside({}, folder)
    labels.require_beside(labels.beside(SWAPPED), folder)
    with pytest.raises(ConfigError, match="class 1"):
        labels.require_beside(labels.beside(WORDS), folder)


def test_a_folder_of_upstream_s_is_judged_by_its_label_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path))
    place = tmp_path / "oscar" / "vqa_base_best"
    place.mkdir(parents=True)
    assert labels.with_num_labels(config(pretrained="oscar/vqa_base_best"), WORDS)
    (place / "trainval_ans2label.pkl").write_bytes(pickle.dumps({"net": 5, "down": 0, "blue": 9}))
    assert labels.with_num_labels(config(pretrained="oscar/vqa_base_best"), WORDS)
    with pytest.raises(ConfigError, match="class 1 is 'down', in the data set it is 'blue'"):
        labels.with_num_labels(config(pretrained="oscar/vqa_base_best"), SWAPPED)
    (place / "trainval_ans2label.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UnsafeError):
        labels.with_num_labels(config(pretrained="oscar/vqa_base_best"), WORDS)


def test_names_that_are_no_folders_are_left_to_the_model() -> None:
    assert labels.with_num_labels(config(pretrained="some/hub-name"), WORDS)
