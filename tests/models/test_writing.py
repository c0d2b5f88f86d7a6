"""The first stage's captions: the search goes by the word head's own probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.config.schema import run_config
from lavis_ext.common.errors import ConfigError
from lavis_ext.models.stage1 import Texts
from lavis_ext.tasks import setup_task
from tests.support.blip2 import small_batch, small_stage1


@pytest.fixture(scope="module")
def model() -> Any:
    return small_stage1().eval()


@torch.no_grad()
def continued(model: Any, embeds: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """log p [V] of what follows `ids` about one picture, by the path that training takes."""
    given = torch.tensor([[model.tokenizer.bos_token_id, *ids]])
    logits = model.caption_logits(embeds, Texts(given, torch.ones_like(given)))[1]
    return logits[0, -1].log_softmax(-1)


def closing(model: Any) -> int:
    sep = model.tokenizer.sep_token_id
    return int(model.tokenizer.eos_token_id if sep is None else sep)


def test_greedy_takes_the_likeliest_token_each_time(model: Any) -> None:
    batch = small_batch(2)
    found = model.generate(batch, num_beams=1, max_length=6, min_length=1)
    for text, embeds in zip(found, model.encode_image(batch).split(1), strict=True):
        ids: list[int] = []
        while len(ids) < 5 and (not ids or ids[-1] != closing(model)):
            ids.append(int(continued(model, embeds, ids).argmax()))
        assert text == model.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_beams_find_what_is_at_least_as_likely(model: Any) -> None:
    def worth(text_ids: list[int], embeds: torch.Tensor) -> float:
        return sum(float(continued(model, embeds, text_ids[:n])[token]) for n, token in enumerate(text_ids))

    batch = small_batch(1)
    embeds = model.encode_image(batch)
    searched = [[int(i) for i in ids] for ids in (tokens(model, batch, beams) for beams in (1, 4))]
    assert worth(searched[1], embeds) >= worth(searched[0], embeds) - 1e-4


def tokens(model: Any, batch: Any, beams: int) -> list[int]:
    """The tokens of one caption of just four, taken before they become text."""
    kept: list[list[int]] = []
    decode = model.tokenizer.batch_decode
    model.tokenizer.batch_decode = lambda ids, **_: [kept.append(ids[0].tolist()) or ""]  # type: ignore[func-returns-value]
    try:
        model.generate(batch, num_beams=beams, max_length=5, min_length=5, length_penalty=0.0)
    finally:
        model.tokenizer.batch_decode = decode
    return kept[0][1:]


def test_lengths_count_the_opening_token(model: Any) -> None:
    assert len(tokens(model, small_batch(1), 1)) == 4


def test_several_captions_in_order_and_sampling_by_the_seed(model: Any) -> None:
    batch = small_batch(2)
    assert len(model.generate(batch, num_beams=3, num_captions=2, max_length=5, min_length=1)) == 4
    drawn = []
    for _ in range(2):
        torch.manual_seed(4)
        drawn.append(model.generate(batch, use_nucleus_sampling=True, max_length=8, min_length=1))
    assert drawn[0] == drawn[1]


def test_no_parameter_gets_a_second_owner(model: Any) -> None:
    before = set(model.state_dict())
    model.generate(small_batch(1), max_length=3, min_length=1)
    assert set(model.state_dict()) == before


def test_a_prompt_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="without a prompt"):
        model.generate({**small_batch(1), "prompt": "a photo of"})


def test_the_captioning_task_asks_it(model: Any, tmp_path: Path) -> None:
    task = setup_task(run_config(task="captioning", max_len=5, num_beams=2), model)
    assert [row["image_id"] for row in task.valid_step(small_batch(2))] == [0, 1]
