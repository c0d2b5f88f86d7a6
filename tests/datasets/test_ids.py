"""In results each picture and each question is one row under an id of its own, or the split is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lavis_ext.common.config.schema import AnnotationConfig, BuildInfo, DatasetConfig, ImagesConfig
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.collate import long_or_list
from lavis_ext.tasks.base_task import require_distinct
from tests.support.pictures import encoded, pixels


def built(root: Path, rows: Any, builder: str = "image_caption", split: str = "val", **args: Any) -> Any:
    files = rows if isinstance(rows, tuple) else (rows,)
    paths = [root / f"{number}.json" for number in range(len(files))]
    for path, value in zip(paths, files, strict=True):
        path.write_text(json.dumps(value))
    (root / "img").mkdir(exist_ok=True)
    for name in {row["image"] for row in rows if "image" in row} if isinstance(rows, list) else ():
        (root / "img" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "img" / name).write_bytes(encoded(pixels(1)))
    info = BuildInfo(
        annotations={split: AnnotationConfig(storage=[str(path) for path in paths])},
        images=ImagesConfig(storage=str(root / "img")),
    )
    config = DatasetConfig(name="mine", builder=builder, build_info=info, args=args)
    return build_datasets(config, BuildContext(root))[split]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["cam0_1.jpg", "cam1_1.jpg", "cam2_1.jpg"], ["cam0_1", "cam1_1", "cam2_1"]),
        (["a/001.jpg", "b/001.jpg"], ["a/001.jpg", "b/001.jpg"]),
        (["x_1.jpg", "x_2.jpg"], [1, 2]),
        (["1.jpg", "1.png"], ["1.jpg", "1.png"]),
        (["a_1.jpg", "b.jpg"], [1, "b"]),
        (["a_one.jpg", "b_one.jpg"], ["a_one", "b_one"]),
    ],
)
def test_two_pictures_never_have_one_id(tmp_path: Path, names: list[str], ids: list[Any]) -> None:
    data = built(tmp_path, [{"image": name, "caption": [f"of {name}"]} for name in names])
    assert data.result_ids() == ids
    assert data.references() == {one: [f"of {name}"] for one, name in zip(ids, names, strict=True)}
    assert [int(one) if str(one).isdigit() else one for one in (data[i]["image_id"] for i in range(len(data)))] == ids


@pytest.mark.parametrize("kind", [int, str])
def test_ids_of_the_file_are_its_ids(tmp_path: Path, kind: Any) -> None:
    value = {
        "images": [{"id": kind(70 + n), "file_name": f"shop_val_{n:08d}.jpg"} for n in range(2)],
        "annotations": [{"id": n, "image_id": kind(70 + n), "caption": "red"} for n in range(2)],
    }
    data = built(tmp_path, value)
    assert [int(one) for one in data.result_ids()] == [70, 71]
    assert {int(one): said for one, said in data.references().items()} == {70: ["red"], 71: ["red"]}


def test_two_pictures_with_one_id_of_the_file_are_refused(tmp_path: Path) -> None:
    data = built(tmp_path, [{"image": f"{n}.jpg", "image_id": 5, "caption": "red"} for n in range(2)])
    with pytest.raises(ConfigError, match=r"0\.jpg and 1\.jpg"):
        data.result_ids()


def test_ids_of_captions_are_no_ids_of_the_picture(tmp_path: Path) -> None:
    rows = [{"image": "a_4.jpg", "image_id": n, "caption": f"c{n}"} for n in (8, 9)]
    data = built(tmp_path, rows)
    assert data.references() == {8: ["c8", "c9"]}


def test_one_caption_a_row_is_ranked_by_picture(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.jpg", "caption": f"c{n}{k}"} for k in range(2) for n in (3, 1)]
    data = built(tmp_path, rows, "image_text_retrieval")
    assert (data.image, data.text) == (["3.jpg", "1.jpg"], ["c30", "c31", "c10", "c11"])
    assert (data.img2txt, data.txt2img) == ({0: [0, 1], 1: [2, 3]}, {0: 0, 1: 0, 2: 1, 3: 1})
    assert [data[i]["index"] for i in range(len(data))] == [0, 1]


QUESTION = {"image": "a.jpg", "question": "what?", "answer": "cat"}


@pytest.mark.parametrize(
    ("ids", "used"),
    [
        ([4, 9], [4, 9]),
        (["a", "b"], ["a", "b"]),
        ([0, 0], [0, 1]),
        ([None, None], [0, 1]),
        ([7, None], [0, 1]),
        (["1", 1], [0, 1]),
        ([2**70, 1], [2**70, 1]),
    ],
)
def test_questions_without_ids_of_their_own_are_numbered(tmp_path: Path, ids: list[Any], used: list[Any]) -> None:
    rows = [
        {**QUESTION, **({} if one is None else {"question_id": one}), "answer": str(n)} for n, one in enumerate(ids)
    ]
    data = built(tmp_path, rows, "vqa")
    assert [data[i]["question_id"] for i in range(2)] == used == data.result_ids()
    assert data.references() == {used[0]: ["0"], used[1]: ["1"]}
    batch = long_or_list("question_id", [data[i]["question_id"] for i in range(2)])["question_id"]
    assert [type(one)(name) for one, name in zip(used, batch, strict=True)] == used


def test_official_questions_with_one_id_are_refused(tmp_path: Path) -> None:
    asked = {"questions": [{"question_id": 1, "image_id": n, "question": "what?"} for n in range(2)]}
    given = {"annotations": [{"question_id": 1, "answers": [{"answer": "x"}]}]}
    with pytest.raises(IntegrityError, match="id of another, first 1"):
        built(tmp_path, (asked, given), "vqa")


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        (2, ["2"]),
        (2.5, ["2.5"]),
        ([1, "two"], ["1", "two"]),
        ([{"answer": "soup", "answer_confidence": "yes"}] * 2, ["soup"]),
        ([{"answer": 3}], ["3"]),
        ("x", ["x"]),
    ],
)
def test_answers_in_every_form(tmp_path: Path, answer: Any, texts: list[str]) -> None:
    rows = [{**QUESTION, "answers": answer}]
    assert built(tmp_path, rows, "vqa", "train", answer_key="answers")[0]["answers"] == texts
    assert set(built(tmp_path, rows, "vqa", answer_key="answers").references()[0]) == set(texts)


def test_digits_are_a_caption(tmp_path: Path) -> None:
    assert built(tmp_path, [{"image": "a.jpg", "caption": 7}], split="train")[0]["text_input"] == "7"
    assert built(tmp_path, [{"image": "a.jpg", "caption": 7}]).references() == {"a": ["7"]}


def test_data_sets_of_one_split_do_not_share_ids() -> None:
    def data(name: str, **texts: list[str]) -> Any:
        return SimpleNamespace(name=name, result_ids=lambda: list(texts), references=lambda: texts)

    require_distinct("val", [data("one", a=["x"]), data("two", b=["x"])])
    require_distinct("val", [data("one", a=["x"]), data("two", a=["x"])])
    for other in (["y"], []):
        with pytest.raises(ConfigError, match="'one' too"):
            require_distinct("val", [data("one", a=["x"]), data("two", a=other)])
