"""Stamps and reports: written whole or not at all, read with doubt, told truthfully."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.cards import Artifact
from lavis_ext.errors import AccessError, DiskError, IntegrityError, NetworkError, PartialError, UnsafeError
from lavis_ext.fetch import Source, Transfer
from lavis_ext.files import write_atomic
from lavis_ext.prepare.found import acceptable, part_bytes
from lavis_ext.prepare.planning import Plan, PlanItem
from lavis_ext.prepare.report import Outcome, Report, SplitState, worst
from lavis_ext.prepare.stamps import (
    Stamp,
    declared_identity,
    drop_stamp,
    read_stamp,
    record_path,
    write_stamp,
)

ARTIFACT = Artifact(url="https://x.org/a.zip", storage="toy/images", name="a", unpack="zip", size=10, sha256="AB" * 32)
STAMP = Stamp(
    artifact="a", file=ARTIFACT.file, url=ARTIFACT.url, declared=declared_identity(ARTIFACT), sha256="ab" * 32
)


def test_a_stamp_is_what_it_was_and_says_when(tmp_path: Path) -> None:
    written = write_stamp(tmp_path, ARTIFACT, replace(STAMP, folders={"": 1}, wanted={"toy/val": 3}))
    assert read_stamp(tmp_path, ARTIFACT) == written and written.when and written.version
    assert record_path(tmp_path, ARTIFACT, "stamps", ".json") == tmp_path / "toy/.lavis_ext/stamps/images/a.zip.json"
    drop_stamp(tmp_path, ARTIFACT)
    assert read_stamp(tmp_path, ARTIFACT) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"what": 1}', '{"format": 99, "artifact": "a", "file": "a", "url": ""}']
)
def test_what_cannot_be_read_does_not_count(tmp_path: Path, text: str) -> None:
    path = record_path(tmp_path, ARTIFACT, "stamps", ".json")
    write_atomic(path, text)
    assert read_stamp(tmp_path, ARTIFACT) is None


def test_f11_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_stamp_counts_only_under_the_same_promise() -> None:
    full = Transfer(Path("a"), (Source("https://x.org/a.zip"),), 10, "ab" * 32)
    part = replace(full, sources=(Source("http://m/a.zip", "subset"),), sha256="cd" * 32)
    subset = replace(STAMP, equivalence="subset", sha256="cd" * 32)
    assert acceptable(STAMP, ARTIFACT, full, False) and acceptable(STAMP, ARTIFACT, part, False)
    assert acceptable(STAMP, ARTIFACT, NetworkError("a", "b"), False)
    assert not acceptable(replace(STAMP, declared="other"), ARTIFACT, full, True)
    assert acceptable(subset, ARTIFACT, part, False) and acceptable(subset, ARTIFACT, full, True)
    assert not acceptable(subset, ARTIFACT, full, False)
    assert not acceptable(subset, ARTIFACT, replace(part, sha256="ef" * 32), False)
    assert not acceptable(None, ARTIFACT, full, False)


def test_a_sidecar_that_cannot_be_read_is_worth_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.zip"
    assert part_bytes(target) == 0
    for text in ("", "{}", '{"done": 5}', '{"done": [["a", 1]]}'):
        (tmp_path / "a.zip.part.json").write_text(text)
        assert part_bytes(target) == 0
    (tmp_path / "a.zip.part.json").write_text('{"done": [[0, 10], [20, 25]]}')
    assert part_bytes(target) == 15


def test_the_worst_failure_decides_the_exit_code() -> None:
    errors = [kind("a", "b") for kind in (NetworkError, IntegrityError)]
    assert worst([]) == 0 and worst(errors) == 5
    assert worst([*errors, DiskError("a", "b"), AccessError("a", "b")]) == 6
    assert worst([*errors, UnsafeError("a", "b"), DiskError("a", "b")]) == 10
    assert worst([PartialError("a", "b")]) == 8 and worst([PartialError("a", "b"), NetworkError("a", "b")]) == 4


def test_the_line_is_true() -> None:
    items = tuple(PlanItem(title=str(n), file=str(n), action="fetch", state="missing") for n in range(14))
    plan = Plan(root="/x", items=items, free=1, free_files=None)
    done = [
        Outcome(title=str(n), file="", outcome="downloaded", bytes=2_372_727_273, verified="sha256") for n in range(11)
    ]
    kept = [Outcome(title=f"k{n}", file="", outcome="reused", verified="crc32") for n in range(2)]
    failed = [Outcome(title="f", file="", outcome="failed", error=NetworkError("f", "no mirror delivered"))]
    report = Report(plan=plan, outcomes=(*done, *kept, *failed))
    assert report.line() == "planned 14 · downloaded 11 · reused 2 · failed 1 · bytes 26.1 GB · 0 unverified · exit 4"
    assert json.loads(json.dumps(report.as_dict()))["summary"] == report.line()
    plain = Outcome(title="u", file="", outcome="downloaded", bytes=1, equivalence="subset")
    assert "1 unverified · subset" in Report(plan=plan, outcomes=(plain,)).line()


@pytest.mark.parametrize(
    ("samples", "expected", "present", "verified", "state"),
    [
        (None, None, 0, False, "missing"),
        (None, 50, 0, False, "missing"),
        (10, 5, 5, True, "verified"),
        (10, 5, 5, False, "present"),
        (10, 5, 3, True, "partial"),
        (10, 5, 0, False, "missing"),
    ],
)
def test_a_split_in_one_word(
    samples: int | None, expected: int | None, present: int, verified: bool, state: str
) -> None:
    split = SplitState(
        dataset="toy", split="val", samples=samples, expected=expected, present=present, verified=verified
    )
    assert split.state == state and split.line().endswith(state)
    shown = state if state == "missing" else f"{state} (subset)"
    assert replace(split, subset=True).as_dict()["state"] == shown
