"""A gated or non-commercial licence is accepted before the first byte, once; free ones are never asked about."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from lavis_ext.cli import main
from lavis_ext.common.config.cards import load_cards
from tests.support.server import Server
from tests.support.toyfamily import Family

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def family(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Family:
    """`toy`, whose card says that its terms are non-commercial; nothing is accepted yet."""
    found = Family(server, tmp_path / "root")
    for name, value in found.environment(found.write_card(tmp_path / "configs")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LAVIS_EXT_ACCEPT_LICENCE", raising=False)
    restrict(tmp_path, "non-commercial")
    return found


def restrict(folder: Path, terms: str, **more: str) -> None:
    card = folder / "configs" / "datasets" / "toy" / "artifacts.yaml"
    card.write_text(json.dumps({**json.loads(card.read_text()), "terms": terms, **more}))


def remembered(folder: Path) -> dict[str, dict[str, str]]:
    file = folder / "home" / "lavis_ext" / "licences.json"
    return dict(json.loads(file.read_text())["accepted"]) if file.is_file() else {}


def test_nothing_moves_before_it_is_accepted(family: Family, tmp_path: Path, capsys: Capture) -> None:
    for more in ([], ["--json"]):
        assert main(["prepare", "toy", *more]) == 7
        said = capsys.readouterr().err
        assert "for nobody" in said and "--accept-licence" in said and "LAVIS_EXT_ACCEPT_LICENCE=toy" in said
    assert main(["prepare", "toy", "--dry-run"]) == 0, "a plan may be looked at"
    assert "for nobody" in capsys.readouterr().out
    assert not [seen for seen in family.server.requests() if "manifest" not in seen.path]
    assert not family.root.exists() and remembered(tmp_path) == {}


def test_it_is_remembered_until_its_words_change(family: Family, tmp_path: Path) -> None:
    assert main(["prepare", "toy", "--split", "val", "--accept-licence"]) == 0
    assert remembered(tmp_path)["toy"]["licence"] == "for nobody"
    assert main(["prepare", "toy"]) == 0
    assert main(["prepare", "toy"]) == 0, "nothing is fetched"
    restrict(tmp_path, "gated", licence="for you alone")
    assert main(["prepare", "toy"]) == 0, "nor here"
    family.offer("val.json", b"[]")
    next((family.root / "toy" / "annotations").glob("val*")).unlink()
    assert main(["prepare", "toy"]) == 7


@pytest.mark.parametrize(("value", "code"), [("toy", 0), ("coco, toy", 0), ("all", 0), ("coco", 7), ("", 7)])
def test_by_the_environment_it_is_not_remembered(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, code: int
) -> None:
    monkeypatch.setenv("LAVIS_EXT_ACCEPT_LICENCE", value)
    assert main(["prepare", "toy"]) == code
    assert remembered(tmp_path) == {}


def test_a_home_that_cannot_be_written_does_not_stop_it(family: Family, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    assert main(["prepare", "toy", "--accept-licence"]) == 0


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"\n", 7), (b"no\n", 7)])
def test_a_person_is_asked_at_the_terminal(family: Family, tmp_path: Path, answer: bytes, code: int) -> None:
    primary, other = pty.openpty()
    os.write(primary, answer)
    command = [sys.executable, "-m", "lavis_ext", "prepare", "toy", "--quiet"]
    done = subprocess.Popen(command, stdin=other, stdout=subprocess.DEVNULL, stderr=other, env=dict(os.environ))
    os.close(other)
    assert done.wait(60) == code
    shown = os.read(primary, 1 << 16).decode()
    os.close(primary)
    assert "for nobody" in shown and "[y/N]" in shown
    assert set(remembered(tmp_path)) == ({"toy"} if code == 0 else set())


def test_free_licences_are_not_asked_about(family: Family, tmp_path: Path) -> None:
    restrict(tmp_path, "open")
    assert main(["prepare", "toy"]) == 0
    assert {name for name, card in load_cards().families.items() if card.terms != "open"} >= {
        *("flickr30k", "laion", "llava", "scienceqa", "sharegpt4v")
    }
    assert {load_cards().families[name].terms for name in ("coco", "vg", "gqa", "nocaps", "vqav2")} == {"open"}
