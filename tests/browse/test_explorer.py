"""A served data set: every sample can be reached, found and enlarged; what is asked for wrongly is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_ext.browse import write_page
from lavis_ext.browse.explorer import DatasetApp
from lavis_ext.browse.search import PER_PAGE, Query
from lavis_ext.browse.subject import joined, read_own, read_subject
from lavis_ext.browse.views import word_counts
from tests.support.families import coco_captions, nlvr, nocaps, vqav2
from tests.support.html import HOSTILE, Page
from tests.support.pictures import encoded, pixels
from tests.support.serving import ask, served


def app_of(root: Path, name: str = "coco_caption") -> DatasetApp:
    app = DatasetApp(read_subject(name, root), scan=False)
    app.look_at_all()
    return app


def own(folder: Path, rows: list[dict[str, Any]], pictures: int = 4, file: str = "rows.jsonl") -> DatasetApp:
    """A folder of somebody's, with pictures 0.jpg, 1.jpg, …"""
    folder.mkdir(exist_ok=True)
    for number in range(pictures):
        (folder / f"{number}.jpg").write_bytes(encoded(pixels(number)))
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    app = DatasetApp(read_own(str(folder), folder), scan=False)
    app.look_at_all()
    return app


def found(app: DatasetApp, split: str = "", **asked: Any) -> list[int]:
    query = Query.of({key: str(value) for key, value in asked.items()})
    split = split or next(iter(app.views))
    return [int(number) for number in app.searchers[split].find(split, query)]


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> DatasetApp:
    said = ["A red star", "a blue RED ring", "Ein schöner Stern", "two dogs run on the green grass", "", "red"]
    rows = [{"image": f"{n % 4}.jpg", "caption": text, "id": 100 + n} for n, text in enumerate(said)]
    rows += [{"image": "gone.jpg", "caption": HOSTILE, "id": 7}]
    return own(tmp_path_factory.mktemp("own"), rows)


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"q": "red"}, [0, 1, 5]),
        ({"q": "RED star"}, [0]),
        ({"q": "star red"}, [0]),
        ({"q": '"star red"'}, []),
        ({"q": '"red star"'}, [0]),
        ({"q": "SCHÖNER"}, [2]),
        ({"q": "103"}, [3]),
        ({"q": "10"}, []),
        ({"q": "2.jpg"}, [2]),
        ({"q": "<script>"}, [6]),
        ({"q": "."}, [0, 1, 2, 3, 4, 5, 6]),
        ({"q": "x" * 500}, []),
        ({"q": "(("}, []),
        ({"least": 5}, [3, 6]),
        ({"most": 1}, [4, 5]),
        ({"least": 2, "most": 3}, [0, 2]),
        ({"state": "textless"}, [4]),
        ({"state": "missing"}, [6]),
        ({"state": "corrupt"}, []),
        ({"state": "no such", "sort": "no such"}, [0, 1, 2, 3, 4, 5, 6]),
        ({"sort": "text", "most": 5}, [4, 0, 2, 1, 5]),
        ({"sort": "longest", "q": "red"}, [1, 0, 5]),
        ({"sort": "shortest", "q": "red"}, [5, 0, 1]),
        ({"least": "many", "page": "-1"}, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_samples_are_found(asked: dict[str, Any], numbers: list[int], captions: DatasetApp) -> None:
    assert found(captions, **asked) == numbers


def test_one_word_finds_the_same_by_columns_and_by_rows(captions: DatasetApp) -> None:
    view = captions.views["train"]
    for words in (["red"], ["schöner"], ["dogs", "green"], ["2.jpg"]):
        plain = super(type(view), view).matches(words)
        assert view.matches(words).tolist() == plain.tolist()
    assert view.words().tolist() == super(type(view), view).words().tolist()
    assert view.alphabetical().tolist() == super(type(view), view).alphabetical().tolist()


def test_answers_labels_pairs_and_gathered_captions(tmp_path: Path) -> None:
    vqav2(tmp_path)
    vqa = app_of(tmp_path, "coco_vqa")
    split = next(iter(vqa.views))
    assert found(vqa, split, answer="net") == found(vqa, split) and found(vqa, split, answer="ne") == []
    assert len(found(vqa, split, q='"picture 2,"')) == 1
    nlvr(tmp_path)
    pairs = app_of(tmp_path, "nlvr")
    assert pairs.scans[0].look(next(iter(pairs.views))).codes.shape[1] == 2
    assert found(pairs, answer="True") and len(found(pairs)) > len(found(pairs, answer="True"))
    nocaps(tmp_path)
    told = app_of(tmp_path, "nocaps")
    view = told.views["val"]
    wanted = found(told, "val", q="caption 1")
    assert wanted and all(any("caption 1" in text for text in view.at(n).text.texts) for n in wanted)


def test_json_columns_lists_and_numbers_are_looked_through(tmp_path: Path) -> None:
    rows = [
        {"image": "0.jpg", "question": "what?", "answer": ["a dog", "dog"], "more": {"deep": "Grün"}},
        {"image": "1.jpg", "question": "what?", "answer": [], "more": 3},
        {"image": "2.jpg", "question": "what?", "answer": ["cat"], "more": None},
    ]
    app = own(tmp_path / "mine", rows)
    assert found(app, q="grün") == [0] and found(app, q="cat") == [2] and found(app, answer="dog") == [0]
    assert found(app, answer="do") == []


def test_words_are_counted_as_python_does() -> None:
    import pyarrow as pa

    texts = ["a b", "", None, "  a\tb \n c ", "ä"]
    assert word_counts(pa.array(texts)).tolist() == [2, 0, 0, 3, 1]
    assert word_counts(pa.array([["a b", "c d e f"], [], None])).tolist() == [3, 0, 0]


@pytest.fixture(scope="module")
def server(captions: DatasetApp) -> Iterator[Any]:
    with served(captions) as running:
        yield running


def test_pages_hold_their_samples_and_nothing_hostile(server: Any) -> None:
    page = Page(ask(server, "/").text)
    assert not page.open and page.count("figure", class_="shot") == 7 and page.count("script") == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    for path in ("/twice", "/missing", "/figures", "/about", "/?q=red&sort=longest&state=duplicate", "/?page=99"):
        answer = ask(server, path)
        assert answer.status == 200 and not Page(answer.text).open
    assert "gone.jpg" in ask(server, "/missing").text
    links = [a["href"] for _, a in page.tags if str(a.get("href", "")).startswith("picture/")]
    assert len(links) == 6
    for link in links:
        answer = ask(server, f"/{link}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg")
        assert Image.open(BytesIO(answer.body)).size == (64, 48)


PLACES = "/picture/0/0 /picture/0/0/9 /picture/0/7/0 /picture/9/0/0 /picture/-1/0/0 /picture/0/6/0 /picture/a/b/c"
PLACES += " /picture/0/0/0/0 /picture/../../etc/passwd /picture/0/99999999999999999999/0 /picture/0/%31/0%00"
PLACES += " /nothing /rows.jsonl /../rows.jsonl /0.jpg /state"


@pytest.mark.parametrize("path", PLACES.split())
def test_what_is_not_a_page_is_not_there(path: str, server: Any) -> None:
    assert ask(server, path).status == 404


def test_every_sample_is_on_one_page(tmp_path: Path) -> None:
    rows = [{"image": f"{n % 2}.jpg", "caption": f"text {n:03d}"} for n in range(2 * PER_PAGE + 5)]
    with served(own(tmp_path / "mine", rows, pictures=2)) as running:
        seen = [re.findall(r'class="said">text (\d+)<', ask(running, f"/?page={page}").text) for page in (1, 2, 3)]
        assert [len(some) for some in seen] == [PER_PAGE, PER_PAGE, 5]
        assert [int(one) for some in seen for one in some] == list(range(len(rows)))
        assert "page=2" in ask(running, "/").text and "page=4" not in ask(running, "/?page=3").text
        kept = ask(running, "/?q=text&sort=longest&page=2").text
        assert "q=text&amp;split=train&amp;sort=longest&amp;page=3" in kept


def test_training_is_shown_as_it_draws(tmp_path: Path) -> None:
    coco_captions(tmp_path)
    app = app_of(tmp_path)
    shots = app.page(Query(split="train", augment=1))["shots"]
    assert all(len(shot.sources) == len(shot.drawn) == 1 for shot in shots)
    assert not any(shot.drawn for shot in app.page(Query(split="val", augment=1))["shots"])
    assert shots[0].drawn == app.page(Query(split="train", augment=1))["shots"][0].drawn  # by its seed


def test_two_side_by_side_share_their_twins(tmp_path: Path) -> None:
    for name in ("one", "other"):
        own(tmp_path / name, [{"image": f"{n}.jpg", "caption": f"{name} {n}"} for n in range(4)])
    both = joined([read_own(str(tmp_path / name), tmp_path) for name in ("one", "other")])
    app = DatasetApp(both, scan=False)
    app.look_at_all()
    assert list(app.views) == ["one train", "other train"] and len(app.scans) == 1
    assert [len(group.members) for group in app.scans[0].twins()] == [2, 2, 2, 2]
    assert found(app, "other train", state="leak") == [0, 1, 2, 3]


def test_own_data_say_where_they_lie(tmp_path: Path) -> None:
    app = own(tmp_path / "mine", [{"image": f"{n}.jpg", "caption": "a"} for n in range(3)])
    reply = app.answer("/about", {})
    assert reply is not None
    text = bytes(reply.body).decode()
    assert all(part in text for part in (f"{tmp_path}/mine/rows.jsonl", ">3<", f"{tmp_path}/mine<"))


def test_conversations_without_a_picture_are_shown_too(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "soup"}] * 2
    rows = [{"id": n, "conversations": turns} | ({"image": f"{n}.jpg"} if n else {}) for n in range(3)]
    own(tmp_path / "mine", rows, pictures=3)
    page = write_page(str(tmp_path / "mine"), tmp_path / "page.html", tmp_path / "cache").read_text()
    assert page.count("soup") >= 6 and page.count("data:image/jpeg;base64,") >= 2


def test_boxes_of_a_row_are_drawn(tmp_path: Path) -> None:
    box = {"image": "0.jpg", "caption": "a box", "boxes": [[8, 8, 30, 20]], "labels": ["thing"]}
    app = own(
        tmp_path / "mine",
        [{**box, "boxes": [], "labels": []}, box, {**box, "boxes": [["x", None, 1, 2]], "labels": []}],
    )
    plain, drawn, odd = (app.views["train"].pictures(app.views["train"].at(index))[0] for index in range(3))
    assert np.array_equal(plain, odd) and drawn.shape[1] == 760 and plain.shape[1] == 64
