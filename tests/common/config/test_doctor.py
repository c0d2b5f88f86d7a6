"""The doctor sees what would get in the way before it does."""

from pathlib import Path

import pytest

from lavis_ext.common.config import doctor


def findings(root: Path) -> dict[str, doctor.MachineCheck]:
    return {f.name: f for f in doctor.examine(root)}


def test_a_good_machine_has_nothing_bad(tmp_path: Path) -> None:
    found = findings(tmp_path / "not" / "there" / "yet")
    assert found["cache root"].state == "ok"
    assert found["python"].state == "ok"
    assert found["torch"].state == "ok"


def test_cache_root_below_a_file_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = findings(tmp_path / "file")["cache root"]
    assert finding.state == "bad"
    assert "is a file" in finding.text


@pytest.mark.fault("P09")
def test_old_and_absent_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions = {"torch": "2.5.1+cpu", "pillow": None, "torchvision": "0.28.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, "99"))
    found = findings(tmp_path)
    assert (found["torch"].state, found["pillow"].state) == ("warn", "bad")
    assert "CVE-2025-32434" in found["torch"].text
    assert found["torchvision"].state == "bad"


def test_network_file_systems_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_file_system", lambda path: "nfs4")
    assert findings(tmp_path)["file system"].state == "warn"
