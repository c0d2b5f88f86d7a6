"""oscar_pretrain: hidden words and matching are learnt together and counted by input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.config.schema import Config, run_config
from lavis_ext.common.errors import ConfigError
from lavis_ext.oscar.answering import OscarPretrain
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.oscar.model import Oscar
from lavis_ext.tasks import setup_task
from tests.support.oscar_captions import THINGS, WORDS, captioner


def batch(rng: torch.Generator, size: int = 9) -> dict[str, Any]:
    """A text that names a thing, tags of this or of another one (label 1), a colour hidden in the text."""
    texts, labels, hidden = [], [], []
    for index in range(size):
        other = bool(torch.rand((), generator=rng) < 0.5)
        text, tags = WORDS.encode(f"a {THINGS[index]}"), WORDS.encode(THINGS[(index + 4 * other) % 9])
        row = [WORDS.cls, *text, WORDS.sep, *tags, WORDS.sep]
        hidden.append(row[2])
        row[2] = WORDS.mask
        texts.append(row)
        labels.append(int(other))
    ids = torch.tensor(texts)
    lm_labels = torch.full_like(ids, -100)
    lm_labels[:, 2] = torch.tensor(hidden)
    regions = torch.zeros(size, 1, 6)
    regions[:, 0, :4] = torch.tensor([[float(i >> bit & 1) for bit in range(4)] for i in range(size)])
    kinds = torch.tensor([[0] * 5 + [1] * (ids.shape[1] - 5)] * size)
    mask = torch.ones(size, ids.shape[1] + 1, dtype=torch.long)
    named = {"instance_id": [str(index) for index in range(size)], "labels": torch.tensor(labels)}
    inputs = {"input_ids": ids, "token_type_ids": kinds, "attention_mask": mask, "img_feats": regions}
    return {**inputs, **named, "lm_labels": lm_labels}


def task(model: Oscar) -> OscarPretrain:
    found = setup_task(run_config(task="oscar_pretrain"), model)
    assert isinstance(found, OscarPretrain)
    return found


def test_both_are_learnt_and_counted(tmp_path: Path) -> None:
    model = captioner(head="pretrain")
    found, rng = task(model), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for _ in range(200):
        losses = found.step(batch(rng))
        assert losses["loss"].item() == pytest.approx((losses["loss_mlm"] + losses["loss_match"]).item(), rel=1e-5)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    model.eval()
    rows = found.valid_step(batch(rng))
    assert [row["hidden"] for row in rows] == [1] * 9
    metrics = found.after_evaluation(rows, "val", [], tmp_path, 3)
    assert metrics["words"] > 90 and metrics["matching"] > 75
    assert metrics["agg_metrics"] == (metrics["words"] + metrics["matching"]) / 2
    assert json.loads((tmp_path / "val_epoch3.json").read_text())["inputs"] == 9


def test_inputs_count_once_and_words_by_their_number(tmp_path: Path) -> None:
    rows = [
        {"instance_id": "a", "hidden": 3, "right": 3, "matched": 1.0},
        {"instance_id": "b", "hidden": 1, "right": 0, "matched": 0.0},
        {"instance_id": "a", "hidden": 3, "right": 0, "matched": 0.0},
    ]
    found = task(captioner(head="pretrain"))
    metrics = found.after_evaluation(rows, "val", [], tmp_path, 0)
    assert (metrics["words"], metrics["matching"]) == (75.0, 50.0)
    assert found.after_evaluation([], "val", [], tmp_path, 1) == {}


def test_right_words_are_told_from_wrong_ones() -> None:
    model = captioner(head="pretrain").eval()
    given = batch(torch.Generator().manual_seed(1))
    said = model.outputs(given).logits.argmax(-1)
    given["lm_labels"][:, 2] = said
    given["lm_labels"][0, 2] = (said[0] + 1) % len(WORDS)
    rows = task(model).valid_step(given)
    assert [row["right"] for row in rows] == [0] + [1] * 8


def test_a_third_class_needs_a_head_of_three() -> None:
    model, given = captioner(head="pretrain"), batch(torch.Generator())
    given["labels"][0] = 2
    with pytest.raises(
        ConfigError, match=r"model\.num_contrast_classes: the model has 2 classes, the data set 3 or more"
    ):
        model(given)
    assert captioner(head="pretrain", num_contrast_classes=3)(given)["loss"].isfinite()


def test_another_head_is_refused_at_once() -> None:
    def told(head: Any) -> list[str]:
        model = OscarConfig(arch="oscar", model_type="tiny", head=head)
        config = Config(run=run_config(task="oscar_pretrain"), model=model, datasets={}, cache_root="")
        return [problem.where for problem in config.run.problems(config)]

    assert told("pretrain") == [] and told("caption") == ["model.head"]
