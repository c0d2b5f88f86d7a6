"""The mutation of inputs finds defects, hangs and crashes; and what it found once is read, or refused, since."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from lavis_ext.common.errors import IntegrityError
from tests.faults import fuzz, fuzz_targets
from tests.faults.fuzz import Slow, mutate, run_case
from tests.faults.fuzz_targets import TARGETS, edited

DEEP = b"[" * 100_000
FOUND: list[tuple[str, Any]] = [
    ("run", b"datasets:\n  minigp"),
    ("run", b"model: {arch: blip2_opt, model_type: tiny}\ndatasets:\n  coco_caption:\n    vis_"),
    ("run", b"1: 2\nmodel: {arch: blip2_opt}\nrun: {task: vqa}\n"),
    ("run", b"run: {task: vqa, output_dir: '${a}'}\n"),
    ("run", b"run: &a {task: vqa, b: *a}\n"),
    ("run", b"datasets: {coco_caption: {build_info: {annotations: {val: 2020-01-01}}}}\nrun: {task: captioning}\n"),
    ("run", b"datasets: {conceptual_caption_3m: {vis_processor: {train: []}}}\nrun: {task: captioning}\n"),
    ("card", b"family: zoo\ndatasets: zoo_\n"),
    ("card", b"family: zoo\nartifacts: {a: {url: https://x/a, storage: z/a}}\ndatasets: {builder: image_caption}\n"),
    ("options", [("run.seed", "{a"), ("run", "zoo")]),
    ("annotations", ("a.json", b'{"images": [{"id": [], "file_name": "a.jpg"}], "annotations": [], "info": {}}')),
    ("annotations", ("a.json", DEEP)),
    ("archives", ("plain.zip", b"PK\5\6" + b"\0" * 10 + b"\xff" * 8)),
    ("shards", ("00000.tar", b"00000")),
    ("shards", ("00000.manifest.json", b'{"samples": 3000000000}')),
    ("shards", ("00000.manifest.json", DEEP)),
    ("urls", "~\x00"),
    ("records", ("part", DEEP)),
    ("records", ("manifest", DEEP)),
    ("records", ("record", DEEP)),
    ("records", ("run.json", DEEP)),
    ("features", ("a.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 300)),
    ("features", ("raw.tsv", b'0\t[{"rect": [1, 2, 3, 4], "class": "\\ud800", "feature": "\\ud800"}]\n')),
    ("weights", ("old.pth", b"\x80\x02}q\0X")),
    ("weights", ("old.pth", b"\x80\x02\x8a\nl\xfc\xb4\xe2\xa7\xcd\x9cF\xf9 j\xa8P\x19.\x80\x02")),
    ("urls", "https://["),
    ("urls", "A://[]"),
    ("urls", "\xe5z"),
    ("urls", "~0"),
    ("redaction", ("", "Authorization: Bearer {}", "\r", False)),
]


@pytest.mark.fault("H21", "H29", "H33", "H34", "H35")
@pytest.mark.parametrize(("target", "value"), FOUND, ids=[f"{n}-{one[0]}" for n, one in enumerate(FOUND)])
def test_what_was_found_once(tmp_path: Path, target: str, value: Any) -> None:
    run_case(made(target), value, tmp_path)


_MADE: dict[str, Any] = {}


def made(target: str) -> Any:
    """The case of a target, whose inputs are made once."""
    if target not in _MADE:
        _MADE[target] = TARGETS[target]()[0]
    return _MADE[target]


def test_a_defect_is_found_and_made_small(tmp_path: Path) -> None:
    def case(value: bytes, folder: Path) -> None:
        if b"\xff" in value:
            raise KeyError(value)
        if value.startswith(b"ab"):
            raise IntegrityError("x", "is ours")

    count, error = mutate(case, st.binary(max_size=30), 20, 1, tmp_path)
    assert isinstance(error, KeyError) and error.args == (b"\xff",) and count > 0
    assert pickle.loads((tmp_path / "last.pickle").read_bytes()) == b"\xff"


def test_a_hang_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS_A_CASE", 0.2)

    def case(value: int, folder: Path) -> None:
        while True:
            time.sleep(0.01)

    with pytest.raises(Slow):
        run_case(case, 1, tmp_path)


def test_a_target_that_dies_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif '--child' in sys.argv: os.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")
    assert not fuzz.run_target("sas", 1, 1, tmp_path, 1)
    assert "FOUND: code -11" in capfd.readouterr().out


def test_edits_reach_every_byte() -> None:
    whole = bytes(range(200))
    for edit, expected in (
        (("set", 0.5, 0, b"xy"), whole[:100] + b"xy" + whole[102:]),
        (("insert", 0.0, 0, b"x"), b"x" + whole),
        (("delete", 1.0, 9, b""), whole),
        (("cut", 0.25, 0, b""), whole[:50]),
        (("repeat", 0.0, 2, b""), whole[:2] * 3 + whole[2:]),
    ):
        assert edited(whole, [edit]) == expected
    assert set(fuzz_targets.PLACES) == {"run", "card", "model"}
