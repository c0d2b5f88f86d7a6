"""A student of few and noisy labels that hears a teacher as well does better than one that does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavis_ext.common.config.schema import run_config
from lavis_ext.oscar.model import Oscar
from lavis_ext.runners.schedule import build_optimizer
from lavis_ext.tasks import setup_task
from tests.support.distilling import LABELS, WIDTH, WORDS, distilled, section

pytestmark = pytest.mark.slow
RATE = 2e-3


def world(count: int, seed: int, noise: float = 0.0) -> dict[str, Any]:
    """Questions whose answer is the largest of four sums over words and regions; a share of the labels is drawn."""
    rules = torch.Generator().manual_seed(1)
    of_region, of_word = torch.randn(WIDTH, LABELS, generator=rules), torch.randn(WORDS, LABELS, generator=rules)
    own = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, WORDS, (count, 4), generator=own)
    regions = torch.randn(count, 3, WIDTH, generator=own)
    right = (regions.mean(1) @ of_region + of_word[ids].mean(1)).argmax(-1)
    drawn = torch.randint(0, LABELS, (count,), generator=own)
    labels = torch.where(torch.rand(count, generator=own) < noise, drawn, right)
    mask = torch.ones(count, 7, dtype=torch.int64)
    return {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "attention_mask": mask,
        "img_feats": regions,
        "labels": labels,
    }


def model(layers: int, seed: int) -> Oscar:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Oscar.from_config(section(layers, hidden=32))


def train(task: Any, data: dict[str, Any], steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer = build_optimizer(task.network.train(), task.run)
    for _ in range(steps):
        rows = torch.randint(0, len(data["labels"]), (16,))
        loss = task.step({key: value[rows] for key, value in data.items()})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def accuracy(found: Oscar, data: dict[str, Any]) -> float:
    return float((found.eval().outputs(data).logits.argmax(-1) == data["labels"]).float().mean())


def test_a_taught_student_beats_one_that_is_not() -> None:
    torch.set_num_threads(1)
    few, exam = world(96, 8, noise=0.5), world(600, 99)
    teacher = model(4, 100)
    train(setup_task(run_config(task="oscar_gqa", init_lr=RATE), teacher), world(2000, 7), 200, 1)
    told: dict[str, list[float]] = {"alone": [], "vanilla_kd": [], "mkd": []}
    for seed in (1, 2):
        student = model(2, seed)
        train(setup_task(run_config(task="oscar_gqa", init_lr=RATE), student), few, 80, seed)
        told["alone"].append(accuracy(student, exam))
        for term in ("vanilla_kd", "mkd"):
            student = model(2, seed)
            task = distilled(student, teacher, terms=[term], alpha=0.7, temperature=2.0, init_lr=RATE)
            train(task, few, 80, seed)
            told[term].append(accuracy(student, exam))
    best = accuracy(teacher, exam)
    assert best > 0.6
    for alone, vanilla, mkd in zip(*told.values(), strict=True):
        assert alone + 0.05 < min(vanilla, mkd)
        assert mkd < best
    assert sum(told["mkd"]) >= sum(told["vanilla_kd"]), told
