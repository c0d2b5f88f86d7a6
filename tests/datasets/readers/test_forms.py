"""Files of a split are told apart by what they hold; official records become LAVIS' records."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.datasets.readers.annotations import Annotations, cache_places
from lavis_ext.datasets.readers.parse import (
    Joined,
    canonical_rows,
    coco_image,
    kind_of,
    parse_rows,
    sort_files,
    subtype_of,
)
from tests.support.families import lavis_vqa, official_vqa
from tests.support.pictures import write_json

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANSWERS = "v2_mscoco_val2014_annotations.json"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('["yes", "no"]', "answer_list"),
        ("\ufeff[\n 1, 2]", "answer_list"),
        ('[{"image": "a"}]', "rows"),
        ("[]", "rows"),
        ("[ ]\n", "rows"),
        ("{}", "rows"),
        ('{"01": {"imageId": "1", "question": "q"}}', "rows"),
        ('{"annotations": [{"image_id": 1, "caption": "c"}]}', "rows"),
        ('{"info": {}, "questions": [{"question_id": 1}]}', "questions"),
        ('{"annotations": [{"question_id": 1, "answers": []}]}', "answers"),
        ("not json", "rows"),
    ],
)
def test_kinds(text: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert kind_of(path) == kind


def test_tables_are_rows(tmp_path: Path) -> None:
    assert kind_of(tmp_path / "not-even-there.tsv") == "rows"


@given(st.permutations(range(4)))
@settings(max_examples=24, deadline=None)
def test_pairs_are_found_in_any_order(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    folder = tmp_path_factory.getbasetemp() / "pairs"
    if not folder.exists():
        for subset in ("train2014", "val2014"):
            official_vqa(folder, subset)
    names = [
        f"v2_{kind}"
        for s in ("train2014", "val2014")
        for kind in (f"OpenEnded_mscoco_{s}_questions", f"mscoco_{s}_annotations")
    ]
    found = sort_files([folder / f"{names[i]}.json" for i in order])
    pairs = {(j.questions.name, j.answers and j.answers.name) for j in found.rows if isinstance(j, Joined)}
    assert pairs == {(f"{names[0]}.json", f"{names[1]}.json"), (f"{names[2]}.json", f"{names[3]}.json")}


def test_answers_alone_make_no_rows(tmp_path: Path) -> None:
    official_vqa(tmp_path, "val2014")
    with pytest.raises(ConfigError, match=r"val2014_annotations.json \(answers\): no rows and no questions"):
        sort_files([tmp_path / ANSWERS])


def test_joined_rows_are_kept_as_one_table(tmp_path: Path) -> None:
    official_vqa(tmp_path, "val2014")
    joined = Joined(tmp_path / QUESTIONS, tmp_path / ANSWERS)
    rows = Annotations([joined])
    assert [row["answer"] for row in rows] == [row["answer"] for row in lavis_vqa("val2014")]
    assert rows.paths == joined.files
    place = cache_places(joined)[0]
    assert place.is_file()
    written = place.stat().st_mtime_ns
    assert len(Annotations([joined])) == 3
    assert place.stat().st_mtime_ns == written
    other = json.loads((tmp_path / ANSWERS).read_text())
    other["annotations"][0]["answers"][0]["answer"] = "another thing"
    write_json(tmp_path / ANSWERS, other)
    assert any("another thing" in row["answer"] for row in Annotations([joined]))


def test_subset_is_told_by_the_file_then_by_its_name(tmp_path: Path) -> None:
    assert subtype_of(write_json(tmp_path / "a.json", {"questions": [], "data_subtype": "val2014"})) == "val2014"
    long = {"questions": ["x" * 200_000], "data_subtype": "test-dev2015"}
    assert subtype_of(write_json(tmp_path / "b.json", long)) == "test-dev2015"
    assert subtype_of(write_json(tmp_path / "q_train2014.json", {"questions": []})) == "train2014"
    nameless = write_json(tmp_path / "q.json", {"questions": [{"image_id": 5, "question": "q", "question_id": 1}]})
    assert subtype_of(nameless) is None
    assert Joined(nameless).parse() == [{"question_id": 1, "question": "q", "image_id": 5}]


def test_coco_names() -> None:
    assert coco_image("val2014", 42) == "val2014/COCO_val2014_000000000042.jpg"
    assert coco_image("test-dev2015", 1) == "test2015/COCO_test2015_000000000001.jpg"
    assert coco_image("train2017", 9) == "train2017/000000000009.jpg"


@pytest.mark.parametrize("change", [{"image_id": "1"}, {"question": None, "image_id": None}])
def test_questions_that_are_none(change: dict[str, Any], tmp_path: Path) -> None:
    question = {"image_id": 1, "question": "q", "question_id": 1, **change}
    path = write_json(tmp_path / "val2014.json", {"questions": [question]})
    with pytest.raises(IntegrityError, match="record 0:"):
        Joined(path).parse()


def test_answers_that_are_none(tmp_path: Path) -> None:
    question = {"image_id": 1, "question": "q", "question_id": 1}
    asked = write_json(tmp_path / "val2014.json", {"questions": [question]})
    answered = write_json(tmp_path / "a.json", {"annotations": [{"question_id": 1, "answers": ["x"]}]})
    with pytest.raises(IntegrityError, match="question 1: has no list of answers"):
        Joined(asked, answered).parse()


def test_visual_genome_regions() -> None:
    regions = [{"region_id": 1, "image_id": 4, "phrase": "a tree", "x": 0, "y": 0, "width": 1, "height": 1}]
    assert canonical_rows([{"id": 4, "regions": regions}]) == [
        {"image": "4.jpg", "caption": "a tree", "image_id": "vg_4"}
    ]


def test_rows_of_no_known_form_stay() -> None:
    rows = [{"image": "a", "caption": "b"}]
    assert canonical_rows(rows) is rows
    assert canonical_rows([]) == []


def test_a_record_that_breaks_its_form_is_an_error(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [{"qas": []}, {"id": 1}])
    with pytest.raises(IntegrityError, match=r"a.json: .*'qas'"):
        parse_rows(path)


def test_images_without_annotations_are_rows(tmp_path: Path) -> None:
    images = [{"id": 3, "file_name": "x.jpg", "open_images_id": "x", "domain": "in-domain"}, {"id": 4}]
    path = write_json(tmp_path / "a.json", {"images": images})
    assert parse_rows(path) == [{"image": "x.jpg", "img_id": 3, "domain": "in-domain"}]
