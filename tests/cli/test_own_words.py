"""What the verbs say of a person's own photographs: how far they looked, where they lie, and a way out that helps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavis_ext import load_dataset
from lavis_ext.cli import main
from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import IntegrityError, PartialError, UsageError
from lavis_ext.datasets.own import guess
from lavis_ext.datasets.readers.faults import FaultLog, SampleError
from lavis_ext.datasets.readers.tables import table_rows

Said = Callable[..., tuple[int, str]]
COUNT = 6


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a verb in an empty folder: its exit code, and all that it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "cache"))

    def run(*words: str) -> tuple[int, str]:
        code = main(list(words))
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def photos(folder: Path, captions: bool = True) -> Path:
    """Six photographs of noise, each with a text beside it."""
    folder.mkdir()
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        if captions:
            (folder / f"{number}.txt").write_text(f"a bird number {number}\n")
    return folder


def damaged(folder: Path) -> Path:
    """Photographs of which one is cut off, and one a text."""
    photos(folder)
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:300])
    (folder / "2.jpg").write_text("no picture")
    return folder


def test_how_far_was_looked_is_said(said: Said, tmp_path: Path) -> None:
    damaged(tmp_path / "photos")
    code, shown = said("new", "birds", "photos")
    assert code == 0 and "verify birds --configs birds --deep" in shown
    code, shown = said("check", "birds")
    assert code == 0 and "existence only" in shown and "verify birds --configs birds --deep" in shown
    code, shown = said("verify", "birds", "--configs", "birds")
    assert code == 0 and "existence only" in shown and "--deep" in shown
    code, shown = said("verify", "birds", "--configs", "birds", "--deep")
    assert code == 5 and "1.jpg" in shown and "2.jpg" in shown and "existence" not in shown
    assert said("verify", "coco_caption")[1].count("existence") == 0, "what is fetched has hashes"


def test_a_page_of_bad_pictures_says_so_in_the_terminal(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged(tmp_path / "photos")
    with caplog.at_level("WARNING"):
        assert said("browse", "photos", "--out", "page.html")[0] == 0
    assert [r.getMessage() for r in caplog.records if "2 of 6 pictures" in r.getMessage()]


def test_the_words_of_a_run_that_lost_own_pictures_work(said: Said, tmp_path: Path) -> None:
    damaged(tmp_path / "photos")
    assert said("new", "birds", "photos")[0] == 0
    run = ("train", "--cfg-path", "birds/train.yaml", "--options", "run.max_epoch=1", "run.num_workers=0")
    code, shown = said(*run)
    assert code == 8 and "--repair" not in shown
    words = re.search(r"`lavis-ext (verify .*?)`", shown)
    assert words and said(*words[1].split())[0] == 5
    raised = re.search(r"--options (\S+tolerance=\S+)", shown)
    assert raised and said(*run, raised[1])[0] == 0


@pytest.mark.parametrize(("bad", "seen"), [(29, 100), (1, 3), (1, 7), (7, 100), (99, 100)])
def test_the_tolerance_that_is_named_would_do(bad: int, seen: int) -> None:
    def lost(tolerance: float) -> FaultLog:
        log = FaultLog(tolerance)
        log.seen("birds", "train", seen)
        for number in range(bad):
            log.record("birds", "train", SampleError(f"birds/train#{number}", f"{number}.jpg", "image is missing"))
        return log

    with pytest.raises(PartialError) as error:
        lost(0.0).check(final=True)
    named = re.search(r"datasets\.birds\.tolerance=([\d.]+)", str(error.value))
    assert named and float(named[1]) - bad / seen < 0.02
    lost(float(named[1])).check(final=True)


def test_a_card_is_fetched_again() -> None:
    log = FaultLog()
    log.seen("coco_caption", "val", 1)
    log.record("coco_caption", "val", SampleError("coco_caption/val#0", "a.jpg", "image is missing"))
    with pytest.raises(PartialError, match="verify coco_caption --deep --repair"):
        log.check(final=True)


def test_a_folder_that_declares_one_data_set_is_it(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path / "photos")
    assert said("new", "birds", "photos", "--out", "mine")[0] == 0
    file = tmp_path / "mine" / "datasets" / "birds" / "defaults.yaml"
    for place in ("mine", str(file)):
        code, shown = said("browse", place, "--out", "page.html")
        assert code == 0 and (tmp_path / "page.html").is_file(), shown
        assert set(load_dataset(tmp_path / place)) == {"train", "val"}
    for verb in ("show", "verify"):
        code, shown = said(verb, "mine")
        assert code == 2 and "birds --configs mine" in shown
        assert said(verb, "birds", "--configs", "mine")[0] == 0
    assert said("new", "others", "mine")[0] == 2, "it is declared already"

    assert said("new", "gulls", "photos", "--out", "mine2")[0] == 0
    (tmp_path / "mine2" / "datasets" / "gulls").rename(tmp_path / "mine" / "datasets" / "gulls")
    code, shown = said("browse", "mine")
    assert code == 2 and "birds" in shown and "gulls" in shown
    words = re.search(r"`lavis-ext (browse .*?)`", shown)
    assert words and said(*words[1].split(), "--out", "page.html")[0] == 0
    with pytest.raises(UsageError) as error:
        load_dataset("mine")
    told = str(error.value)
    assert "lavis-ext" not in told and "LAVIS_EXT_CONFIGS" in told
    call = re.search(r"load_dataset\('(\w+)', cfg_path='(.*?)'\)", told)
    assert call and set(load_dataset(call[1], cfg_path=call[2])) == {"train", "val"}


def test_what_new_wrote_is_said_where_data_are_wrong(said: Said, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", captions=False)
    lines = [f"{number}.jpg,a bird" for number in range(COUNT + 1)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    code, shown = said("new", "birds", "photos")
    assert code == 3 and "6.jpg" in shown and "lavis-ext check birds" in shown
    written = re.findall(r"written: (\S+)", shown)
    assert sorted(written) == sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "birds").rglob("*.yaml"))
    assert len(written) == 3


def test_nothing_is_offered_that_could_not_be_scored(said: Said, tmp_path: Path) -> None:
    photos(tmp_path / "bare", captions=False)
    code, shown = said("new", "birds", "bare")
    assert code == 0 and "captions.csv" in shown and "x.txt" in shown
    assert "lavis-ext train" not in shown and "lavis-ext evaluate" not in shown
    assert [path.name for path in (tmp_path / "birds").rglob("*.yaml")] == ["defaults.yaml"]
    assert said("check", "birds")[0] == 0 and list(load_dataset("bare")) == ["test"]
    assert guess("bare").told is False


def test_own_data_are_shown_as_what_they_are(said: Said, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    assert said("new", "birds", "photos")[0] == 0
    code, shown = said("show", "birds", "--configs", "birds")
    assert code == 0 and "lavis-ext prepare" not in shown and "hash" not in shown
    assert str(folder) in shown and "train: 5 samples" in shown and "val: 1 sample," in shown
    assert "browse birds --configs birds" in shown
    code, shown = said("list", "birds", "--configs", "birds")
    size = sum(path.stat().st_size for path in folder.glob("*.jpg"))
    assert code == 0 and f"{size / 1000:.1f} kB" in shown and "?" not in shown
    assert not load_cards().words_of_own("coco_caption")


@pytest.mark.parametrize(
    ("name", "sign", "word"), [("c.csv", ",", "comma"), ("c.tsv", "\t", "tab"), ("c.csv", ";", "semicolon")]
)
def test_the_sign_that_is_too_many_has_its_name(name: str, sign: str, word: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(f"image{sign}caption\na.jpg{sign}a{sign} b\n")
    with pytest.raises(IntegrityError) as error:
        table_rows(tmp_path / name, delimiter=sign)
    assert word in str(error.value) and "fetch" not in str(error.value)
