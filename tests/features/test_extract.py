"""Pictures through a detector: which are meant, how groups divide them, what a destination holds, what is named."""

import json
import re
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_ext.cli import main
from lavis_ext.cli.features import detector_name
from lavis_ext.common.errors import OwnedError, UsageError
from lavis_ext.features import create_store, open_store
from lavis_ext.features.detectors import DetectorOptions, build_detector
from lavis_ext.features.extraction.extract import Extracted, ExtractionRequest, extract, find_pictures, in_group
from lavis_ext.features.extraction.rows import RowFile, account_path
from lavis_ext.features.formats import format_of
from lavis_ext.features.store import FeatureRow, ReadOptions, Start
from tests.support.pictures import encoded, pixels
from tests.support.regions import FakeDetector, coco_names, draw

FULL = DetectorOptions(min_boxes=4, probabilities=True)


def run(source: Path, destination: Path, form: str = "volta-tsv", make: Any = None, **more: Any) -> Extracted:
    """Extract from one source."""
    request = ExtractionRequest([str(source)], destination, source.parent, form, **more)
    return extract(request, make or (lambda: FakeDetector(FULL)))


def rows_of(path: Path, form: str = "volta-tsv") -> list[FeatureRow]:
    """The rows of a file; fails where one is none."""
    found = list(format_of(form).read(path, ReadOptions(), Start()))
    assert all(isinstance(row, FeatureRow) for row in found), found
    return found  # type: ignore[return-value]


def fail() -> FakeDetector:
    raise AssertionError("a detector was made for nothing")


def test_rows_of_a_folder(tmp_path: Path) -> None:
    names = coco_names("val2014", 5)
    done = run(draw(tmp_path / "val2014", names), tmp_path / "out.tsv", batch_size=2)
    assert (done.images, done.present, done.added, done.missing) == (5, 5, 5, {})
    rows = rows_of(tmp_path / "out.tsv")
    assert [row.image_id for row in rows] == names
    assert [row.features[0, 0] for row in rows] == [40, 41, 42, 43, 44]
    assert [(row.height, row.width) for row in rows] == [(16, 24 + i) for i in range(5)]
    line = (tmp_path / "out.tsv").read_bytes().split(b"\r\n")[0].split(b"\t")
    assert len(line) == 13 and line[1:3] == [b"16", b"24"] and line[7] == b"4"


def test_a_second_run_makes_no_detector_and_changes_nothing(tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "in", ["a", "b"]), tmp_path / "out.tsv"
    run(pictures, out)
    before = out.read_bytes()
    assert run(pictures, out, make=fail).added == 0
    assert out.read_bytes() == before
    draw(pictures, ["a", "b", "c"])
    assert run(pictures, out).added == 1
    assert out.read_bytes().startswith(before) and [row.image_id for row in rows_of(out)] == ["a", "b", "c"]


@pytest.mark.parametrize("total", [1, 2, 3, 8, 50])
def test_groups_are_disjoint_and_complete(total: int) -> None:
    names = coco_names("train2014", 200)
    groups = [{name for name in names if in_group(name, group, total)} for group in range(total)]
    assert sum(map(len, groups)) == len(names) and set().union(*groups) == set(names)
    again = [{name for name in reversed(names) if in_group(name, group, total)} for group in range(total)]
    assert again == groups
    if total == 8:
        assert min(map(len, groups)) > 10


def test_groups_go_to_files_of_their_own(tmp_path: Path) -> None:
    pictures = draw(tmp_path / "in", coco_names("val2014", 12))
    done = [run(pictures, tmp_path / "out.tsv", group=g, total=3) for g in range(3)]
    assert [one.path.name for one in done] == ["out.tsv.0", "out.tsv.1", "out.tsv.2"]
    assert sorted(row.image_id for one in done for row in rows_of(one.path)) == coco_names("val2014", 12)
    assert not (tmp_path / "out.tsv").exists()


@pytest.mark.parametrize("form", ["volta-tsv", "lxmert-tsv", "butd-tsv"])
def test_forms(tmp_path: Path, form: str) -> None:
    run(draw(tmp_path / "in", ["a", "b"]), tmp_path / "out", form)
    assert [row.features.shape for row in rows_of(tmp_path / "out", form)] == [(4, 2048)] * 2


def test_a_store(tmp_path: Path) -> None:
    pictures = draw(tmp_path / "in", ["x", "y", "z"])
    done = run(pictures, tmp_path / "s", "store", dtype="float16")
    store = open_store(tmp_path / "s")
    assert done.present == len(store) == 3 and store.about.dtype == "float16" and list(store) == ["x", "y", "z"]
    assert store["y"].features[:, 0].tolist() == [41] * 4 and store["y"].box_unit == "pixel"
    assert store.about.sources[0]["format"] == "detector:fake" and store.about.sources[0]["made"]["conf"] is None
    draw(pictures, ["x", "y", "z", "z2"])
    assert run(pictures, tmp_path / "s", "store").added == 1
    assert [record.line for record in map(open_store(tmp_path / "s").at, range(4))] == [1, 2, 3, 4]


def test_labels_and_the_box_for_oscar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(encoded(pixels(number, 240, 320)))
    words = ("--detector", "tiny", "--geometry", "--min-boxes", 3, "--max-boxes", 3, "--nms", "agnostic", "--seed", 4)
    assert command(capsys, tmp_path / "in", tmp_path / "s", *words)[0] == 0
    store = open_store(tmp_path / "s")
    record = store["1"]
    assert store.columns == 2054 and record.features[:, 2050].tolist() == pytest.approx(record.boxes[:, 2] / 320)
    assert [label["rect"] for label in record.labels] == record.boxes.tolist()
    assert {label["class"] for label in record.labels} <= set(build_detector("tiny").classes)
    assert store.about.sources[0]["made"]["settings"]["nms"] == "agnostic"
    assert main(["features", "export", str(tmp_path / "s"), str(tmp_path / "features.tsv"), "--to", "oscar-tsv"]) == 0
    labels = (tmp_path / "predictions.tsv").read_text().splitlines()
    assert [json.loads(line.split("\t")[1]) for line in labels] == [store.at(row).labels for row in range(2)]
    capsys.readouterr()
    draw(tmp_path / "in", ["new"])
    _, _, text = command(capsys, tmp_path / "in", tmp_path / "s", *words[:-1], 5)
    assert "weights 'drawn from seed 4', now 'drawn from seed 5'" in text and "layers" not in text


def test_a_zip_a_single_file_and_a_folder_below(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "val2014", ["a", "b"])
    (tmp_path / "in" / "val2014" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "val2014" / ".c.png").write_bytes(b"hidden")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        for name in ("a", "b"):
            archive.write(tmp_path / "in" / "val2014" / f"{name}.png", f"test2015/{name}2.png")
    single = draw(tmp_path / "one", ["single"]) / "single.png"
    sources = [str(tmp_path / "in"), str(tmp_path / "more.zip"), str(single)]
    found = find_pictures(sources, tmp_path)
    assert [picture.image_id for picture in found] == ["a", "a2", "b", "b2", "single"]
    assert all(picture.size() == len(picture.read()) > 0 for picture in found)


def test_two_pictures_of_one_id_are_told(tmp_path: Path) -> None:
    for folder in ("p", "q"):
        draw(tmp_path / "in" / folder, ["same"])
    with pytest.raises(UsageError, match=r"q/same\.png: has the id of .*p/same\.png"):
        find_pictures([str(tmp_path / "in")], tmp_path)
    assert len(find_pictures([str(tmp_path / "in" / "p")] * 2, tmp_path)) == 1


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nowhere", "no family"),
        ("empty", "holds no pictures"),
        ("notes.txt", "neither a folder"),
        ("coco_caption", "lavis-ext prepare coco_caption"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, source: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=told):
        find_pictures([source], tmp_path)


def test_a_family_that_is_prepared(tmp_path: Path) -> None:
    draw(tmp_path / "coco" / "images" / "val2014", coco_names("val2014", 2))
    draw(tmp_path / "coco" / "images" / "train2014", coco_names("train2014", 1))
    assert len(find_pictures(["coco"], tmp_path)) == len(find_pictures(["coco_caption"], tmp_path)) == 3
    assert [p.image_id for p in find_pictures(["coco/val2014"], tmp_path)] == coco_names("val2014", 2)


def test_pictures_that_cannot_be_read_are_named_and_tried_again(tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "in", ["a", "b", "c", "d"]), tmp_path / "out.tsv"
    whole = (pictures / "b.png").read_bytes()
    (pictures / "b.png").write_bytes(whole[:40])
    (pictures / "c.png").write_bytes(b"")
    done = run(pictures, out, batch_size=1)
    assert (done.images, done.present, done.added) == (4, 2, 2)
    assert "damaged" in done.missing["b"] and "empty" in done.missing["c"] and "c.png" in done.missing["c"]
    assert json.loads(account_path(out).read_text())["faults"] == done.missing
    (pictures / "b.png").write_bytes(whole)
    assert list(run(pictures, out).missing) == ["c"]
    assert [row.image_id for row in rows_of(out)] == ["a", "d", "b"]


def test_an_id_that_a_row_cannot_hold_is_named(tmp_path: Path) -> None:
    done = run(draw(tmp_path / "in", ["a\tb", "c"]), tmp_path / "out.tsv")
    assert list(done.missing) == ["a\tb"] and len(rows_of(tmp_path / "out.tsv")) == 1


def test_other_settings_are_refused(tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "in", ["a"]), tmp_path / "out.tsv"
    run(pictures, out)
    draw(pictures, ["a", "b"])
    with pytest.raises(UsageError, match="other settings: boxes 4, now 9"):
        run(pictures, out, make=lambda: FakeDetector(DetectorOptions(min_boxes=9, probabilities=True)))
    assert len(rows_of(out)) == 1


def test_rows_of_unknown_origin_are_not_added_to(tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "in", ["a"]), tmp_path / "out.tsv"
    run(pictures, out)
    account_path(out).unlink()
    with pytest.raises(UsageError, match="how they were made"):
        run(draw(tmp_path / "in", ["a", "b"]), out)
    with create_store(tmp_path / "s") as writer:
        writer.append(FeatureRow("a", np.zeros((1, 2048), np.float32)))
    with pytest.raises(UsageError, match="how they were made"):
        run(pictures, tmp_path / "s", "store")


def test_a_column_that_the_detector_lacks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no cls_prob, attrs, classes, which volta-tsv needs"):
        run(draw(tmp_path / "in", ["a"]), tmp_path / "out.tsv", make=lambda: FakeDetector(DetectorOptions()))


def test_half_a_row_is_cut_off(tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "in", ["a", "b", "c"]), tmp_path / "out.tsv"
    run(pictures, out)
    whole = out.read_bytes()
    for cut in (1, 3, 1000):
        out.write_bytes(whole[:-cut])
        assert run(pictures, out).added == 1
        assert out.read_bytes() == whole


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "in", ["a"]), tmp_path / "out.tsv"
    with RowFile(out, "volta-tsv"), pytest.raises(OwnedError):
        run(pictures, out)
    assert run(pictures, out).added == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.tsv.extraction.json", "in", "out.tsv"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"total": 4}, "needs --group_id"),
        ({"group": 4, "total": 4}, "none of 4 groups"),
        ({"group": -1, "total": 4}, "none of 4 groups"),
        ({"total": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"dtype": "float16"}, "into a store"),
    ],
)
def test_requests_that_cannot_be_meant(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        ExtractionRequest(["x"], tmp_path / "out.tsv", tmp_path, "volta-tsv", **more)


def test_a_failure_of_the_detector_keeps_what_was_done(tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "in", ["a", "b", "c"]), tmp_path / "out.tsv"

    class Failing(FakeDetector):
        def detect(self, images: Any) -> Any:
            if len(self.calls) == 2:
                raise RuntimeError("out of memory")
            return super().detect(images)

    with pytest.raises(RuntimeError):
        run(pictures, out, make=lambda: Failing(FULL), batch_size=1)
    assert [row.image_id for row in rows_of(out)] == ["a", "b"]
    assert run(pictures, out).added == 1


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, objects, and the text for a person, of `lavis-ext features extract`."""
    code = main(["features", "extract", *map(str, words), "--json", "--quiet"])
    said = capsys.readouterr()
    return code, [json.loads(line) for line in said.out.splitlines()][:-1], said.err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = draw(tmp_path / "in", ["a", "b"])
    detector = ("--detector", "fake_regions")
    code, objects, text = command(capsys, pictures, tmp_path / "x.tsv", *detector, "--min-boxes", 36, "--max-boxes", 36)
    assert code == 0 and objects[0]["present"] == 2 and "2 of 2 images, 2 extracted now" in text
    assert [len(row.features) for row in rows_of(tmp_path / "x.tsv")] == [36, 36]
    code, objects, _ = command(capsys, pictures, tmp_path / "s", *detector, "--dtype", "float16")
    assert code == 0 and open_store(tmp_path / "s").about.dtype == "float16"
    (pictures / "b.png").write_bytes(b"{}")
    code, objects, text = command(capsys, pictures, tmp_path / "y.tsv", *detector)
    assert code == 8 and list(objects[0]["missing"]) == ["b"] and "b: not an image: a JSON document" in text
    assert command(capsys, pictures, tmp_path / "y.tsv", *detector, "--tolerance", 0.5)[0] == 0
    assert main(["features", "merge", str(tmp_path / "x.tsv"), str(tmp_path / "y.tsv"), "--quiet"]) == 5
    assert "1 images occur twice with other numbers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--detector .*is needed"),
        (["--detector", "butt"], "butd_r101_c4"),
        (["--detector", "fake_regions", "--model-type", "huge"], "names no detector"),
        (["--detector", "fake_regions", "--to", "h5"], "is not what extraction writes"),
        (["--detector", "fake_regions", "--group_id", "2"], "none of 1 groups"),
        (["--detector", "fake_regions", "--total-group", "2"], "needs --group_id"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_words_that_cannot_be_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    code, _, text = command(capsys, draw(tmp_path / "in", ["a"]), tmp_path / "x.tsv", *words)
    assert code == 2 and re.search(told, text), text


@pytest.mark.parametrize(
    ("name", "model_type", "found"),
    [("tiny", "", "tiny"), ("butd", "", "butd_r101_c4"), ("butd", "tiny", "tiny"), ("vinvl", "", "vinvl_x152_c4")],
)
def test_names_of_detectors(name: str, model_type: str, found: str) -> None:
    assert detector_name(name, model_type) == found


def test_the_tiny_detector_fills_all_columns(tmp_path: Path) -> None:
    make = partial(build_detector, "tiny", DetectorOptions(min_boxes=5, max_boxes=5, probabilities=True))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(encoded(pixels(3, 240, 320)))
    run(tmp_path / "in", tmp_path / "out.tsv", make=make)
    assert [row.features.shape for row in rows_of(tmp_path / "out.tsv")] == [(5, 2048)]
