"""What people have is taken for what it is: every form by its path alone, then by the YAML that `new` writes for it."""

import base64
import io
import json
import pickle
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from lavis_ext import load_dataset
from lavis_ext.cli import main
from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import ConfigError, IntegrityError, UsageError
from lavis_ext.datasets.own import guess
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.prepare.samples import ImageNames
from tests.support.pictures import encoded, pixels

COUNT = 6
NAMES = [f"p{number}.jpg" for number in range(COUNT)]
TEXTS = [f"a thing number {number}" for number in range(COUNT)]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def photos(folder: Path, names: list[str] = NAMES) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(pixels(number)))
    return folder


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def beside(root: Path) -> None:
    photos(root)
    for name, text in zip(NAMES, TEXTS, strict=True):
        write(root / Path(name).with_suffix(".txt"), text + "\n")


def metadata(root: Path) -> None:
    photos(root)
    rows = ({"file_name": name, "text": text} for name, text in zip(NAMES, TEXTS, strict=True))
    write(root / "metadata.jsonl", "\n".join(map(json.dumps, rows)))


def captions_txt(root: Path) -> None:
    photos(root)
    write(root / "captions.txt", "".join(f"{n}, {t}\n" for n, t in zip(NAMES, TEXTS, strict=True)))


def semicolons(root: Path) -> None:
    photos(root / "pics")
    write(
        root / "mine.csv", "filename;description\n" + "".join(f"{n};{t}\n" for n, t in zip(NAMES, TEXTS, strict=True))
    )


def splits_of_lines(root: Path) -> None:
    photos(root / "img")
    rows = [{"img_path": f"img/{n}", "caption": [t, t]} for n, t in zip(NAMES, TEXTS, strict=True)]
    write(root / "train.jsonl", "\n".join(map(json.dumps, rows[:4])))
    write(root / "validation.jsonl", "\n".join(map(json.dumps, rows[4:])))


def metadata_of_splits(root: Path) -> None:
    """Hugging Face's imagefolder with a table for each split, whose names are of its own folder."""
    for split, some in (("train", [0, 1, 2, 3]), ("test", [4, 5])):
        photos(root / split, NAMES[: len(some)])
        lines = [f"{NAMES[k]},{TEXTS[number]}\n" for k, number in enumerate(some)]
        write(root / split / "metadata.csv", "file_name,text\n" + "".join(lines))


def splits_of_a_json(root: Path) -> None:
    photos(root / "images")
    rows = [{"image": n, "caption": t} for n, t in zip(NAMES, TEXTS, strict=True)]
    write(root / "all.json", {"train": rows[:4], "val": rows[4:]})


def table() -> pa.Table:
    pictures = [{"bytes": encoded(pixels(n)), "path": name} for n, name in enumerate(NAMES)]
    return pa.table({"image": pa.array(pictures, PICTURE), "text": TEXTS})


def hub_parquet(root: Path) -> None:
    (root / "data").mkdir(parents=True)
    parquet.write_table(table().slice(0, 4), root / "data" / "train-00000-of-00001.parquet", row_group_size=2)
    parquet.write_table(table().slice(4), root / "data" / "test-00000-of-00001.parquet")


def saved(root: Path) -> None:
    for split, rows in (("train", table().slice(0, 4)), ("validation", table().slice(4))):
        (root / split).mkdir(parents=True)
        with pa.ipc.new_stream(str(root / split / "data-00000-of-00001.arrow"), rows.schema) as out:
            out.write_table(rows)
        write(root / split / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
        write(root / split / "dataset_info.json", {})
    write(root / "dataset_dict.json", {"splits": ["train", "validation"]})


def coco(root: Path) -> None:
    photos(root / "images")
    images = [{"id": 900 + n, "file_name": name} for n, name in enumerate(NAMES)]
    said = [{"id": n, "image_id": 900 + n, "caption": text} for n, text in enumerate(TEXTS)]
    write(root / "annotations" / "captions_train2017.json", {"images": images, "annotations": said})
    boxes = [{"id": n, "image_id": 900 + n, "category_id": 1, "bbox": [1, 2, 3, 4]} for n in range(COUNT)]
    kinds = [{"id": 1, "name": "thing"}]
    write(
        root / "annotations" / "instances_train2017.json",
        {"images": images, "annotations": boxes, "categories": kinds},
    )


def detection(root: Path) -> None:
    coco(root)
    (root / "annotations" / "captions_train2017.json").unlink()


def karpathy(root: Path) -> None:
    photos(root / "images")
    words = ["train", "restval", "val", "test", "train", "train"]
    images = [
        {"filename": name, "imgid": n, "split": words[n], "sentences": [{"raw": TEXTS[n]}]}
        for n, name in enumerate(NAMES)
    ]
    write(root / "dataset_mine.json", {"dataset": "mine", "images": images})


def vizwiz(root: Path) -> None:
    photos(root / "train")
    answers = [{"answer": "soup", "answer_confidence": "yes"}] * 10
    rows = [{"image": n, "question": "what is this?", "answers": answers, "answerable": 1} for n in NAMES]
    write(root / "train.json", rows)


def official_vqa(root: Path) -> None:
    photos(root / "images", [f"{number:012d}.jpg" for number in range(COUNT)])
    asked = [{"question_id": n, "image_id": n, "question": "what?"} for n in range(COUNT)]
    given = [{"question_id": n, "image_id": n, "answers": [{"answer": "soup"}] * 10} for n in range(COUNT)]
    write(root / "questions.json", {"questions": asked})
    write(root / "annotations.json", {"annotations": given})


def llava(root: Path) -> None:
    photos(root / "images")
    rows = [
        {
            "id": f"r{n}",
            "image": name,
            "conversations": [
                {"from": "human", "value": "<image>\nwhat?"},
                {"from": "gpt", "value": "soup"},
                {"from": "human", "value": "really?"},
                {"from": "gpt", "value": "yes"},
            ],
        }
        for n, name in enumerate(NAMES)
    ]
    write(root / "llava.json", rows)


def llava_captions(root: Path) -> None:
    llava(root)
    rows = json.loads((root / "llava.json").read_text())
    write(root / "llava.json", [{**row, "conversations": row["conversations"][:2]} for row in rows])


def messages(root: Path) -> None:
    photos(root / "images")
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": name}, {"type": "text", "text": "what?"}]},
                {"role": "assistant", "content": "soup"},
            ]
        }
        for name in NAMES
    ]
    write(root / "chats.json", rows)


def classes(root: Path) -> None:
    photos(root, [f"{'cat' if n % 2 else 'dog'}/{name}" for n, name in enumerate(NAMES)])


def classes_by_split(root: Path) -> None:
    kind = ["cat", "dog"]
    photos(root, [f"{'train' if n < 4 else 'val'}/{kind[n % 2]}/{name}" for n, name in enumerate(NAMES)])


def tars(root: Path, image: str = "jpg", text: str = "json") -> None:
    root.mkdir(parents=True)
    with tarfile.open(root / "00000.tar", "w") as out:
        for number, said in enumerate(TEXTS):
            body = json.dumps({"caption": said}).encode() if text == "json" else said.encode()
            for kind, data in ((image, encoded(pixels(number))), (text, body)):
                member = tarfile.TarInfo(f"s{number}.{kind}")
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))


def long_kinds(root: Path) -> None:
    tars(root, "input.jpg", "outputs.txt")


def in_base64(root: Path) -> None:
    """Pictures in a column, one of them longer than a field of the csv module may be."""
    large = io.BytesIO()
    Image.effect_noise((64, 48), 90).convert("RGB").save(large, "png")
    padded = large.getvalue() + bytes(100_000)
    pictures = [padded, *(encoded(pixels(number)) for number in range(1, COUNT))]
    lines = [f"{base64.b64encode(data).decode()},{text}\n" for data, text in zip(pictures, TEXTS, strict=True)]
    write(root / "mine.csv", "image,caption\n" + "".join(lines))


def zipped(root: Path) -> None:
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / "photos.zip", "w") as out:
        for number, name in enumerate(NAMES):
            out.writestr(f"pics/{name}", encoded(pixels(number)))
            out.writestr(f"__MACOSX/pics/._{name}", b"of macOS")
        out.writestr("captions.csv", "image,caption\n" + "".join(map("{},{}\n".format, NAMES, TEXTS)))


def from_windows(root: Path) -> None:
    """A table as a spreadsheet saves it, with names as another system spells them."""
    photos(root / "Fotos", [unicodedata.normalize("NFD", f"Größe {name}") for name in NAMES])
    names = ["Größe p0", *(f"Größe {name[:-4]}.JPG" for name in NAMES[1:])]
    lines = [f"{name};{text}\n" for name, text in zip(names, TEXTS, strict=True)]
    (root / "mine.csv").write_bytes(
        ("image;caption;Anmerkung\n" + "".join(lines).replace("\n", ";é\n")).encode("cp1252")
    )


FORMS: list[tuple[Callable[[Path], None], str, dict[str, int]]] = [
    (beside, "image_caption", {"train": 6}),
    (metadata, "image_caption", {"train": 6}),
    (captions_txt, "image_caption", {"train": 6}),
    (semicolons, "image_caption", {"train": 6}),
    (splits_of_lines, "image_caption", {"train": 4, "val": 2}),
    (metadata_of_splits, "image_caption", {"train": 4, "test": 2}),
    (splits_of_a_json, "image_caption", {"train": 4, "val": 2}),
    (hub_parquet, "image_caption", {"train": 4, "test": 2}),
    (saved, "image_caption", {"train": 4, "val": 2}),
    (coco, "image_caption", {"train": 6}),
    (detection, "image_caption", {"train": 6}),
    (karpathy, "image_caption", {"train": 4, "val": 1, "test": 1}),
    (vizwiz, "vqa", {"train": 6}),
    (official_vqa, "vqa", {"train": 6}),
    (llava, "conversation", {"train": 6}),
    (llava_captions, "vqa", {"train": 6}),
    (messages, "conversation", {"train": 6}),
    (classes, "vqa", {"train": 6}),
    (classes_by_split, "vqa", {"train": 4, "val": 2}),
    (in_base64, "image_caption", {"train": 6}),
    (zipped, "image_caption", {"train": 6}),
    (from_windows, "image_caption", {"train": 6}),
    (tars, "image_text_shards", {"train": 6}),
    (long_kinds, "image_text_shards", {"train": 6}),
]


@pytest.mark.parametrize(("make", "shape", "splits"), FORMS, ids=[form[0].__name__ for form in FORMS])
def test_every_form(
    make: Callable[[Path], None],
    shape: str,
    splits: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "mine")
    found = guess(tmp_path / "mine")
    assert (found.name, found.config.builder, bool(found.sentences)) == ("mine", shape, True)
    built = load_dataset(str(tmp_path / "mine"))
    samples = {
        split: list(data) if shape == "image_text_shards" else [data[i] for i in range(len(data))]
        for split, data in built.items()
    }
    assert {split: len(some) for split, some in samples.items()} == splits
    whole = shape == "conversation"
    pictures = [
        image for some in samples.values() for one in some for image in (one["image"] if whole else [one["image"]])
    ]
    assert len(pictures) == sum(splits.values()) and all(image.size == (64, 48) for image in pictures)
    turns = [turn for sample in samples["train"] for turn in sample.get("conversations", [])]
    asked = [turn["content"].removeprefix("<image>\n") for turn in turns if turn["role"] == "user"]
    said = set(asked) if whole else {str(sample["text_input"]) for sample in samples["train"]}
    assert said <= {*TEXTS, "thing", "what is this?", "what?", "really?", "What is this?"} and said
    if shape == "vqa":
        assert {answer for sample in samples["train"] for answer in sample["answers"]} <= {"soup", "yes", "cat", "dog"}

    monkeypatch.chdir(tmp_path)
    assert main(["new", "things", "mine", "--out", "out"]) == 0
    assert main(["check", "out"]) == 0
    assert main(["new", "things", "mine", "--out", "out"]) == 2, "what is there is not replaced"
    assert main(["verify", "things", "--deep", "--configs", "out"]) == 0
    assert main(["status", "things", "--configs", "out"]) == 0
    assert ", present" in capsys.readouterr().out
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", "out")
    again = load_dataset("things")
    assert set(again) >= set(splits)
    if not {"val", "test"} & set(splits) and shape != "image_text_shards":
        assert len(again["val"]) >= 1 and {*names_of(again["train"])}.isdisjoint(names_of(again["val"]))


def listed(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    write(root / name, "\n".join(map(json.dumps, rows)) if name.endswith("l") else rows)


def deep(root: Path) -> None:
    """Photographs in folders of folders, among more of one folder than are looked at."""
    names = [f"2019/07/trip/day/IMG_{number}.JPG" for number in range(COUNT)]
    photos(root, names)
    for name, text in zip(names, TEXTS, strict=True):
        write((root / name).with_suffix(".txt"), text)


def zero_padded(root: Path) -> None:
    photos(root / "train2017", [f"{139 + number:012d}.jpg" for number in range(COUNT)])
    listed(root, "mine.json", [{"image": 139 + number, "caption": text} for number, text in enumerate(TEXTS)])


def padded_digits(root: Path) -> None:
    photos(root / "pics", [f"{number:05d}.png" for number in range(COUNT)])
    write(root / "mine.csv", "image,caption\n" + "".join(f"{n},{text}\n" for n, text in enumerate(TEXTS)))


def prefixed(root: Path) -> None:
    photos(root / "train2014", [f"COCO_train2014_{139 + number:012d}.jpg" for number in range(COUNT)])
    photos(root.parent / "others" / "train2017", [f"{139 + number:012d}.jpg" for number in range(COUNT, 0, -1)])
    listed(root, "mine.jsonl", [{"image_id": 139 + number, "caption": text} for number, text in enumerate(TEXTS)])


def of_each_split(root: Path) -> None:
    """Pictures in a folder for each split, which the names do not say."""
    for split, some in (("train", range(4)), ("val", range(4, 6))):
        for number in some:
            (root / split).mkdir(parents=True, exist_ok=True)
            (root / split / f"{split}_{number}.jpg").write_bytes(encoded(pixels(number)))
        rows = [{"image": f"{split}_{number}.jpg", "caption": TEXTS[number]} for number in some]
        listed(root, f"annotations/{split}.json", rows)


def tables_of_each_split(root: Path) -> None:
    """The same names in each split's folder, with a table there."""
    for split, some in (("train", range(4)), ("test", range(4, 6))):
        rows = "".join(f"{k}.jpg,{TEXTS[number]}\n" for k, number in enumerate(some))
        write(root / "data" / split / "metadata.csv", f"file_name,text\n{rows}")
        for k, number in enumerate(some):
            (root / "data" / split / f"{k}.jpg").write_bytes(encoded(pixels(number)))


def blanks(root: Path) -> None:
    photos(root)
    write(root / "mine.csv", "image , caption\n" + "".join(map(" {} , {}\n".format, NAMES, TEXTS)))


def in_capitals(root: Path) -> None:
    photos(root, [name.upper() for name in NAMES])
    write(root / "mine.csv", "image,caption\n" + "".join(map("{},{}\n".format, NAMES, TEXTS)))


def from_another_machine(root: Path) -> None:
    photos(root / "imgs")
    write(root / "mine.csv", "path;text\n" + "".join(map("C:\\\\me\\\\imgs\\\\{};{}\n".format, NAMES, TEXTS)))


def above(root: Path) -> None:
    photos(root / "im")
    write(root / "ann" / "mine.csv", "image,caption,,\n" + "".join(map("../im/{},{},,\n".format, NAMES, TEXTS)))


def floating(root: Path) -> None:
    photos(root / "im", [f"{number:04d}.jpg" for number in range(COUNT)])
    listed(root, "mine.json", [{"image_id": float(number), "caption": text} for number, text in enumerate(TEXTS)])


def as_img2dataset_leaves_files(root: Path) -> None:
    photos(root / "00000")
    for name, text in zip(NAMES, TEXTS, strict=True):
        write((root / "00000" / name).with_suffix(".txt"), text)
    parquet.write_table(pa.table({"url": ["http://x/y"] * COUNT, "caption": TEXTS}), root / "00000.parquet")


WHOSE = [
    *(above, floating, as_img2dataset_leaves_files),
    *(deep, zero_padded, padded_digits, prefixed, of_each_split, tables_of_each_split),
    *(blanks, in_capitals, from_another_machine),
]


@pytest.mark.parametrize("make", WHOSE)
def test_each_row_has_its_own_picture(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "mine")
    found = guess(tmp_path / "mine")
    assert not any("found there" in sentence for sentence in found.sentences)
    seen = []
    for data in load_dataset(tmp_path / "mine").values():
        for index in range(len(data)):
            row = data.row(index)
            number = TEXTS.index(row.get("caption") or row["text"])
            picture = np.asarray(data[index]["image"], int)
            assert np.abs(picture - pixels(number).astype(int)).mean() < 20, (row, number)
            seen.append(number)
    assert sorted(seen) == list(range(COUNT))
    assert not list((tmp_path / "mine").rglob(".*")), "nothing is written beside"


def names_of(data: Any) -> list[str]:
    return [data.image_name(data.row(index)) for index in range(len(data))]


def test_what_is_no_caption(tmp_path: Path) -> None:
    """YOLO's numbers, and captions that are all empty: the pictures of all splits can be looked at."""
    for split in ("train", "val"):
        photos(tmp_path / "yolo" / "images" / split, [f"{split}{number}.jpg" for number in range(2)])
        for number in range(2):
            write(
                tmp_path / "yolo" / "labels" / split / f"{split}{number}.txt", "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 2e-2 0.1\n"
            )
            write(tmp_path / "yolo" / "images" / split / f"{split}{number}.txt", "0 0.5 0.5 0.2 0.2\n")
    photos(tmp_path / "null")
    listed(tmp_path / "null", "mine.json", [{"image": name, "caption": None} for name in NAMES])
    for name, count in (("yolo", 4), ("null", COUNT)):
        built = load_dataset(tmp_path / name)
        assert {split: len(data) for split, data in built.items()} == {"test": count}
        assert [data[0]["image"].size for data in built.values()] == [(64, 48)]
    assert any("YOLO" in sentence for sentence in guess(tmp_path / "yolo").sentences)


def test_more_photographs_than_are_looked_at_hide_no_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavis_ext.datasets.own.MOST", 12)
    monkeypatch.setattr("lavis_ext.datasets.own.ALIKE", 4)
    for split in ("train", "val"):
        photos(tmp_path / "mine" / split, [f"{number}.jpg" for number in range(20)])
        listed(tmp_path / "mine" / split, "metadata.jsonl", [{"file_name": f"{n}.jpg", "text": "a"} for n in range(20)])
    assert {split: len(data) for split, data in load_dataset(tmp_path / "mine").items()} == {"train": 20, "val": 20}


def test_shards_of_several_splits_and_kinds(tmp_path: Path) -> None:
    tars(tmp_path / "some")
    (tmp_path / "some" / "00000.tar").rename(tmp_path / "some" / "val-0.tar")
    tars(tmp_path / "more")
    (tmp_path / "more" / "00000.tar").rename(tmp_path / "some" / "train-0.tar")
    found = guess(tmp_path / "some")
    assert found.section["build_info"]["storage"] == [str(tmp_path / "some" / "train-0.tar")]
    assert any("val" in sentence for sentence in found.sentences)
    tars(tmp_path / "bare", text="cls")
    with pytest.raises(UsageError, match="cls"):
        guess(tmp_path / "bare")


def test_rows_that_no_shape_reads(tmp_path: Path) -> None:
    photos(tmp_path / "two")
    listed(tmp_path / "two", "mine.json", [{"images": NAMES[:2], "text": "both"}] * 2)
    with pytest.raises(UsageError, match="several pictures"):
        guess(tmp_path / "two")
    for name, text in (("a.csv", "image,caption\n"), ("b.json", " \n"), ("c.jsonl", "")):
        write(tmp_path / "none" / name, text)
        with pytest.raises(IntegrityError, match=name):
            guess(tmp_path / "none" / name)


def test_check_says_what_a_training_would_end_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "mine")
    (tmp_path / "mine" / "x.HEIC").write_bytes(b"ftypheic")
    rows = [{"image": name, "caption": text} for name, text in zip(NAMES, TEXTS, strict=True)]
    for number, (more, named) in enumerate([({"image": "x.HEIC"}, "x.HEIC"), ({"caption": " "}, "`caption`")]):
        listed(tmp_path / "mine", "train.json", [*rows, {**rows[0], **more}])
        listed(tmp_path / "mine", "val.json", rows[:2])
        assert main(["new", f"some{number}", "mine"]) == 3
        said = capsys.readouterr().err
        assert named in said and "train.json" in said and "1 of the first" in said
    text = (tmp_path / "some1" / "datasets" / "some1" / "defaults.yaml").read_text()
    write(tmp_path / "some1" / "datasets" / "some1" / "defaults.yaml", text + "    tolerance: 0.5\n")
    assert main(["check", "some1"]) == 0


def test_answers_as_programs_write_them(tmp_path: Path) -> None:
    photos(tmp_path / "lists")
    write(tmp_path / "lists" / "a.csv", "image,question,answers\n" + "".join(f"{n},q?,\"['a', 'b']\"\n" for n in NAMES))
    assert load_dataset(tmp_path / "lists")["train"][0]["answers"] == ["a", "b"]
    photos(tmp_path / "flags")
    listed(tmp_path / "flags", "a.json", [{"image": name, "question": "q?", "answer": True} for name in NAMES])
    assert list(load_dataset(tmp_path / "flags")) == ["test"], "what is no text cannot be learnt"
    tars(tmp_path / "packed")
    (tmp_path / "packed" / "00000.tar").rename(tmp_path / "packed" / "00000.tar.gz")
    with pytest.raises(UsageError, match="gunzip"):
        guess(tmp_path / "packed")


def test_the_number_of_a_choice_is_that_choice(tmp_path: Path) -> None:
    photos(tmp_path / "quiz")
    rows = [{"image": n, "question": "which?", "choices": ["a", "b"], "answer": k % 2} for k, n in enumerate(NAMES)]
    listed(tmp_path / "quiz", "quiz.jsonl", rows)
    assert [load_dataset(tmp_path / "quiz")["train"].row(k)["answer"] for k in range(3)] == ["a", "b", "a"]


def test_pictures_without_a_word_can_be_looked_at(tmp_path: Path) -> None:
    photos(tmp_path / "bare")
    built = load_dataset(tmp_path / "bare")
    assert {split: len(data) for split, data in built.items()} == {"test": 6}
    assert [data[0]["image"].size for data in built.values()] == [(64, 48)]


def test_a_data_set_in_the_cache_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    hub_parquet(tmp_path / "hf" / "hub" / "datasets--owner--birds" / "snapshots" / "abc")
    assert {split: len(data) for split, data in load_dataset("owner/birds").items()} == {"train": 4, "test": 2}
    made = tmp_path / "hf" / "datasets" / "beans" / "default" / "0.0.0" / "abc"
    made.mkdir(parents=True)
    for name in ("beans-train.arrow", "cache-123.arrow"):
        with pa.ipc.new_stream(str(made / name), table().schema) as out:
            out.write_table(table())
    assert {split: len(data) for split, data in load_dataset("beans").items()} == {"train": COUNT}
    for name in ("owner/bards", "bards"):
        with pytest.raises(UsageError, match="bards"):
            load_dataset(name)


def test_what_is_nothing_of_the_kind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "IMG_1.HEIC").write_bytes(b"ftypheic")
    with pytest.raises(UsageError, match=r"\.heic"):
        guess(tmp_path / "phone")
    photos(tmp_path / "one")
    with pytest.raises(UsageError, match=f"its folder: {tmp_path}/one"):
        guess(tmp_path / "one" / NAMES[0])
    write(tmp_path / "cfg" / "datasets" / "k.yaml", "datasets: {}")
    with pytest.raises(UsageError, match="--configs"):
        guess(tmp_path / "cfg")
    with pytest.raises(UsageError, match="lavis-ext new NAME"):
        load_cards().resolve(str(tmp_path / "one"))
    for place in ("empty", "photoos"):
        with pytest.raises(UsageError) as error:
            guess(tmp_path / place)
        assert place in error.value.problems[0].where


def test_a_split_as_second_argument() -> None:
    with pytest.raises(UsageError, match=r"load_dataset\('coco_caption'\)\['train'\]"):
        load_dataset("coco_caption", "train")


def test_rows_of_karpathys_file_are_those_of_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    karpathy(tmp_path / "mine")
    write(tmp_path / "cfg" / "datasets" / "k" / "defaults.yaml", declaration(tmp_path / "mine", "dataset_mine.json"))
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "cfg"))
    assert {split: len(data) for split, data in load_dataset("k").items()} == {"train": 4, "val": 1}


def declaration(root: Path, file: str, images: str = "images", args: str = "", train: str = "train") -> str:
    return (
        "datasets:\n  k:\n    builder: image_caption\n"
        f"    build_info:\n      annotations:\n        {train}: {{storage: '{root / file}'}}\n"
        f"        val: {{storage: '{root / file}'}}\n      images: {{storage: '{root / images}'}}\n" + args
    )


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    splits_of_lines(tmp_path / "mine")
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "cache"))

    def run(text: str, *verb: str) -> tuple[int, str]:
        write(tmp_path / "cfg" / "datasets" / "k" / "defaults.yaml", text)
        code = main([*(verb or ["check", str(tmp_path / "cfg")]), "--configs", str(tmp_path / "cfg")])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


KEY = "    args: {image_key: img_path}\n"


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (lambda text: text, 0, ("0 problems",)),
        (lambda text: text.replace("train.jsonl", "trian.jsonl", 1), 3, ("trian.jsonl", "defaults.yaml:6")),
        (lambda text: text.replace("train.jsonl", "img", 1), 3, ("mine/img", "caption")),
        (lambda text: text.replace("mine'", "mine/pics'"), 3, ("pics", "defaults.yaml:8")),
        (lambda text: text.replace("mine'", "mine/train.jsonl'"), 3, ("is a file", "defaults.yaml:8")),
        (lambda text: text.replace("mine'", "mine/img'"), 0, ()),
        (lambda text: text.replace(KEY, ""), 3, ("no column `image`", "image_key: img_path")),
        (lambda text: text.replace("image_key", "image_kye"), 3, ("image_kye", "image_key")),
        (lambda text: text.replace("        train:", "        trian:"), 3, ("trian", "did you mean 'train'")),
        (lambda text: text.replace("        train:", "        training:"), 3, ("training", "did you mean 'train'")),
        (lambda text: text.replace("img_path}", "img_path, caption_key: text}"), 3, ("`text`", "caption_key: caption")),
    ],
)
def test_check_opens_what_a_yaml_points_to(
    checked: Any, change: Callable[[str], str], code: int, named: tuple[str, ...], tmp_path: Path
) -> None:
    found, said = checked(change(declaration(tmp_path / "mine", "train.jsonl", "", KEY)))
    assert found == code, said
    assert all(word in said for word in named), said


@pytest.mark.parametrize("way", ["home", "variable", "beside"])
def test_paths_are_read_in_every_way(checked: Any, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(tmp_path / "mine")
    if way == "beside":
        (tmp_path / "cfg" / "datasets" / "k").mkdir(parents=True)
        (tmp_path / "cfg" / "datasets" / "k" / "mine").symlink_to(base)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINE", base)
    text = declaration(tmp_path / "mine", "train.jsonl", "", KEY)
    text = text.replace(base, {"home": "~/mine", "variable": "${oc.env:MINE}", "beside": "mine"}[way])
    assert checked(text)[0] == 0
    code, said = checked(text, "status", "k")
    assert (code, said.count("4 of 4 images, present")) == (0, 2)
    code, said = checked(text, "verify", "k", "--deep")
    assert code == 0, said
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "cfg"))
    assert load_dataset("k")["train"][3]["image"].size == (64, 48)
    assert load_dataset("k", tmp_path / "cfg" / "datasets" / "k" / "defaults.yaml")["train"][0]["image"].size == (
        64,
        48,
    )


def test_verify_names_what_is_lost_and_what_is_damaged(checked: Any, tmp_path: Path) -> None:
    text = declaration(tmp_path / "mine", "train.jsonl", "", KEY)
    (tmp_path / "mine" / "img" / "p1.jpg").write_bytes(encoded(pixels(1))[:300])
    assert checked(text, "verify", "k")[0] == 0
    code, said = checked(text, "verify", "k", "--deep")
    assert code == 5 and f"{tmp_path}/mine/img/p1.jpg" in said
    (tmp_path / "mine" / "img" / "p1.jpg").unlink()
    code, said = checked(text, "verify", "k", "--repair")
    assert code == 5 and f"{tmp_path}/mine/img/p1.jpg" in said
    code, said = checked(text, "status", "k")
    assert code == 0 and said.count("3 of 4 images, partial") == 2
    code, said = checked(text)
    assert code == 3 and "1 of the first 4" in said and "img/p1.jpg" in said
    assert "k" in checked(text, "list", "k")[1]


def test_a_column_that_is_not_there_stops_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    semicolons(tmp_path / "mine")
    write(tmp_path / "cfg" / "datasets" / "k" / "defaults.yaml", declaration(tmp_path / "mine", "mine.csv", "pics"))
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "cfg"))
    with pytest.raises(ConfigError, match="delimiter: ';'"):
        load_dataset("k")
    args = "    args: {delimiter: ';', image_key: filename, caption_key: description}\n"
    text = declaration(tmp_path / "mine", "mine.csv", "pics", args)
    write(tmp_path / "cfg" / "datasets" / "k" / "defaults.yaml", text)
    assert len(load_dataset("k")["train"]) == COUNT


def test_a_folder_named_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits_of_lines(tmp_path / "mine")
    write(
        tmp_path / "cfg" / "datasets" / "k" / "defaults.yaml",
        declaration(tmp_path / "mine", "train.jsonl", "", KEY),
    )
    (tmp_path / "link").symlink_to(tmp_path / "cfg")
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", f"{tmp_path}/cfg:{tmp_path}/cfg/../cfg")
    for name in ("cfg", "link"):
        assert main(["check", str(tmp_path / name), "--configs", str(tmp_path / name)]) == 0


def test_new_then_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert main(["new", "things", "mine"]) == 0
    few = ["--options", "run.max_epoch=1", "run.job_id=a", "run.num_workers=0"]
    assert main(["train", "--cfg-path", "things/train.yaml", *few]) == 0
    assert (tmp_path / "output" / "things" / "a" / "report.html").is_file()


def in_lines(of: Callable[[str, str], str], head: str = "") -> str:
    return head + "".join(of(name, text) for name, text in zip(NAMES, TEXTS, strict=True))


OTHERWISE: dict[str, dict[str, Any]] = {
    "bars": {"captions.txt": in_lines(lambda n, t: f"{n}|{t}\n", "image|caption\n")},
    "flickr": {"results.token": in_lines(lambda n, t: f"{n}#0\t{t}\n")},
    "a header in another language": {"liste.csv": in_lines(lambda n, t: f"{n},{t}\n", "Bild,Beschreibung\n")},
    "UTF-16 without its mark": {"c.csv": in_lines(lambda n, t: f"{n},{t}\n", "image,caption\n").encode("utf-16-le")},
    "rows of a spreadsheet that are empty": {"c.csv": in_lines(lambda n, t: f"{n},{t}\n", "image,caption\n") + ",\n"},
    "lines named json": {"c.json": in_lines(lambda n, t: json.dumps({"image": n, "caption": t}) + "\n")},
    "a list named jsonl": {"c.jsonl": [{"image": n, "caption": t} for n, t in zip(NAMES, TEXTS, strict=True)]},
    "below a key of its own": {"c.json": {"info": {}, "samples": [{"image": NAMES[0], "caption": TEXTS[0]}] * COUNT}},
    "by the name without suffix": {"c.json": {n[:-4]: t for n, t in zip(NAMES, TEXTS, strict=True)}},
    "records by it": {"m.json": {n[:-4]: {"caption": t, "tags": "x"} for n, t in zip(NAMES, TEXTS, strict=True)}},
    "lists of many texts by it": {"c.json": {n[:-4]: [t, t] for n, t in zip(NAMES, TEXTS, strict=True)}},
    "pairs": {"c.json": [[n, t] for n, t in zip(NAMES, TEXTS, strict=True)]},
    "pairs in lines": {"c.jsonl": in_lines(lambda n, t: json.dumps([t, n]) + "\n")},
    "a header and lists": {
        "c.json": [["id", "image", "caption"], *([0, *one] for one in zip(NAMES, TEXTS, strict=True))]
    },
    "what is asked and the reply": {
        "c.jsonl": in_lines(lambda n, t: json.dumps({"image": n, "prompt": t, "completion": "yes"}) + "\n")
    },
    "instructions": {
        "c.jsonl": in_lines(lambda n, t: json.dumps({"image": n, "instruction": t, "input": "", "output": "x"}) + "\n")
    },
    "prompts alone": {"c.jsonl": in_lines(lambda n, t: json.dumps({"image": n, "prompt": t}) + "\n")},
    "names without suffix": {"c.csv": in_lines(lambda n, t: f"{n[:-4]},{t}\n", "image,caption\n")},
    "Label Studio": {
        "c.json": [
            {
                "id": 1,
                "data": {"image": f"/data/local-files/?d=images/{n}"},
                "annotations": [{"result": [{"from_name": "caption", "type": "textarea", "value": {"text": [t]}}]}],
            }
            for n, t in zip(NAMES, TEXTS, strict=True)
        ]
    },
    "Label Studio, short": {
        "c.json": [
            {"image": f"/data/upload/1/0a1b2c3d-{n}", "caption": t, "annotator": 1, "annotation_id": 2}
            for n, t in zip(NAMES, TEXTS, strict=True)
        ]
    },
    "texts in a folder beside": {f"texts/{n[:-4]}.txt": t for n, t in zip(NAMES, TEXTS, strict=True)},
    "texts after the whole name": {f"images/{n}.txt": t for n, t in zip(NAMES, TEXTS, strict=True)},
}


@pytest.mark.parametrize("files", OTHERWISE.values(), ids=OTHERWISE)
def test_texts_are_found_in_other_spellings_too(files: dict[str, Any], tmp_path: Path) -> None:
    photos(tmp_path / "images")
    for name, value in files.items():
        if isinstance(value, bytes):
            (tmp_path / name).write_bytes(value)
        else:
            write(tmp_path / name, value)
    made = load_dataset(tmp_path)["train"]
    assert len(made) == COUNT and made[0]["text_input"] == TEXTS[0] and made[0]["image"].size[0] > 0


def test_columns_that_nobody_reads_do_not_stop_a_table(tmp_path: Path) -> None:
    photos(tmp_path)
    when, price = datetime(2020, 1, 2, tzinfo=timezone.utc), Decimal("1.50")
    more = {"when": [when, None] * 3, "price": [price] * COUNT, "hash": [b"\x01\x02"] * COUNT}
    parquet.write_table(pa.table({"image": NAMES, "caption": TEXTS, **more}), tmp_path / "rows.parquet")
    rows = list(load_dataset(tmp_path)["train"].annotation)
    assert rows[0]["caption"] == TEXTS[0] and rows[0]["price"] == "1.50" and "hash" not in rows[0]
    assert rows[0]["when"].startswith("2020-01-02") and rows[1]["when"] is None


def test_what_is_left_out_is_said_and_one_folder_is_no_class(tmp_path: Path) -> None:
    photos(tmp_path / "images")
    write(tmp_path / "labels.json", [{"weight": 1.5}])
    for name in NAMES:
        write(tmp_path / "labels" / f"{name[:-4]}.txt", "0 0.5 0.5 0.2 0.2")  # YOLO's boxes
    found = guess(tmp_path)
    assert found.config.builder == "image_caption" and any("labels.json" in one for one in found.sentences)
    (tmp_path / "list.xlsx").write_bytes(b"PK")
    assert any("list.xlsx" in one and "CSV" in one for one in guess(tmp_path).sentences)
    with pytest.raises(UsageError, match="CSV"):
        guess(tmp_path / "list.xlsx")


def test_texts_of_windows_are_read_and_damaged_ones_are_not(tmp_path: Path) -> None:
    beside(tmp_path / "mine")
    (tmp_path / "mine" / "p0.txt").write_bytes("größe".encode("cp1252"))
    (tmp_path / "mine" / "p1.txt").write_bytes("größe".encode())
    found = guess(tmp_path / "mine")
    assert found.config.args["encoding"] == "cp1252" and any("cp1252" in one for one in found.sentences)
    made = load_dataset(tmp_path / "mine")["train"]
    assert [made[index]["text_input"] for index in (0, 1)] == ["größe", "größe"]
    text = "image,caption\n" + "".join(f"{name},größe\n" for name in NAMES)
    photos(tmp_path / "cut")
    (tmp_path / "cut" / "c.csv").write_bytes(text.encode().replace("ö".encode(), b"\xc3", 1))
    with pytest.raises(IntegrityError, match="encoding: cp1252"):
        guess(tmp_path / "cut")
    with pytest.raises(ConfigError, match="cp12x52"):
        declared = declaration(tmp_path / "mine", "c.csv", args="    args: {encoding: cp12x52}\n")
        write(tmp_path / "k.yaml", declared)
        load_dataset("k", tmp_path / "k.yaml")


def test_pictures_beside_the_folder_of_the_data_are_not_its_own(tmp_path: Path) -> None:
    photos(tmp_path / "other")
    photos(tmp_path / "mine", NAMES[:2])
    write(tmp_path / "mine" / "c.csv", "image,caption\n" + "".join(map("{},{}\n".format, NAMES, TEXTS)))
    assert guess(tmp_path / "mine").config.build_info.images.storage == str(tmp_path / "mine")
    (tmp_path / "mine" / "c.csv").unlink()
    (tmp_path / "mine" / NAMES[0]).unlink()
    (tmp_path / "mine" / NAMES[0]).symlink_to("gone.jpg")
    assert guess(tmp_path / "mine").config.build_info.images.storage == str(tmp_path / "mine")


def test_nothing_is_written_beside_the_data_of_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    semicolons(tmp_path / "mine")
    before = sorted((tmp_path / "mine").rglob("*"))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "cache"))  # which is made
    data = load_dataset(tmp_path / "mine")["train"]
    assert sorted((tmp_path / "mine").rglob("*")) == before
    (copy,) = (tmp_path / "cache" / ".lavis_ext" / "annotations").iterdir()
    written = copy.stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(data))
    assert again[0]["text_input"] == TEXTS[0] and copy.stat().st_mtime_ns == written
    assert main(["browse", str(tmp_path / "mine"), "--out", str(tmp_path / "page.html")]) == 0
    assert sorted((tmp_path / "mine").rglob("*")) == before
    (tmp_path / "cache" / "own").mkdir()
    semicolons(tmp_path / "cache" / "own")
    load_dataset(tmp_path / "cache" / "own")
    assert list((tmp_path / "cache" / "own" / ".lavis_ext").glob("*.arrow")), "within the cache root it is beside"


def test_a_zip_with_damage_is_refused_with_its_name(tmp_path: Path) -> None:
    zipped(tmp_path / "mine")
    path = tmp_path / "mine" / "photos.zip"
    whole = path.read_bytes()
    at = whole.index(b"image,caption")
    for data in (whole[:at] + b"\0" * 9 + whole[at + 9 :], whole[: len(whole) // 2], b""):
        path.write_bytes(data)
        with pytest.raises((IntegrityError, UsageError)) as error:
            guess(path)
        assert str(path) in error.value.problems[0].where


def test_another_picture_is_never_taken_for_one_without_suffix(tmp_path: Path) -> None:
    photos(tmp_path, ["a.jpg", "a.png", "b.jpg"])
    store = ImageStore(tmp_path)
    assert store.exists("b") and store.exists("b.JPG") and not store.exists("b.png")
    assert not store.exists("a") and store.exists("a.jpg")
    assert ImageNames(["b.jpg"]).find("b.JPG") == "b.jpg" and ImageNames(["b.jpg"]).find("b.png") is None
