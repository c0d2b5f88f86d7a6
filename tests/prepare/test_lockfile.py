"""A source that changes is shown, and accepted only by hand; a lock pins a project's files for everybody."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.cli import main
from tests.support.server import Server, payload

OLD, NEW = payload(30_000, 1), payload(31_000, 2)
SAME = bytes([OLD[0] ^ 1]) + OLD[1:]
CARD = """
family: birds
licence: none
citation: "@misc{x}"
artifacts:
  songs: {url: "%s", storage: birds/songs.bin}
  known: {url: "%s", storage: birds/known.bin, size: 30000, sha256: %s}
"""


@pytest.fixture
def birds(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A family of two files, one of which the card says nothing of; the working directory is a project's."""
    urls = server.put("/songs", OLD), server.put("/known", OLD)
    folder = tmp_path / "configs/datasets/birds"
    folder.mkdir(parents=True)
    (folder / "artifacts.yaml").write_text(CARD % (*urls, hashlib.sha256(OLD).hexdigest()))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "configs"))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.delenv("LAVIS_EXT_MIRROR", raising=False)
    monkeypatch.setattr("lavis_ext.fetch.transfer.random.uniform", lambda low, high: 0.01)
    return server


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*words, "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return code, {row["artifact"]: row for row in rows if "artifact" in row}


def pins() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("lavis-ext.lock").read_text())["artifacts"]
    return found


@pytest.mark.parametrize("new", [NEW, SAME], ids=["another size", "another version"])
def test_a_changed_source_is_shown_and_accepted_by_hand(
    new: bytes, birds: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "birds/*", "--quiet"]) == 0
    code, rows = run(capsys, "checksum", "birds/*")
    assert code == 0 and {row["state"] for row in rows.values()} == {"unpinned"}
    assert not Path("lavis-ext.lock").exists()
    asked = len(birds.log)
    assert run(capsys, "checksum", "birds/*", "--accept")[0] == 0
    assert all(seen.sent <= 1 for seen in birds.log[asked:])  # known on the disk: nothing is fetched again
    birds.put("/songs", new)
    code, rows = run(capsys, "checksum", "birds/*")
    assert code == 5 and rows["birds/songs"]["state"] == "changed" and rows["birds/known"]["state"] == "same"
    assert rows["birds/songs"]["locked"]["size"] == 30_000 and rows["birds/songs"]["source"]["size"] == len(new)
    assert pins()["birds/songs"]["sha256"] == hashlib.sha256(OLD).hexdigest()
    assert run(capsys, "checksum", "birds/*", "--accept")[0] == 0
    assert pins()["birds/songs"]["sha256"] == hashlib.sha256(new).hexdigest()
    assert (tmp_path / "cache/birds/songs.bin").read_bytes() == OLD
    assert main(["prepare", "birds/*", "--quiet", "--locked"]) == 0
    assert (tmp_path / "cache/birds/songs.bin").read_bytes() == new
    assert [path.read_bytes() for path in (tmp_path / "cache/birds").glob("songs.bin.bad-*")] == [OLD]


def test_a_colleague_gets_the_same_bytes_or_an_error(
    birds: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "checksum", "birds/*", "--accept")[0] == 0  # nothing on the disk: fetched once and hashed
    assert pins()["birds/songs"]["sha256"] == hashlib.sha256(OLD).hexdigest()
    assert not list((tmp_path / "cache").rglob("songs.bin"))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "colleague"))
    assert main(["prepare", "birds/*", "--quiet", "--locked"]) == 0
    birds.put("/songs", SAME)
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "later"))
    assert main(["prepare", "birds/*", "--quiet", "--locked"]) == 5
    assert not (tmp_path / "later/birds/songs.bin").exists()
    assert main(["prepare", "birds/songs", "--quiet"]) == 0  # without the lock, as before


def test_what_is_not_pinned_or_is_no_lock(birds: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "birds/*", "--locked"]) == 3
    assert run(capsys, "checksum", "birds/known", "--accept")[0] == 0
    assert main(["prepare", "birds/*", "--locked"]) == 3
    assert main(["prepare", "birds/known", "--quiet", "--locked"]) == 0
    entry = pins()["birds/known"]
    for text in (
        "",
        "[]",
        '{"format": 2, "artifacts": {}}',
        json.dumps({"format": 1, "artifacts": {"a": {**entry, "size": -1}}}),
    ):
        Path("lavis-ext.lock").write_text(text)
        assert main(["prepare", "birds/known", "--locked"]) == 3 and main(["checksum", "birds/known"]) == 3


def test_a_source_that_is_gone_is_told(birds: Server, capsys: pytest.CaptureFixture[str]) -> None:
    del birds.objects["/songs"]
    code, rows = run(capsys, "checksum", "birds/*")
    assert code == 4 and rows["birds/songs"]["state"] == "unreachable" and rows["birds/known"]["state"] == "unpinned"
    assert run(capsys, "checksum", "birds/*", "--accept")[0] == 4
    assert set(pins()) == {"birds/known"}


def test_a_file_of_which_the_card_knows_the_size_alone_is_hashed(
    birds: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "configs/datasets/birds/artifacts.yaml"
    card.write_text(card.read_text() + f"  sized: {{url: {birds.url('/songs')}, storage: birds/s.bin, size: 30000}}\n")
    assert run(capsys, "checksum", "birds/sized", "--accept")[0] == 0
    assert pins()["birds/sized"]["sha256"] == hashlib.sha256(OLD).hexdigest()
