"""oscar_retrieval: what is asked of the model, ranks both ways and of lists, files, the memory of 5,000 × 25,000."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lavis_ext.common.errors import ConfigError
from lavis_ext.oscar.retrieval import match_score, pair_batch
from tests.support.oscar_tasks import Pictures, of_table, task

TABLE = [[5.0, 1.0, 4.0, 0.0], [6.0, 0.0, 3.0, 2.0]]
"""Two images, two captions each: image 0 owns columns 0 and 1."""


def judged(table: Any, data: Pictures, tmp_path: Path, label: str = "best", **keys: Any) -> Any:
    retrieval = task("oscar_retrieval", of_table(table), **{"batch_size_eval": 3, **keys})
    retrieval.before_evaluation("test", [data])
    rows = [row for index in range(len(data)) for row in retrieval.valid_step(data.batch(index))]
    return retrieval.after_evaluation(rows, "test", [data], tmp_path, label)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_pair_is_asked_about_once_and_padding_is_masked() -> None:
    data = Pictures(3, 2)
    retrieval = task("oscar_retrieval", of_table(np.arange(18).reshape(3, 6)), batch_size_eval=4)
    retrieval.before_evaluation("test", [data])
    first, second = retrieval.valid_step(data.batch(2, 0))
    assert first["scores"].tolist() == [12.0, 13, 14, 15, 16, 17]
    assert second["scores"].tolist() == [0.0, 1, 2, 3, 4, 5]
    assert (first["image_id"], first["scores"].dtype) == ("i2", np.float32)
    passes = retrieval.network.seen
    assert [len(batch["input_ids"]) for batch in passes] == [4, 2, 4, 2]
    for batch in passes:
        regions = batch["img_feats"].shape[1]
        assert regions == (3 if batch["img_feats"][0, 0, 0] == 2 else 1)
        assert bool((batch["attention_mask"][:, -regions:] == 1).all())
        text = batch["attention_mask"][:, :-regions]
        assert text.sum(1).tolist() == (batch["input_ids"] != 0).sum(1).tolist()
        assert text.shape == batch["token_type_ids"].shape


def test_recall_both_ways_by_hand(tmp_path: Path) -> None:
    found = judged(TABLE, Pictures(2, 2), tmp_path)
    # image 0 finds its caption 0 first; image 1 has caption 0 of the other image before its best, 2
    assert (found["txt_r1"], found["txt_r5"], found["agg_metrics"]) == (50.0, 100.0, 50.0)
    # of the captions 0 and 2 the other image scores higher
    assert (found["img_r1"], found["img_r5"]) == (50.0, 100.0)
    told = read(tmp_path / "test.all.epochbest.eval.json")
    assert told["i2t_retrieval"] == {"R@1": 0.5, "R@5": 1.0, "R@10": 1.0}
    assert told["t2i_retrieval"] == {"R@1": 0.5, "R@5": 1.0, "R@10": 1.0}
    ranking = read(tmp_path / "test.all.epochbest.ranking.json")
    assert ranking["captions_of_image"] == [[0, 2, 1, 3], [0, 2, 3, 1]]
    assert ranking["images_of_caption"] == [[1, 0], [0, 1], [0, 1], [1, 0]]
    assert (ranking["image"], ranking["caption"][3]) == (["i0", "i1"], ["i1", 1])


def test_scoring_all_alike_finds_nothing(tmp_path: Path) -> None:
    found = judged(np.zeros((12, 12)), Pictures(12, 1), tmp_path)
    assert found["txt_r10"] == found["img_r10"] == 0.0


def test_scores_that_are_no_numbers_find_nothing(tmp_path: Path) -> None:
    assert judged(np.full((12, 12), np.nan), Pictures(12, 1), tmp_path)["r_mean"] == 0.0


def test_near_certain_pairs_keep_their_order() -> None:
    """Probabilities in float32 are 1.0 for all logits above some 17, and then rank by chance."""
    logits = torch.tensor([[0.0, 20.0], [0.0, 21.0], [-8.0, 15.0]])
    assert torch.softmax(logits, 1)[:, 1].unique().numel() == 1
    assert match_score(logits).argsort().tolist() == [0, 1, 2]
    assert match_score(torch.tensor([[2.0], [1.0]])).tolist() == [2.0, 1.0]


def test_a_list_is_ranked_again(tmp_path: Path) -> None:
    lists = {0: [3, 0, 1], 1: [0, 1]}
    found = judged(TABLE, Pictures(2, 2, lists, caption_index_file="a/minival_top20.pt"), tmp_path)
    # image 1 has none of its captions in its list, which is a miss however short the list is
    assert (found["txt_r1"], found["txt_r10"], found["agg_metrics"]) == (50.0, 50.0, 50.0)
    assert "img_r1" not in found
    told = read(tmp_path / "test.minival_top20.epochbest.eval.json")
    assert told == {"i2t_retrieval": {"R@1": 0.5, "R@5": 0.5, "R@10": 0.5}}
    ranking = read(tmp_path / "test.minival_top20.epochbest.ranking.json")
    assert ranking["captions_of_image"] == [[["i0", 0], ["i0", 1], ["i1", 1]], [["i0", 0], ["i0", 1]]]


def test_1k_and_5k_share_no_file(tmp_path: Path) -> None:
    """Upstream's name tells neither, so that the second evaluation read the scores of the first."""
    judged(TABLE, Pictures(2, 2, img_keys_file="coco_ir/test_img_keys_1k.tsv"), tmp_path)
    judged(TABLE, Pictures(2, 2, img_keys_file="coco_ir/test_img_keys.tsv"), tmp_path)
    judged(TABLE, Pictures(2, 2, {0: [0], 1: [3]}, "coco_ir/test_img_keys.tsv", "top.pt"), tmp_path)
    assert {path.name for path in tmp_path.glob("*.eval.json")} == {
        "test.test_img_keys_1k.epochbest.eval.json",
        "test.test_img_keys.epochbest.eval.json",
        "test.test_img_keys.top.epochbest.eval.json",
    }


def test_images_that_were_not_read_leave_with_their_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Pictures(3, 2)
    retrieval = task("oscar_retrieval", of_table(np.tile(np.arange(6.0), (3, 1))), batch_size_eval=8)
    retrieval.before_evaluation("test", [data])
    rows = retrieval.valid_step(data.batch(0, 1))
    found = retrieval.after_evaluation([*rows, *retrieval.valid_step(data.batch(1))], "test", [data], tmp_path, 0)
    assert found["txt_r1"] == 50.0
    assert len(read(tmp_path / "test.all.epoch0.ranking.json")["caption"]) == 4
    assert "2 of 3 images" in caplog.text


def test_one_data_set_at_a_time() -> None:
    with pytest.raises(ConfigError, match="2 data sets have 'val'"):
        task("oscar_retrieval", of_table(TABLE)).before_evaluation("val", [Pictures(2, 2), Pictures(2, 2)])


def test_a_batch_of_pairs_has_the_shapes_of_the_others() -> None:
    pairs = [{"input_ids": [2, 9, 3], "token_type_ids": [0, 0, 0]}, {"input_ids": [2, 3], "token_type_ids": [0, 0]}]
    batch = pair_batch(pairs, torch.ones(4, 7))
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    assert shapes == {
        "input_ids": (2, 3), "token_type_ids": (2, 3), "attention_mask": (2, 7), "img_feats": (2, 4, 7),
    }  # fmt: skip
    assert batch["attention_mask"].tolist() == [[1] * 7, [1, 1, 0, 1, 1, 1, 1]]


WHOLE = """
import re, sys
from pathlib import Path
import numpy as np
from tests.support.oscar_tasks import Pictures, of_table, task

data = Pictures(5000, 5, img_keys_file="test_img_keys.tsv")
found = task("oscar_retrieval", of_table([[0.0]]))
draw = np.random.default_rng(0)
rows = []
for index in range(5000):
    scores = draw.random(25000, dtype=np.float32)
    scores[5 * index] += 1.0  # one of five own captions is always the best of the row and of its column
    rows.append({"index": index, "image_id": index, "scores": scores})
metrics = found.after_evaluation(rows, "test", [data], Path(sys.argv[1]), "best")
# The high-water mark of this program alone: ru_maxrss begins with that of the process that started it.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(metrics["txt_r1"], metrics["img_r1"], peak // 1024)
"""


@pytest.mark.slow
def test_5000_images_and_25000_captions_fit_into_two_gigabytes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WHOLE, str(tmp_path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.split()
    assert float(told[0]) == 100.0
    assert 20.0 <= float(told[1]) < 20.5  # the caption that stands out, and one in five thousand of the others
    assert int(told[2]) < 2000
    (ranking,) = tmp_path.glob("*.ranking.json")
    assert len(read(ranking)["images_of_caption"]) == 25000


def test_scores_on_the_device_of_the_model() -> None:
    """Upstream's scoring calls `.cuda()`; here a result is wherever the logits are."""
    seen: list[Tensor] = []

    def judge(batch: dict[str, Any]) -> Tensor:
        seen.append(batch["img_feats"])
        return torch.zeros(len(batch["input_ids"]), 2)

    data = Pictures(1, 2)
    retrieval = task("oscar_retrieval", judge)
    retrieval.before_evaluation("val", [data])
    retrieval.valid_step(data.batch(0))
    assert {one.device.type for one in seen} == {"cpu"}
