"""instruct: the loss of held-out conversations, what the model answers to the first, and how the report shows it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis_ext.browse import write_run_report
from lavis_ext.browse.samples import sample_grid
from lavis_ext.browse.views import view_of
from lavis_ext.common.config.schema import run_config
from lavis_ext.common.errors import ConfigError
from lavis_ext.models.base_model import Outputs
from lavis_ext.processors import load_processor
from lavis_ext.runners.evaluation import write_gallery
from lavis_ext.runners.microbatch import batch_size
from lavis_ext.tasks import setup_task
from tests.datasets.builders.test_conversation import FILES, VIS, opened
from tests.support.blip2 import small_model


class Parrot(nn.Module):
    """Says how many turns and pictures it was asked about; each turn is a token that costs as its sample has turns."""

    converses = True

    def __init__(self, longest: int = 100) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self.longest = longest

    def fits(self, samples: dict[str, Any]) -> list[bool]:
        return [len(turns) <= self.longest for turns in samples["conversations"]]

    def outputs(self, batch: dict[str, Any]) -> Outputs:
        said = [sum(turn["role"] == "assistant" for turn in turns) for turns in batch["conversations"]]
        # of two words the second is right, whose cost is log(1 + e^n)
        logits = torch.tensor([[float(n), 0.0] for n in said for _ in range(n)])
        return Outputs(logits, extra={"labels": torch.ones(len(logits), dtype=torch.int64)})

    def generate(self, samples: dict[str, Any], **lengths: Any) -> list[str]:
        self.asked.append((samples, lengths))
        return [
            f"{len(t)} turns, {n} pictures"
            for t, n in zip(samples["conversations"], samples["image_counts"], strict=True)
        ]


@pytest.fixture
def held_out(tmp_path: Path) -> Any:
    data = opened(tmp_path, [row for row, _, _ in FILES.values()], split="val")
    data.set_processors(load_processor("blip_image_eval", VIS), None)
    return data


def rows_of(task: Any, data: Any, size: int) -> list[dict[str, Any]]:
    task.before_evaluation("val", [data])
    samples = [data.load(index, torch.Generator()) for index in range(len(data))]
    batches = [data.collater(samples[start : start + size]) for start in range(0, len(samples), size)]
    return [row for batch in batches for row in task.valid_step(batch)]


def test_the_loss_is_of_all_tokens_however_they_are_batched(held_out: Any, tmp_path: Path) -> None:
    said = [sum(role == "assistant" for role, _ in turns) for _, turns, _ in FILES.values()]
    expected = sum(n * math.log1p(math.exp(n)) for n in said) / sum(said)
    task = setup_task(run_config(task="instruct"), Parrot())
    for size in (1, 3, 10):
        metrics = task.after_evaluation(rows_of(task, held_out, size), "val", [held_out], tmp_path, 0)
        assert metrics == {"loss": pytest.approx(expected), "agg_metrics": pytest.approx(-expected)}


def test_the_first_are_answered_with_their_own_pictures(held_out: Any, tmp_path: Path) -> None:
    model = Parrot()
    task = setup_task(run_config(task="instruct", max_generated=5, num_beams=2, max_len=7), model)
    rows = rows_of(task, held_out, 3)
    task.after_evaluation(rows, "val", [held_out], tmp_path, 0)
    written = json.loads((tmp_path / "val_epoch0.json").read_text())
    assert [one["sample_id"] for one in written] == [f"mine/val#{i}" for i in range(5)]
    kinds = list(FILES.values())[:5]
    for one, (_, turns, names) in zip(written, kinds, strict=True):
        pictures = sum(text.count("<image>") for _, text in turns[:-1])
        assert pictures == len(names)
        assert one["answer"] == f"{len(turns) - 1} turns, {pictures} pictures"
        assert (one["reference"], len(one["conversations"])) == (turns[-1][1], len(turns) - 1)
    pictures = [sample["image"] for sample, _ in model.asked if "image" in sample]
    own = [image for index in range(5) for image in held_out.load(index, torch.Generator())["image"]]
    assert torch.equal(torch.cat(pictures), torch.stack(own))
    assert model.asked[0][1] == {"num_beams": 2, "max_length": 7, "min_length": 1}


def test_what_leaves_no_room_is_named_and_not_answered(
    held_out: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = setup_task(run_config(task="instruct", max_generated=5), Parrot(longest=1))
    rows = rows_of(task, held_out, 3)
    task.after_evaluation(rows, "val", [held_out], tmp_path, 0)
    written = {one["sample_id"] for one in json.loads((tmp_path / "val_epoch0.json").read_text())}
    left = {f"mine/val#{i}" for i in range(5)} - written
    assert written and left and all(name in caplog.text for name in left)


def test_a_batch_has_as_many_samples_as_conversations(held_out: Any) -> None:
    batch = held_out.collater([held_out.load(index, torch.Generator()) for index in range(5)])
    assert batch_size(batch) == 5 != len(batch["image"])


def test_none_are_answered_where_none_are_asked_for(held_out: Any, tmp_path: Path) -> None:
    model = Parrot()
    task = setup_task(run_config(task="instruct", max_generated=0), model)
    assert set(task.after_evaluation(rows_of(task, held_out, 4), "val", [held_out], tmp_path, 0)) == {
        "loss",
        "agg_metrics",
    }
    assert model.asked == [] and json.loads((tmp_path / "val_epoch0.json").read_text()) == []


def test_a_model_that_reads_no_conversations_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        setup_task(run_config(task="instruct"), small_model())
    assert "run.task" in str(error.value)


def test_the_report_shows_turns_pictures_answer_and_reference(held_out: Any, tmp_path: Path) -> None:
    task = setup_task(run_config(task="instruct", max_generated=4), Parrot())
    rows = rows_of(task, held_out, 3)
    folder = tmp_path / "run"
    write_gallery(rows, [held_out], folder / "result" / "gallery" / "val", "val")
    shots = json.loads((folder / "result/gallery/val/index.json").read_text())["shots"]
    assert [len(shot["images"]) for shot in shots] == [1, 1, 2, 2]
    (folder / "run.json").write_text('{"status": "finished", "job": "talk"}')
    page = write_run_report(folder).read_text()
    assert page.count('<ol class="chat">') == 4 and page.count("data:image/jpeg") == 6
    for shot in shots:
        assert shot["said"] in page and shot["truths"][0] in page


def test_the_page_of_a_data_set_shows_turns(tmp_path: Path) -> None:
    data = opened(tmp_path, [*(row for row, _, _ in FILES.values()), {"conversations": []}])
    view = view_of(data)
    assert view is not None
    shots = sample_grid(view, view.items(20, None)).shots
    assert [shot.turns for shot in shots[:-1]] == [tuple(turns) for _, turns, _ in FILES.values()]
    assert [len(shot.sources) for shot in shots[:-1]] == [len(names) for _, _, names in FILES.values()]
    assert shots[-1].lost and not shots[-1].turns
    assert list(view.matches(["tea"])).index(True) == 1
