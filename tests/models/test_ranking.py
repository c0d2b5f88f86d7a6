"""Ranking of answers: equal to the likelihood of each answer by another road, for every family, in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavis_ext.common.errors import ConfigError
from lavis_ext.models import generation as ranking
from tests.support.blip2 import small_batch, small_of

FAMILIES = ["blip2_opt", "blip2_llama", "blip2_vicuna", "blip2_t5"]
ANSWERS = ["red", "two green circles", "yes", "no", "a blue star", "green"]
QUESTIONS = ["what?", "how many things are there?"]


def asked(count: int = 2) -> dict[str, Any]:
    return {**small_batch(count), "text_input": QUESTIONS[:count]}


def likelihood(model: Any, image: torch.Tensor, prompt: str, ids: list[int]) -> float:
    """The whole sequence through transformers' own forward, for one answer at a time."""
    tokens = model.asking_tokens([prompt])
    target = torch.tensor([ids])
    if model.language == "t5":
        logits = model.net(image, tokens.input_ids, tokens.attention_mask, labels=target, use_cache=False).logits
    else:
        whole = torch.cat([tokens.input_ids, target], dim=1)
        logits = model.net(image, whole, torch.ones_like(whole), use_cache=False).logits[:, -len(ids) - 1 : -1]
    found = logits.double().log_softmax(-1).gather(2, target.unsqueeze(2))
    return float(found.sum())


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_likeliest_answer_by_another_road(arch: str) -> None:
    model, samples = small_of(arch), asked()
    with torch.no_grad():
        reading = model._read(samples, model.asking_tokens(QUESTIONS))
        ids = model.answer_ids(ANSWERS)
        best = []
        for row, question in enumerate(QUESTIONS):
            wanted = [likelihood(model, samples["image"][row : row + 1], question, one) for one in ids]
            assert ranking.score(reading, row, ids).tolist() == pytest.approx(wanted, abs=1e-3)
            best.append(ANSWERS[max(range(len(ids)), key=wanted.__getitem__)])
    assert model.predict_answers(samples, inference_method="rank", answer_list=ANSWERS) == best


@pytest.mark.parametrize("arch", ["blip2_opt", "blip2_t5"])
def test_in_a_batch_as_alone_and_in_parts(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = small_of(arch), asked()
    together = model.predict_answers(samples, inference_method="rank", answer_list=ANSWERS)
    monkeypatch.setattr(ranking, "AT_ONCE", 2)
    alone = [
        model.predict_answers(
            {"image": samples["image"][i : i + 1], "text_input": [QUESTIONS[i]]},
            inference_method="rank",
            answer_list=ANSWERS,
        )[0]
        for i in range(2)
    ]
    assert together == alone


def test_candidates_are_those_with_the_likeliest_first_token() -> None:
    class Fixed:
        """The second answer opens best, the third is the likeliest as a whole."""

        mask = torch.ones(1, 1)

        def first(self) -> torch.Tensor:
            return torch.tensor([[0.0, 1.0, 3.0, 2.0]])

        def logits(self, row: int, answers: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*answers.shape, 4)
            logits[answers[:, 0] == 3] = torch.tensor([9.0, 0.0, 0.0, 9.0])
            return logits

    answers = [[1, 0], [2, 0], [3, 0]]
    assert ranking.rank(Fixed(), answers, 1) == [1]
    assert ranking.rank(Fixed(), answers, 2) == [2]
    assert ranking.rank(Fixed(), answers, 99) == [2]


def test_pads_do_not_count() -> None:
    model = small_of("blip2_opt")
    with torch.no_grad():
        reading = model._read(small_batch(1), model.asking_tokens(["what?"]))
        short, long = model.answer_ids(["no", "two green triangles above a star"])
        alone = ranking.score(reading, 0, [short])
        assert ranking.score(reading, 0, [short, long])[0].item() == pytest.approx(alone.item(), abs=1e-4)


@pytest.mark.parametrize("keys", [{}, {"answer_list": []}, {"answer_list": ANSWERS, "num_ans_candidates": 0}])
def test_nothing_to_choose_from(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"run\.inference_method"):
        small_of("blip2_opt").predict_answers(asked(), inference_method="rank", **keys)
