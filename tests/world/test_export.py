"""All families by the verb: the calls that are made, the row that a report becomes, and a family that fails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from lavis_ext.common.errors import NetworkError, UsageError
from lavis_ext.demo.world import World
from tests.world import export
from tests.world.export import FamilyState, prepare_every, registry_names, summarise, table

SMALL = {"train": 4, "val": 2, "test": 2, "hidden": 2}


def split(dataset: str, state: str, samples: int | None = 4, present: int = 4) -> dict[str, Any]:
    return {"dataset": dataset, "split": "x", "samples": samples, "expected": 4, "present": present, "state": state}


class Verb:
    """Remembers its calls; one family fails."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[list[str]] = []
        self.failing = failing
        self.environment: dict[str, str] = {}

    def __call__(self, words: list[str], environment: Mapping[str, str], log_file: Path) -> list[dict[str, Any]]:
        self.calls.append(words)
        self.environment = dict(environment)
        with urlopen(f"{environment['LAVIS_EXT_MIRROR']}/manifest.json") as response:
            assert response.status == 200
        if words[1] == self.failing:
            raise NetworkError("vg", "the line is dead", "wait")
        family, _, files = words[1].partition("/")
        names = [*registry_names(family), *([f"{family}/features"] if files else [])]
        return [{"splits": [split(name, "verified (subset)") for name in names]}, {"exit_code": 0}]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "SIZES", SMALL)


def test_each_family_is_prepared_from_the_served_mirror(tmp_path: Path) -> None:
    verb = Verb()
    states = prepare_every(tmp_path, 2, command=verb)
    assert [words[1].removesuffix("/*") for words in verb.calls] == [s.family for s in states] == list(export.EXPORTS)
    assert [words[1] for words in verb.calls if "*" in words[1]] == ["oscar/*", "vinvl/*"]
    assert all(words[0] == "prepare" and "--quiet" in words for words in verb.calls)
    assert [words[1] for words in verb.calls if "--max-samples" in words] == ["laion"]
    assert verb.environment["LAVIS_EXT_CACHE_ROOT"] == str(tmp_path / "cache")
    assert (tmp_path / "cache" / "nlvr" / "images" / "dev").is_dir()
    assert {state.state for state in states} == {"verified"} and not any(state.exit_code for state in states)
    drawn = (tmp_path / "mirror" / "manifest.json").stat().st_mtime_ns
    prepare_every(tmp_path, 2, ["vg"], verb)
    assert (tmp_path / "mirror" / "manifest.json").stat().st_mtime_ns == drawn


def test_a_family_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    states = prepare_every(tmp_path, 2, ["gqa", "vg", "nocaps"], Verb("vg"))
    assert [(state.state, state.exit_code) for state in states] == [("verified", 0), ("failed (4)", 4), ("verified", 0)]
    lines = table(states)
    assert lines[0].split() == export.HEAD
    assert lines[2].split()[:3] == ["vg", "vg_caption", "vg_vqa"] and "failed (4)" in lines[2]


def test_every_name_of_a_card_belongs_to_one_family() -> None:
    names = [name for family in export.EXPORTS for name in registry_names(family)]
    assert len(names) == len(set(names)) >= 16
    assert registry_names("coco") == ("coco_caption", "coco_retrieval") and registry_names("vqav2") == ("coco_vqa",)


def test_a_report_becomes_a_row_of_default_types_and_the_worst_state() -> None:
    splits = [split("a", "verified (subset)"), split("a", "partial", present=1), split("a[b]", "missing", None, 0)]
    state = summarise("f", ("a",), [{"splits": splits}, {"exit_code": 0}])
    assert (state.samples, state.images, state.expected, state.state) == (8, 5, 8, "partial")
    assert state.cells() == ["f", "a", "8", "5 of 8", "partial", "0.0"]
    assert summarise("f", ("a",), []).state == "missing"


def test_of_a_family_that_is_wanted_whole_its_files_are_counted() -> None:
    files = split("f/models", "partial (subset)", None, 3)
    state = summarise("f", ("a",), [{"splits": [split("a", "verified"), split("f/features", "verified"), files]}])
    assert (state.samples, state.images, state.expected, state.state) == (4, 7, 8, "partial")
    assert summarise("f", (), [{"splits": [split("f/models", "verified", None)]}]).state == "verified"


def test_a_table_is_aligned() -> None:
    assert table(()) == [] and table([FamilyState("f", ("a", "b"))])[1].startswith("f       a b")


def test_an_unknown_family_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'coco'"):
        export.export_world(World(), tmp_path / "m", ["coco", "cocoo"])
    assert not (tmp_path / "m").exists()
    assert "coco" in export.EXPORTS
