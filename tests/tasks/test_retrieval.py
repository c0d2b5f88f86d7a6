"""retrieval: cosines, the second ranking, files, and pictures that are missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis_ext.common.config.schema import run_config
from lavis_ext.common.errors import ConfigError
from lavis_ext.tasks import setup_task
from lavis_ext.tasks.retrieval import captions_of, merged
from tests.support.blip2 import small_batch, small_stage1


class Pictures:
    """Three pictures with two captions each."""

    text = ("a", "b red", "c two", "d", "e green", "f")
    image = ("1.jpg", "2.jpg", "3.jpg")
    img2txt = {0: [0, 1], 1: [2, 3], 2: [4, 5]}  # noqa: RUF012

    def __len__(self) -> int:
        return 3


def task(**keys: Any) -> Any:
    return setup_task(run_config(task="retrieval", batch_size_eval=2, **keys), small_stage1())


def rows(found: Any, count: int = 3) -> list[dict[str, Any]]:
    batch = {"image": small_batch()["image"][:count], "index": torch.arange(count)}
    with torch.no_grad():
        return found.valid_step(batch)  # type: ignore[no-any-return]


def test_scores_are_cosine_plus_matching_logit_of_the_best(tmp_path: Path) -> None:
    retrieval = task(k_test=2)
    seen = rows(retrieval)
    with torch.no_grad():
        to_text, to_image = merged([retrieval._part(seen, Pictures.text, 0, 1)], 3, 6)
    model, batch = retrieval.network, small_batch()
    with torch.no_grad():
        cosines = small_stage1(arch="blip2_image_text_matching")(
            {"image": batch["image"], "text_input": list(Pictures.text)}, match_head="itc"
        ).numpy()
        for image in range(3):
            best = np.argsort(-cosines[image])[:2]
            assert sorted(np.flatnonzero(to_text[image] > -100).tolist()) == sorted(best.tolist())
            for text in best:
                logit = model.match(seen[image]["embeds"][None], model.encode([Pictures.text[text]]))[0, 1].item()
                assert to_text[image, text] == pytest.approx(cosines[image, text] + logit, abs=1e-5)
    assert (to_image > -100).sum(1).tolist() == [2] * 6


def test_files_and_recalls(tmp_path: Path) -> None:
    retrieval = task(k_test=0)
    retrieval.network.train()
    metrics = retrieval.after_evaluation(rows(retrieval), "test", [Pictures()], tmp_path, "best")
    assert retrieval.network.training
    written = json.loads((tmp_path / "test_epochbest_retrieval.json").read_text())
    assert (written["k_test"], written["images"], written["texts"]) == (0, 3, 6)
    assert written["metrics"] == metrics
    assert sorted(written["texts_of_image"][0]) == list(range(6))
    assert metrics["txt_r10"] == metrics["img_r5"] == 100.0


def test_pictures_that_were_not_read_leave_with_their_captions(caplog: pytest.LogCaptureFixture) -> None:
    texts, captions = captions_of(Pictures(), [0, 2])
    assert texts == ["a", "b red", "e green", "f"]
    assert captions == [[0, 1], [2, 3]]
    assert "2 of 3 pictures" in caplog.text


def test_one_data_set_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 data sets have 'val'"):
        task().after_evaluation([], "val", [Pictures(), Pictures()], tmp_path, 0)


@pytest.mark.parametrize("k_test", [0, 2])
def test_ranks_share_the_comparing(k_test: int, tmp_path: Path) -> None:
    one, many = task(k_test=k_test), task(k_test=k_test)
    seen = rows(one)
    alone = one.after_evaluation(seen, "test", [Pictures()], tmp_path, 1)
    many.receive([many.share(seen, "test", [Pictures()], rank, 4) for rank in range(4)])
    many._part = None  # nothing is left to compare
    (tmp_path / "b").mkdir()
    assert many.after_evaluation(seen, "test", [Pictures()], tmp_path / "b", 1) == alone
    files = [json.loads((folder / "test_epoch1_retrieval.json").read_text()) for folder in (tmp_path, tmp_path / "b")]
    assert files[0] == files[1]
