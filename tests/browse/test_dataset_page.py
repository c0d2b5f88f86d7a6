"""The page of a data set: every shape, escaped, offline, honest about what is missing, damaged or not prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.browse import write_page
from lavis_ext.browse.dataset_page import write_dataset_page
from lavis_ext.browse.views import choose
from lavis_ext.cli import main
from lavis_ext.common.errors import DiskError, UsageError
from lavis_ext.datasets.builders import NotPreparedError
from tests.support.families import coco_captions, coco_name, flickr30k, minigpt4, nlvr, nocaps, snli_ve, vg, vqav2
from tests.support.html import HOSTILE, Page
from tests.support.pictures import write_json
from tests.support.shards import write_shard

TRAIN = "coco/annotations/coco_karpathy_train.json"


def look(name: str, root: Path, **kwargs: Any) -> tuple[str, Page]:
    text = write_dataset_page(name, root / "page.html", root, **kwargs).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    return text, page


def test_a_page_tells_what_it_is_and_what_lies_here(tmp_path: Path) -> None:
    coco_captions(tmp_path)
    _, page = look("coco_caption", tmp_path)
    for words in ("coco_caption", "Microsoft COCO", "Annotations CC BY 4.0", "lin2014coco", "train2014.zip"):
        assert words in page.words
    for words in ("blip_caption", "image_size: 224", "Words in a caption", "all 6 rows", "32 × 24 pixels"):
        assert words in page.words
    assert page.count("figure", class_="shot") == 6 + 3 + 3
    assert page.count("img") == 12 + 2 * page.count("figure", class_="shot drawn") + 6
    assert page.count("figure", class_="shot same") == 6  # the pictures of val are those of test
    assert "A thing, 0." in page.words and "cocodataset.org" in page.words


@pytest.mark.parametrize(
    ("write", "name", "words"),
    [
        (vqav2, "coco_vqa", ["What is in picture 1, please?", "net ×7", "a net ×2", "netting", "Answers given most"]),
        (nlvr, "nlvr", ["Labels", "True", "Counted in train"]),
        (snli_ve, "snli_ve", ["entailment", "Labels"]),
        (flickr30k, "flickr30k", ["train", "val", "test"]),
        (nocaps, "nocaps", ["caption 0", "caption 1", "no text"]),
        (vg, "vg", ["Figures of vg_caption", "Figures of vg_vqa", "a red thing", "yes."]),
        (minigpt4, "cc_sbu_align", ["The image shows a thing. It is: 3!"]),
    ],
)
def test_every_shape_shows_its_texts_and_all_its_pictures(
    write: Any, name: str, words: list[str], tmp_path: Path
) -> None:
    write(tmp_path)
    _, page = look(name, tmp_path)
    assert [text for text in words if text not in page.words] == []
    shots = page.count("figure", class_="shot")
    drawn, same = (page.count("figure", class_=f"shot {kind}") for kind in ("drawn", "same"))
    sides = 2 if name == "nlvr" else 1
    assert shots and page.count("img") == shots * sides + drawn * (1 + sides) + same
    assert not page.count("div", class_="lost")


def test_shards_show_the_first_samples_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "laion/laion_coco/images"
    for number in range(2):
        captions = {"top_caption": "picture 1", "all_captions": ["worse", f"best of {number}"]}
        write_shard(folder, number, 30, manifest=True, **captions, all_similarities=[0.1, 0.9])
    out = tmp_path / "own/datasets/mine"
    out.mkdir(parents=True)
    args = "{captions_key: all_captions, scores_key: all_similarities}"
    storage = f"build_info: {{storage: '{folder}/*.tar'}}"
    (out / "d.yaml").write_text(f"datasets: {{mine: {{builder: image_text_shards, {storage}, args: {args}}}}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "own"))
        _, page = look("mine", tmp_path)
    assert page.count("figure", class_="shot") == 30
    assert "30 of 60 samples, the first of a shard" in page.words
    assert "best of 0" in page.words and "best of 1" not in page.words
    assert "all 30 samples of the shard 00000.tar" in page.words


@pytest.mark.fault("S10", "U09")
@pytest.mark.parametrize("place", ["caption", "answer", "choice", "label", "picture", "title"])
def test_hostile_text_stays_text(place: str, tmp_path: Path) -> None:
    row = {
        "image": HOSTILE if place == "picture" else coco_name("train2014", 1),
        "question": "What?",
        "caption": "fine",
    }
    row |= {"caption": {"caption": HOSTILE}, "answer": {"answer": [HOSTILE]}, "choice": {"choices": [HOSTILE]}}.get(
        place, {}
    )
    row |= {"label": {"label": HOSTILE}}.get(place, {})
    write_mine(tmp_path, [row], title=HOSTILE if place == "title" else "Mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "own"))
        _, page = look("mine", tmp_path)
    assert page.count("script") == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "alert('x')" in page.words
    assert all(str(a["src"]).startswith("data:image/jpeg;base64,") for _, a in page.tags if "src" in a)


def write_mine(root: Path, rows: list[dict[str, Any]], title: str = "Mine") -> None:
    """A data set of one's own over COCO's pictures, of the shape of captions."""
    coco_captions(root)
    write_json(root / "rows.json", rows)
    folder = root / "own/datasets/mine"
    folder.mkdir(parents=True)
    files = {"annotations": {"train": {"storage": "rows.json"}}, "images": {"storage": "coco/images"}}
    dataset = {"builder": "image_caption", "build_info": files}
    (folder / "defaults.yaml").write_text(json.dumps({"datasets": {"mine": dataset}}))
    (folder / "artifacts.yaml").write_text(json.dumps({"family": "mine", "title": title, "homepage": "javascript:x"}))


def test_rows_of_any_kind_are_no_trouble(tmp_path: Path) -> None:
    odd = [{}, {"image": None}, {"image": 7, "caption": 3}, {"image": "../../etc/passwd", "caption": ["", None, {}]}]
    write_mine(tmp_path, [*odd, {"image": coco_name("train2014", 1), "caption": "\0a\ud800 word " * 500}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "own"))
        text, page = look("mine", tmp_path)
    assert page.count("img") == 1 and page.count("div", class_="lost") == 4
    assert "\N{REPLACEMENT CHARACTER}a" in page.words
    assert "javascript:x" in page.words and 'href="javascript' not in text


def test_pictures_that_cannot_be_read_have_a_counted_place(tmp_path: Path) -> None:
    coco_captions(tmp_path)
    images = tmp_path / "coco/images"
    (images / coco_name("train2014", 1)).write_bytes(b"<html>gone</html>")
    damaged = images / coco_name("train2014", 2)
    damaged.write_bytes(damaged.read_bytes()[:200])
    (images / coco_name("train2014", 3)).unlink()
    _, page = look("coco_caption", tmp_path)
    assert page.count("div", class_="lost") == 6  # two captions each
    assert "6 without a picture:" in page.words
    for reason in ("not an image (2)", "image is missing (2)", "image is damaged or cut off (2)"):
        assert reason in page.words
    assert "1 missing images" in page.words and f"train  {coco_name('train2014', 3)}" in page.words


def test_the_badge_is_that_of_the_least_split(tmp_path: Path) -> None:
    coco_captions(tmp_path)
    assert look("coco_caption", tmp_path)[1].words.count("partial") == 0
    (tmp_path / "coco/annotations/coco_karpathy_val.json").unlink()
    text, page = look("coco_caption", tmp_path)
    assert '<span class="badge warn">partial</span>' in text and page.count("figure", class_="shot") == 9
    for picture in (tmp_path / "coco/images").rglob("*.jpg"):
        picture.unlink()
    (tmp_path / "coco/annotations/coco_karpathy_test.json").unlink()
    text, page = look("coco_caption", tmp_path)
    assert '<span class="badge bad">missing</span>' in text and page.count("div", class_="lost") == 6


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    coco_captions(tmp_path)
    text, page = look("coco", tmp_path)
    assert "default-src 'none'" in text
    assert all(str(a["src"]).startswith("data:image/jpeg;base64,") for tag, a in page.tags if "src" in a)
    assert {tag for tag, a in page.tags if "href" in a and a["href"] != "data:,"} == {"a"}
    assert page.count("script") == 1 and "url(" not in text


def test_a_family_tells_of_what_is_not_there(tmp_path: Path) -> None:
    coco_captions(tmp_path)
    _, page = look("coco", tmp_path)
    assert "Samples of coco_retrieval" in page.words and "Samples of coco_vqa" not in page.words
    assert "run lavis-ext prepare coco_vqa" in page.words
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert {f"#{name}" for name in ids} == {a["href"] for tag, a in page.tags if str(a.get("href")).startswith("#")}


def test_samples_are_spread_evenly_or_drawn_by_a_seed(tmp_path: Path) -> None:
    assert choose(100, 4) == [0, 25, 50, 75]
    assert choose(3, 24) == [0, 1, 2]
    assert choose(100, 4, 1) == choose(100, 4, 1) != choose(100, 4, 2)
    coco_captions(tmp_path)
    _, page = look("coco_caption", tmp_path, samples=2, seed=3)
    assert page.count("figure", class_="shot") == 6
    assert "2 of 6 samples, drawn by seed 3" in page.words


def test_what_is_not_prepared_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotPreparedError, match="lavis-ext prepare coco_caption"):
        look("coco_caption", tmp_path)
    with pytest.raises(NotPreparedError, match="lavis-ext prepare coco"):
        look("coco", tmp_path)
    with pytest.raises(UsageError, match="holds files"):
        look("vinvl", tmp_path)
    with pytest.raises(UsageError, match="coco_caption"):
        write_page("coco_captoin", None, tmp_path)


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    coco_captions(tmp_path)
    with pytest.raises(DiskError, match="--out"):
        write_dataset_page("coco_caption", tmp_path / TRAIN / "page.html", tmp_path, samples=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").touch()
    assert write_page(str(tmp_path / "run"), None, tmp_path) == tmp_path / "run/report.html"
    with pytest.raises(DiskError, match="--out"):
        write_page(str(tmp_path / "run"), tmp_path / TRAIN / "page.html", tmp_path)


def test_the_verb_writes_beside_where_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_captions(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path))
    assert main(["browse", "coco_caption", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == {"report": "coco_caption.html"}
    assert main(["browse", "coco_caption[default]", "--out", "mine.html", "--seed", "4"]) == 0
    assert {path.name for path in Path().iterdir()} == {"coco_caption.html", "mine.html"}
    assert main(["browse", "flickr30k"]) == 8
