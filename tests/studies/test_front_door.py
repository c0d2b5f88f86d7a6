"""Where studies are asked for: `python -m studies`, the verb `demo` of a checkout, and a wheel, which has none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import studies
from lavis_ext.cli import main
from lavis_ext.common.config.check import check_file
from tests.world.export import FamilyState

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel installs, away from the checkout."""
    site = tmp_path_factory.mktemp("site-packages")
    shutil.copytree(ROOT / "lavis_ext", site / "lavis_ext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", site / "lavis_ext" / "configs")
    return site


@pytest.mark.parametrize("flags", [["--study", "blip2"], ["--all"]])
def test_a_wheel_has_no_studies_and_says_where_they_are(wheel: Path, tmp_path: Path, flags: list[str]) -> None:
    command = [sys.executable, "-m", "lavis_ext", "demo", "--json", *flags]
    around = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run(command, cwd=tmp_path, env=around, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"]) == (2, 2)
    assert told["errors"][0].startswith(f"{flags[0]}: ") and "python -m studies" in told["errors"][0]
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_a_module_by_name_and_the_verb_are_one(tmp_path: Path) -> None:
    ways = [["-m", "studies", "blip2"], ["-m", "lavis_ext", "demo", "--study", "blip2"]]
    told = []
    for words in ways:
        command = [sys.executable, *words, "--seeds", "0", "--out", str(tmp_path / "o"), "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        told.append(json.loads(done.stdout))
    assert told[0] == told[1] and told[0]["errors"][0].startswith("--seeds")
    alone = subprocess.run([sys.executable, "-m", "studies"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert alone.returncode == 2 and "blip2, oscar" in alone.stderr


def test_all_is_every_family_and_every_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    states = (FamilyState("vg", ("vg_vqa",), 3, 2, 2, "verified"), FamilyState("gqa", ("gqa",), exit_code=4))
    monkeypatch.setattr(studies, "prepare_every", lambda out, seed: asked.append((out, seed)) or states)
    monkeypatch.setattr(studies, "run_studies", lambda names, *how: asked.append([*names]) or (["a table"], [{}], 0))
    lines, objects, code = studies.run_all(tmp_path, 1, 1, 2)
    assert asked == [(tmp_path / "families", 2), ["blip2", "oscar", "transfer"]]
    assert code == 4 and lines[-1] == "a table"
    assert any("vg_vqa" in line and "2 of 2" in line for line in lines)
    assert json.loads(json.dumps(objects))[0]["families"][1]["family"] == "gqa"


def test_check_reads_a_study_and_the_runs_that_it_asks_for(tmp_path: Path) -> None:
    good = (ROOT / "studies" / "blip2.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(good)
    assert main(["check", str(path)]) == 0
    path.write_text(good.replace("run.max_epoch=", "run.max_epocs=", 1))
    (problem,) = check_file(path)
    assert "legs." in problem.where
