"""The report of a run: offline, escaped, complete, and patient with what is missing."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_ext.browse import write_page, write_run_report
from lavis_ext.browse.run_report import choose, duration, overlap, page_values, read_run
from lavis_ext.common.errors import DiskError
from tests.support.html import HOSTILE, Page


def job(folder: Path, said: str = "a red star") -> Path:
    """A job folder as a finished captioning run leaves it."""
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": s, "epoch": s // 20, "lr": 1e-4, "loss": 5 / s, "grad_norm": 1.0}
        | {"samples_per_s": 9.0, "data_wait": 0.1, "peak_memory_mb": 2048.0}
        for s in range(10, 41, 10)
    ]  # fmt: skip
    lines += [
        {
            "kind": "eval",
            "split": "val",
            "label": str(e),
            "step": 20 * (e + 1),
            "epoch": e,
            "metrics": {"CIDEr": 1.25 - e, "agg_metrics": 2},
        }
        for e in range(2)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "tr')
    facts = {
        "job": folder.name,
        "task": "captioning",
        "status": "finished",
        "datasets": ["toy"],
        "best": {"split": "val", "step": 20},
    }
    facts |= {
        "model": {"arch": "blip2_opt"},
        "started": "2025-11-21T14:03:11+0000",
        "seconds": 7500.0,
    }
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text("run:\n  task: captioning\n")
    gallery = folder / "result" / "gallery" / "val"
    gallery.mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(gallery / "toy_0.jpg")
    shot = {"id": 7, "group": "best", "said": said, "truths": ["A red star.", said], "image": "toy_0.jpg", "score": 0.5}
    (gallery / "index.json").write_text(json.dumps({"split": "val", "shots": [shot]}))
    return folder


def read(folder: Path, **kwargs: Any) -> tuple[str, Page]:
    text = write_run_report(folder, **kwargs).read_text(encoding="utf-8")
    return text, Page(text)


def test_a_whole_report(tmp_path: Path) -> None:
    _, page = read(job(tmp_path / "my-run"))
    assert not page.open
    assert page.count("svg") == 4
    assert page.count("figure", class_="shot") == 1
    assert page.count("tr", class_="marked") == 1
    for words in (
        "my-run",
        "finished",
        "blip2_opt",
        "21 Nov 2025, 14:03, took 2 h 05 min",
        "best CIDEr",
        "1.25",
        "a red star",
        "2.0 GiB",
    ):
        assert words in page.words
    assert "loss · step 10: 0.5" in page.words  # told where it is pointed at
    assert "task: captioning" in page.words


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    text, page = read(job(tmp_path))
    assert page.count("script") == 1
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", text)
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.fault("S10", "U09")
@pytest.mark.parametrize("place", ["caption", "id", "job", "error", "loss", "metric", "config", "fault", "data set"])
def test_hostile_text_stays_text(place: str, tmp_path: Path) -> None:
    folder = job(tmp_path / "run", said=HOSTILE if place == "caption" else "fine")
    rewrite(folder, place)
    _, page = read(folder)
    assert page.count("script") == 1
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert not page.open
    assert "alert('x')" in page.words or place in ("id",)


def rewrite(folder: Path, place: str) -> None:
    """Put the hostile text into one place of a job."""
    facts = json.loads((folder / "run.json").read_text())
    facts |= {"job": {"job": HOSTILE}, "error": {"error": HOSTILE}, "data set": {"datasets": [HOSTILE]}}.get(place, {})
    (folder / "run.json").write_text(json.dumps(facts))
    index = folder / "result" / "gallery" / "val" / "index.json"
    if place == "id":
        index.write_text(index.read_text().replace('"id": 7', json.dumps({"id": HOSTILE})[1:-1]))
    if place == "config":
        (folder / "config.yaml").write_text(HOSTILE)
    if place in ("loss", "metric"):
        old, new = ('"loss"', json.dumps(HOSTILE)) if place == "loss" else ('"CIDEr"', json.dumps(HOSTILE))
        (folder / "log.jsonl").write_text((folder / "log.jsonl").read_text().replace(old, new))
    if place == "fault":
        tally = {"seen": 9, "bad": 1, "reasons": {HOSTILE: 1}, "first": [{"id": HOSTILE}]}
        (folder / "faults.json").write_text(json.dumps({"train": {HOSTILE: tally}}))


@pytest.mark.parametrize("image", ["../../../run.json", "/etc/passwd", "missing.jpg", "index.json"])
def test_only_pictures_of_the_gallery_are_embedded(image: str, tmp_path: Path) -> None:
    folder = job(tmp_path)
    index = folder / "result" / "gallery" / "val" / "index.json"
    index.write_text(index.read_text().replace("toy_0.jpg", image))
    _, page = read(folder)
    assert not page.count("img")


@pytest.mark.parametrize(("asked", "title"), [("", "What the model wrote"), ("what is it?", "What the model answered")])
def test_what_nobody_wrote_about_is_not_ranked(asked: str, title: str, tmp_path: Path) -> None:
    folder = job(tmp_path)
    index = folder / "result" / "gallery" / "val" / "index.json"
    shots = [
        {"id": name, "group": group, "said": name, "asked": asked, "truths": [], "score": 0.0}
        for name, group in (("a", "best"), ("b", "worst"), ("c", "others"))
    ]
    index.write_text(json.dumps({"split": "val", "shots": shots}))
    [gallery] = page_values(read_run(folder))["galleries"]
    [(heading, found)] = gallery["groups"]
    assert (heading, [one["said"] for one in found], {one["score"] for one in found}) == (title, ["a", "b", "c"], {""})
    shots.append({"id": "d", "group": "best", "said": "d", "asked": asked, "truths": ["d"], "score": 1.0})
    index.write_text(json.dumps({"split": "val", "shots": shots}))
    [gallery] = page_values(read_run(folder))["galleries"]
    assert [[one["said"] for one in found] for _, found in gallery["groups"]] == [["d"], ["a", "b", "c"]]


def test_a_number_says_what_it_is(tmp_path: Path) -> None:
    record = {"kind": "eval", "split": "val", "label": "test", "step": 0, "epoch": 0, "metrics": {"Bleu_1": 0.25}}
    (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
    values = page_values(read_run(tmp_path))
    assert values["tiles"] == [("Bleu_1", "0.250", "on val, the model as loaded")]
    assert values["metrics"]["rows"][0][0] == "val, the model as loaded"
    assert page_values(read_run(job(tmp_path / "run")))["tiles"][0].hint == "on val, epoch 1"


def test_a_subset_is_marked(tmp_path: Path) -> None:
    folder = job(tmp_path)
    assert "subset:" not in read(folder)[1].words
    assert "subset:" in read(folder, data={"subset": True})[1].words
    (folder / "data.json").write_text('{"subset": true}')
    assert "subset:" in read(folder)[1].words


def test_faults_are_told(tmp_path: Path) -> None:
    folder = job(tmp_path)
    tally = {"seen": 1200, "bad": 3, "reasons": {"truncated": 3}, "first": [{"id": "coco/train#17"}]}
    (folder / "faults.json").write_text(
        json.dumps({"train": {"coco/train": tally}, "val": {"coco/val": {"seen": 5, "bad": 0}}})
    )
    _, page = read(folder)
    assert all(words in page.words for words in ("1,200", "truncated (3)", "coco/train#17"))
    assert "coco/val" not in page.words


def test_an_empty_folder_has_a_page_too(tmp_path: Path) -> None:
    _, page = read(tmp_path)
    assert tmp_path.name in page.words
    assert not page.count("svg")


def test_numbers_that_are_none_are_left_out_of_curves(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0, "lr": 1, "loss": NaN}\n')
    text, page = read(tmp_path)
    assert page.count("svg") == 1
    assert not re.search(r'(?:points|cx|cy)="[^"]*nan', text)


def test_the_examples_are_the_best_the_worst_and_some_between() -> None:
    groups = choose([i / 100 for i in range(100)], wanted=20, edge=3)
    assert [i for i, g in groups.items() if g == "best"] == [99, 98, 97]
    assert [i for i, g in groups.items() if g == "worst"] == [0, 1, 2]
    assert len(groups) <= 20


@pytest.mark.parametrize("count", [0, 1, 2, 5, 48, 49])
def test_few_examples_are_each_shown_once(count: int) -> None:
    assert len(choose([0.5] * count)) == min(count, len(choose([0.5] * count)))
    assert len(choose([0.5] * count)) >= min(count, 24)


def test_overlap_is_that_of_the_closest_reference() -> None:
    assert overlap("a red star", ["A red star.", "nothing alike"]) == 1.0
    assert overlap("a red star", ["a blue star"]) == pytest.approx(2 / 3)
    assert overlap("", []) == 0.0


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3720, "1 h 02 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


FOUND: dict[str, Any] = {
    "split": "val",
    "answer_types": [{"name": "yes/no", "questions": 3000, "accuracy": 33.333}],
    "question_types": [{"name": "<how many>", "questions": 2, "accuracy": 150}],
    "confusion": {"yes/no": {"yes/no": 3, "colour": 1}},
    "mistakes": [{"type": "yes/no", "truth": "yes", "said": "", "questions": 2}],
}


def read_answers(folder: Path, found: dict[str, Any]) -> str:
    (folder / "result" / "breakdown").mkdir(parents=True)
    (folder / "result" / "breakdown" / "val.json").write_text(json.dumps(found))
    return read(folder)[0]


def test_answers_are_told_by_kind(tmp_path: Path) -> None:
    text = read_answers(tmp_path, FOUND)
    for part in ("Answers on val", "3,000", "33.33", "&lt;how many&gt;", "colour", "(nothing)"):
        assert part in text
    assert "heat h100" in text  # no bar leaves its cell
    assert '3 <span class="share">75%</span>' in text


@pytest.mark.parametrize("found", [{}, {"confusion": 3}, {"answer_types": ["x"], "mistakes": None}])
def test_a_torn_breakdown_is_no_section(found: dict[str, Any], tmp_path: Path) -> None:
    assert "Answers on" not in read_answers(tmp_path, found)


def test_half_a_character_does_not_cost_the_report(tmp_path: Path) -> None:
    folder = job(tmp_path / "run")
    index = folder / "result" / "gallery" / "val" / "index.json"
    index.write_text(index.read_text().replace("a red star", "half \\ud83d"))
    assert "half ?" in read(folder)[1].words


def test_a_report_that_does_not_fit_leaves_the_old_one_and_no_part(tmp_path: Path) -> None:
    folder = job(tmp_path / "run")
    before, _ = read(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DiskError, match=r"report\.html"):
            write_page(str(folder), None, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / "report.html").read_text() == before
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


JUNK = [None, True, -1.5, float("nan"), float("inf"), "x", [], [None], ["x"], {}, {"a": 1}]


def spoilt(value: Any) -> Iterator[Any]:
    """A JSON value with something else in every place of it, one at a time."""
    yield from JUNK
    if isinstance(value, dict):
        yield from ({k: one for k, one in value.items() if k != key} for key in value)
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in places:
        for other in spoilt(inner):
            copied = value.copy()
            copied[key] = other
            yield copied


@pytest.mark.parametrize(
    "name", ["run.json", "faults.json", "data.json", "result/breakdown/val.json", "result/gallery/val/index.json"]
)
def test_whatever_stands_in_a_file_there_is_a_page(name: str, tmp_path: Path) -> None:
    folder = job(tmp_path / "run")
    tally = {"seen": 9, "bad": 3, "reasons": {"truncated": 3}, "first": [{"id": "a"}]}
    sound = {"faults.json": {"train": {"coco/train": tally}}, "data.json": {"subset": True}}
    sound["result/breakdown/val.json"] = FOUND
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    value = sound.get(name) or json.loads(file.read_text())
    for other in spoilt(value):
        file.write_text(json.dumps(other))
        assert page_values(read_run(folder))["run"].folder == folder


@pytest.mark.parametrize("line", [0, 3, 5])
def test_whatever_stands_in_the_log_there_is_a_page(line: int, tmp_path: Path) -> None:
    file = job(tmp_path / "run") / "log.jsonl"
    lines = file.read_text().splitlines()
    for other in spoilt(json.loads(lines[line])):
        file.write_text("\n".join([*lines[:line], json.dumps(other), *lines[line + 1 :]]))
        assert len(page_values(read_run(file.parent))["run"].steps) >= 3


def test_a_line_of_the_log_ends_at_its_newline_alone(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "train", "step": 1, "note": "a\u2028b"}\n', encoding="utf-8")
    assert len(read_run(tmp_path).steps) == 1


def test_small_splits_random_weights_and_the_numbers_of_files(tmp_path: Path) -> None:
    folder = job(tmp_path / "run")
    _, before = read(folder)
    assert not any(words in before.words for words in ("5 samples", "random", "val_epoch1.json"))
    facts = json.loads((folder / "run.json").read_text())
    facts |= {"samples": {"val": {"toy": 5}, "train": {"toy": 5000}}, "weights": "random"}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "result" / "val_epoch1.json").write_text("[]")
    _, page = read(folder)
    assert "val (5 samples), epoch 1" in page.words
    assert "result/val_epoch1.json is of epoch 2" in page.words
    assert "weights are random" in page.words
    for samples in (
        {"val": {"toy": 5, "stream": None}},
        {"val": {"toy": "many"}},
        {"val": 5},
        [],
        {"val": {"toy": 100}},
    ):
        (folder / "run.json").write_text(json.dumps({**facts, "samples": samples}))
        assert "samples)" not in read(folder)[1].words
