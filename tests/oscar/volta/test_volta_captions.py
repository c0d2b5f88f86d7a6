"""Karpathy's captions: read, made where they are gone, and written by image as volta reads them."""

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.oscar.volta.coco import KARPATHY, build_karpathy, extract_captions, read_ids, tokens_of


def image(cocoid: int, split: str, *raw: str) -> dict[str, Any]:
    """One image as the original file has it."""
    sentences = [{"tokens": text.lower().split(), "raw": text, "imgid": 0, "sentid": i} for i, text in enumerate(raw)]
    head = {"filepath": "val2014", "sentids": list(range(len(raw))), "filename": "x.jpg", "imgid": 0, "split": split}
    return {**head, "sentences": sentences, "cocoid": cocoid}


ORIGINAL = {
    "images": [
        image(391895, "test", "A man. ", "Zwei “Hunde”"),
        image(60623, "restval", "late one"),
        image(483108, "val", "v"),
        image(9, "train", "first", "second"),
        image(25, "train", "third"),
    ],
    "dataset": "coco",
}


FIRST = '{"sentences": ["first", "second"], "id": 9}'


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def infile(tmp_path: Path) -> Path:
    return write(tmp_path / "mscoco" / "dataset_coco.json", ORIGINAL)


@pytest.mark.parametrize(
    ("split", "lines"),
    [
        ("train", [FIRST, '{"sentences": ["third"], "id": 25}', '{"sentences": ["late one"], "id": 60623}']),
        ("valid", ['{"sentences": ["v"], "id": 483108}']),
        ("test", ['{"sentences": ["A man. ", "Zwei “Hunde”"], "id": 391895}']),
    ],
)
def test_lines_are_upstreams(tmp_path: Path, infile: Path, split: str, lines: list[str]) -> None:
    done = extract_captions(infile, tmp_path / "annotations", split, tmp_path)
    assert done.path == tmp_path / "annotations" / f"{split}_ann.jsonl"
    assert done.path.read_bytes() == "".join(line + "\n" for line in lines).encode()
    assert done.images == len(lines) and done.captions == sum(len(json.loads(line)["sentences"]) for line in lines)


def test_test1k_by_its_list(tmp_path: Path, infile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="lavis-ext prepare mscoco/test1k_ids"):
        extract_captions(infile, tmp_path, "test1k", tmp_path)
    oscar = tmp_path / "oscar" / "datasets" / "coco_ir" / "test_img_keys_1k.tsv"
    oscar.parent.mkdir(parents=True)
    oscar.write_text("391895\n77\n")
    done = extract_captions(infile, tmp_path, "test1k", tmp_path)
    assert done.unknown == (77,) and done.path.name == "test1k_ann.jsonl"
    assert [json.loads(line)["id"] for line in done.path.read_text().splitlines()] == [391895]
    (tmp_path / "mscoco" / "test1k_ids.txt").write_text("483108\n")
    assert extract_captions(infile, tmp_path, "test1k", tmp_path).images == 1
    mine = tmp_path / "mine.txt"
    mine.write_text("9\n25\n")
    assert extract_captions(infile, tmp_path, "test1k", tmp_path, mine).images == 2


def test_ids_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("12\nCOCO_val2014_000000000042\trest\n\n")
    assert read_ids(path) == {12, 42}
    path.write_text("12\nnone\n")
    with pytest.raises(IntegrityError, match="no list of COCO's numbers"):
        read_ids(path)


@pytest.mark.parametrize("value", [[], {"images": 3}, {"images": [{"cocoid": 1}]}, {"annotations": []}])
def test_another_file_is_told(tmp_path: Path, value: Any) -> None:
    with pytest.raises(IntegrityError, match=r"no dataset_coco\.json"):
        extract_captions(write(tmp_path / "x.json", value), tmp_path, "valid", tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(IntegrityError, match="no JSON"):
        extract_captions(tmp_path / "x.json", tmp_path, "valid", tmp_path)
    with pytest.raises(UsageError, match="is not there"):
        extract_captions(tmp_path / "gone.json", tmp_path, "valid", tmp_path)


def test_a_sentence_without_its_text(tmp_path: Path) -> None:
    broken = {"images": [{"cocoid": 5, "split": "val", "sentences": [{"tokens": ["a"]}]}]}
    with pytest.raises(IntegrityError, match="image 5: has a sentence without 'raw'"):
        extract_captions(write(tmp_path / "x.json", broken), tmp_path, "valid", tmp_path)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        # as dataset_coco.json has them, image 391895
        (
            "A man with a red helmet on a small moped on a dirt road. ",
            "a man with a red helmet on a small moped on a dirt road",
        ),
        ("A background of cloud-wreathed mountains. ", "a background of cloud wreathed mountains"),
        ("The man's T-shirt, No_5!", "the man s t shirt no 5"),
        ("\tZwei  Hündchen\n", "zwei hündchen"),
        ("…", ""),
    ],
)
def test_tokens(caption: str, tokens: str) -> None:
    assert tokens_of(caption) == tokens.split()


def lists(root: Path) -> None:
    """The three files of family coco: a caption a record in train, all of an image in the others."""
    train = [
        {"caption": "B one", "image": "val2014/COCO_val2014_000000000003.jpg", "image_id": "coco_3"},
        {"caption": "A one.", "image": "train2014/COCO_train2014_000000000009.jpg", "image_id": "coco_9"},
        {"caption": "A two", "image": "train2014/COCO_train2014_000000000009.jpg", "image_id": "coco_9"},
    ]
    write(root / KARPATHY.format("train"), train)
    for split, number in (("val", 2), ("test", 4)):
        record = {"image": f"val2014/COCO_val2014_{number:012d}.jpg", "caption": [f"{split} x", f"{split} y"]}
        write(root / KARPATHY.format(split), [record])


def test_the_file_is_made_of_coco_s(tmp_path: Path) -> None:
    lists(tmp_path)
    out = tmp_path / "mscoco" / "dataset_coco.json"
    assert build_karpathy(tmp_path, out) == 4
    made = json.loads(out.read_text())
    assert list(made) == ["images", "dataset"] and made["dataset"] == "coco"
    shown = [(i["filename"], i["cocoid"], i["split"], i["imgid"], i["sentids"]) for i in made["images"]]
    assert shown == [
        ("COCO_train2014_000000000009.jpg", 9, "train", 0, [0, 1]),
        ("COCO_val2014_000000000002.jpg", 2, "val", 1, [2, 3]),
        ("COCO_val2014_000000000003.jpg", 3, "restval", 2, [4]),
        ("COCO_val2014_000000000004.jpg", 4, "test", 3, [5, 6]),
    ]
    assert made["images"][0]["sentences"][0] == {"tokens": ["a", "one"], "raw": "A one.", "imgid": 0, "sentid": 0}
    before = out.read_bytes()
    build_karpathy(tmp_path, out)
    assert out.read_bytes() == before
    assert extract_captions(out, tmp_path, "train", tmp_path).images == 2


def test_a_list_that_is_not_there_or_another(tmp_path: Path) -> None:
    lists(tmp_path)
    write(tmp_path / KARPATHY.format("test"), [{"image": "x"}])
    with pytest.raises(IntegrityError, match="without image, caption or COCO's number"):
        build_karpathy(tmp_path, tmp_path / "out.json")
    (tmp_path / KARPATHY.format("test")).unlink()
    with pytest.raises(UsageError, match="karpathy"):
        build_karpathy(tmp_path, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
