"""Records are written whole or not at all and checked when read; reports say what is so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.config.cards import Artifact
from lavis_ext.common.errors import AccessError, DiskError, IntegrityError, NetworkError, PartialError, UnsafeError
from lavis_ext.common.files import write_atomic
from lavis_ext.fetch import Source, Transfer
from lavis_ext.fetch.lock import part_bytes
from lavis_ext.prepare.plan import Plan, PlanItem
from lavis_ext.prepare.records import (
    ArtifactRecord,
    Origin,
    drop_record,
    inspect,
    read_record,
    record_path,
    write_record,
)
from lavis_ext.prepare.report import Outcome, Report, SplitState, worst

SHA = "ab" * 32
ARTIFACT = Artifact(url="https://x.org/a.zip", storage="toy/images", name="a", unpack="zip", size=10, sha256="AB" * 32)
RECORD = ArtifactRecord(artifact="a", file=ARTIFACT.file, origin=Origin.of(ARTIFACT), sha256=SHA, verified="sha256")


def test_a_record_is_what_it_was_and_says_when(tmp_path: Path) -> None:
    written = write_record(tmp_path, ARTIFACT, replace(RECORD, folders={"": 1}, wanted={"toy/val": 3}))
    assert read_record(tmp_path, ARTIFACT) == written and written.when and written.version
    assert record_path(tmp_path, ARTIFACT) == tmp_path / "toy/.lavis_ext/records/images/a.zip.json"
    drop_record(tmp_path, ARTIFACT)
    assert read_record(tmp_path, ARTIFACT) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 2}', '{"format": 99, "artifact": "a", "file": "a", "origin": {}}']
)
def test_what_cannot_be_read_does_not_count(tmp_path: Path, text: str) -> None:
    write_atomic(record_path(tmp_path, ARTIFACT), text)
    assert read_record(tmp_path, ARTIFACT) is None


@pytest.mark.parametrize("length", [200, 250, 255])
def test_e_the_longest_name_has_a_record_of_its_own(tmp_path: Path, length: int) -> None:
    artifacts = [replace(ARTIFACT, unpack=None, storage="toy/" + "é" * ((length - 2) // 2) + end) for end in "xy"]
    for artifact in artifacts:
        write_record(tmp_path, artifact, replace(RECORD, file=artifact.file))
    found = [read_record(tmp_path, artifact) for artifact in artifacts]
    assert [record.file for record in found if record] == [artifact.file for artifact in artifacts]


def test_f11_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        ({"sha256": SHA}, {"sha256": SHA}, True),
        ({"sha256": SHA}, {"sha256": SHA, "url": "https://y.org/b.zip"}, True),
        ({"sha256": SHA}, {"sha256": "cd" * 32}, False),
        ({"sha256": None}, {"sha256": SHA}, True),
        ({"sha256": SHA, "size": 10}, {"sha256": SHA, "size": 11}, False),
        ({"md5": "ab" * 16}, {"md5": "AB" * 16}, True),
        ({"md5": "ab" * 16}, {"md5": "cd" * 16}, False),
        ({}, {"md5": "cd" * 16}, False),
        ({}, {}, True),
        ({"size": 10}, {"size": 10, "url": "https://y.org/a.zip"}, False),
        ({}, {"url": "https://x.org/v2/a.zip"}, False),
        ({"size": 10}, {"size": 12}, False),
    ],
)
def test_a_record_is_of_one_version(then: dict[str, object], now: dict[str, object], same: bool) -> None:
    plain = replace(ARTIFACT, size=None, sha256=None)
    record = replace(RECORD, origin=Origin.of(replace(plain, **then)))  # type: ignore[arg-type]
    assert record.is_of(replace(plain, **now)) == same  # type: ignore[arg-type]


def test_a_subset_counts_only_where_it_is_what_is_offered(tmp_path: Path) -> None:
    artifact = replace(ARTIFACT, unpack=None, storage="toy/a")
    write_atomic(tmp_path / "toy/a", b"0123456789")
    times = {"": (tmp_path / "toy/a").stat().st_mtime_ns}
    full = Transfer(Path("a"), (Source("https://x.org/a.zip"),), 10, SHA)
    part = replace(full, sources=(Source("http://m/a.zip", "subset"),), sha256="cd" * 32)

    def state(record: ArtifactRecord, transfer: Transfer | NetworkError, offline: bool = False) -> str:
        write_record(tmp_path, artifact, replace(record, bytes=10, folders=times))
        return inspect(tmp_path, artifact, transfer, offline).state

    whole = replace(RECORD, file="toy/a")
    subset = replace(whole, equivalence="subset", sha256="cd" * 32)
    assert [state(whole, offer) for offer in (full, part, NetworkError("a", "b"))] == ["recorded"] * 3
    assert state(subset, part) == state(subset, full, offline=True) == "recorded"
    assert state(subset, full) == state(subset, replace(part, sha256="ef" * 32)) == "present"


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
    kept = [Outcome(title=f"k{n}", file="", outcome="reused", verified="crc") for n in range(2)]
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
