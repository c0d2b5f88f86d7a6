"""One plan, one inspection an artifact: what `--dry-run` prints is what runs, and few files are entered for it."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import lavis_ext
from lavis_ext.cli import main
from lavis_ext.common.config.cards import load_cards
from lavis_ext.demo.world import World
from lavis_ext.prepare import execute_plan, plan
from tests.support.server import Fault, Server
from tests.support.toyfamily import Family
from tests.world.export import export_world

PACKAGE = Path(lavis_ext.__file__).parent
FILES = 42
"""Of the package, to `prepare coco_caption --split val` from a folder: 56 where the plan was made three times.

By itself; behind other tests, which have looked up the names, it is one less."""
FUNCTION = 0x2
"""A code object's flag for a function; bodies of modules and classes are not entered but executed."""


@contextmanager
def entered() -> Iterator[Counter[tuple[str, str]]]:
    """(file below the package, function) → how often it was entered, in all threads."""
    seen: Counter[tuple[str, str]] = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & FUNCTION and code.co_filename.startswith(f"{PACKAGE}/"):
            seen[code.co_filename.removeprefix(f"{PACKAGE}/"), code.co_name] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def count(seen: Counter[tuple[str, str]], function: str) -> int:
    return sum(times for (file, name), times in seen.items() if name == function and file.startswith("prepare/"))


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a command that prepares two artifacts of a small COCO."""
    export_world(World(seed=1, train=12, val=4, test=4, hidden=2), tmp_path / "mirror")
    monkeypatch.setenv("LAVIS_EXT_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "cache"))
    return ["prepare", "coco_caption", "--split", "val"]


def test_two_artifacts_are_planned_and_inspected_once_each(
    coco: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in range(3):
        (tmp_path / str(run)).mkdir()
        monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / str(run)))  # so that the cards are typed in each run
        with entered() as seen:
            assert main([*coco, *(["--dry-run"] if run == 0 else [])]) == 0
        assert count(seen, "plan_item") == count(seen, "inspect") == 2, run
        if run == 1:
            assert len({file for file, _ in seen}) <= FILES, sorted({file for file, _ in seen})


def test_cards_are_read_and_typed_once(coco: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "configs/datasets/mine/artifacts.yaml"
    card.parent.mkdir(parents=True)
    card.write_text("family: mine\nartifacts:\n  one: {url: https://x.org/a, storage: mine/a}\n")
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "configs"))
    with entered() as seen:
        assert main(coco) == 0 and main(["status", "coco"]) == 0
    assert seen["common/config/cards.py", "_build_card"] == len(load_cards().families)
    assert list(load_cards().families["mine"].artifacts) == ["one"] and load_cards() is load_cards()
    card.write_text(card.read_text().replace("one:", "another:"))
    assert list(load_cards().families["mine"].artifacts) == ["another"]


HERE: dict[str, Callable[[Family], object]] = {
    "nothing": lambda toy: None,
    "part of a download": lambda toy: cut(toy),
    "an archive": lambda toy: put(toy, "images/train.zip", toy.blobs["train.zip"]),
    "another file": lambda toy: put(toy, "annotations/val.json", b"mine"),
    "some samples": lambda toy: toy.prepare(max_samples=2),
    "a member lost": lambda toy: (toy.prepare(), (toy.images / "train/000003.jpg").unlink()),
    "everything": lambda toy: toy.prepare(),
}


def cut(toy: Family) -> None:
    toy.server.script(toy.path("train.zip"), Fault(cut_at=20_000, times=9))
    toy.prepare(splits=["train"])
    toy.server.script(toy.path("train.zip"))


def put(toy: Family, name: str, data: bytes) -> None:
    path = toy.root / "toy" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data)


@pytest.mark.parametrize("here", list(HERE))
def test_the_plan_that_is_shown_is_the_plan_that_runs(server: Server, tmp_path: Path, here: str) -> None:
    toy = Family(server, tmp_path / "root")
    HERE[here](toy)
    made = plan(["toy"], toy.options(), toy.cards())
    shown = json.dumps(made.as_dict())
    sent = server.sent()
    with entered() as seen:
        report = execute_plan(made)
    assert report.plan is made and json.dumps(made.as_dict()) == shown
    assert count(seen, "inspect") == count(seen, "plan_item") == count(seen, "make_plan") == 0
    assert report.exit_code == 0 and {one.title for one in report.outcomes} == {item.title for item in made.items}
    moved = server.sent() - sent
    assert abs(moved - made.download) <= 0.05 * moved, "the manifest is asked for too"
    assert toy.prepare().bytes_moved == 0
