"""Label vocabularies: the order of the classes is that of the pickle, and nothing in a pickle is run."""

import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.errors import IntegrityError, UnsafeError
from lavis_ext.features.vocabulary import LabelVocabulary, read_labels


def save(path: Path, value: Any) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
    return path


@pytest.mark.parametrize("protocol", range(5))
def test_any_order_is_kept_through_pickle_and_json(tmp_path: Path, protocol: int) -> None:
    rng = random.Random(protocol)
    for trial in range(20):
        ids = rng.sample(range(5000), 60)
        table = {f"answer {label} é": label for label in ids}
        path = save(tmp_path / f"{trial}.pkl", pickle.dumps(table, protocol))
        keep = tmp_path / f"{trial}.json"
        found = read_labels(path, None, keep)
        assert found.ids == ids
        assert found.answers == list(table)
        assert read_labels(keep) == found
        assert [found.classes[label] for label in ids] == list(range(60))
        assert json.loads(keep.read_text())[3] == {"id": ids[3], "answer": f"answer {ids[3]} é"}


def test_answers_come_from_the_second_pickle(tmp_path: Path) -> None:
    first = save(tmp_path / "a.pkl", {"net": 2, "cat": 0})
    listed = save(tmp_path / "l.pkl", ["a cat", "unused", "a net"])
    named = save(tmp_path / "d.pkl", {0: "a cat", 2: "a net"})
    texts = save(tmp_path / "t.pkl", {"0": "a cat", "2": "a net"})
    for second in (listed, named, texts):
        assert read_labels(first, second).answers == ["a net", "a cat"]
    with pytest.raises(IntegrityError, match="has no answer for label id 2"):
        read_labels(first, save(tmp_path / "s.pkl", ["a cat"]))
    with pytest.raises(IntegrityError, match="neither a list nor a dict"):
        read_labels(first, save(tmp_path / "n.pkl", 5))


def test_the_digest_tells_orders_apart() -> None:
    one = LabelVocabulary([1, 2], ["a", "b"])
    assert one.digest() == LabelVocabulary([1, 2], ["a", "b"]).digest()
    others = [LabelVocabulary([2, 1], ["a", "b"]), LabelVocabulary([1, 2], ["b", "a"]), LabelVocabulary([1], ["a"])]
    assert len({one.digest(), *(other.digest() for other in others)}) == 4
    assert len(one) == 2


def test_of_an_id_that_stands_twice_the_last_counts() -> None:
    assert LabelVocabulary([4, 7, 4], ["a", "b", "c"]).classes == {4: 2, 7: 1}


@pytest.mark.parametrize("value", [[1, 2], {"a": "b"}, {1: 2}, {"a": 1.5}, {"a": True}, "text", b"no pickle"])
def test_what_is_no_vocabulary(tmp_path: Path, value: Any) -> None:
    with pytest.raises(IntegrityError):
        read_labels(save(tmp_path / "x.pkl", value))


class Evil:
    """Asks for a call when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/never",)


def test_a_pickle_that_asks_for_more_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeError):
        read_labels(save(tmp_path / "x.pkl", {"a": Evil()}))


@pytest.mark.parametrize("text", ["[]", "{}", '[{"id": 1}]', '[{"id": "1", "answer": "a"}]', "[1]", "no json"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(IntegrityError):
        read_labels(path)


def test_a_copy_that_cannot_be_kept_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "x.pkl", {"a": 1})
    (tmp_path / "file").touch()
    assert read_labels(path, None, tmp_path / "file" / "x.json").ids == [1]
    assert "the ordered copy cannot be written" in caplog.text
