"""Pages in Chromium: no foreign request, no console message, axe-core content, usable by keys and without a script.

Needs Chromium, node and `npm install --prefix tests/browse/browser`, or LAVIS_EXT_NODE_MODULES; skipped without.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.browse import find_pages
from lavis_ext.browse.explorer import DatasetApp
from lavis_ext.browse.runs_page import RunsApp
from lavis_ext.browse.search import PER_PAGE
from lavis_ext.browse.subject import read_own
from tests.browse.test_runs_page import leave
from tests.support.families import nlvr, vqav2
from tests.support.pictures import encoded, pixels
from tests.support.serving import served

HOME = Path(__file__).parent / "browser"
MODULES = Path(os.environ.get("LAVIS_EXT_NODE_MODULES") or HOME / "node_modules")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
ready = shutil.which("node") and CHROMIUM and (MODULES / "playwright-core").is_dir() and (MODULES / "axe-core").is_dir()
pytestmark = pytest.mark.skipif(not ready, reason="no Chromium, node or playwright-core")


def drive(act: str, *urls: str) -> list[dict[str, Any]]:
    with start(act, *urls) as process:
        out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    found: list[dict[str, Any]] = json.loads(out.splitlines()[-1])
    return found


def start(act: str, *urls: str) -> subprocess.Popen[str]:
    command = ["node", str(HOME / "drive.js"), CHROMIUM, act, *urls]
    kept = {**os.environ, "LAVIS_EXT_NODE_MODULES": str(MODULES)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=kept)


def mine(folder: Path, rows: int = 6, name: str = "train") -> Path:
    """Rows about three pictures, of which one is missing and one comes twice."""
    folder.mkdir()
    for number in (0, 1):
        (folder / f"{number}.jpg").write_bytes(encoded(pixels(number)))
    (folder / "2.jpg").write_bytes((folder / "1.jpg").read_bytes())
    said = ["A red star", "a blue ring", "three dogs that run over the green grass"]
    lines = [
        {"image": f"{n % 3}.jpg", "caption": said[n % 3] if rows < 10 else f"text {n:03d}"} for n in range(rows)
    ] + [{"image": "gone.jpg", "caption": "nothing to see"}]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_pages_at_two_widths_and_in_two_themes(tmp_path: Path) -> None:
    vqav2(tmp_path)
    nlvr(tmp_path)
    leave(tmp_path / "runs/a", [0.2, 0.9])
    leave(
        tmp_path / "runs/b",
        [],
        status="stopped",
        error="loss is nan; lower init_lr",
        started="2026-01-02T00:00:00+0000",
    )
    places = {
        "own": [str(mine(tmp_path / "mine"))],
        "vqa": ["coco_vqa"],
        "beside": [str(tmp_path / "mine"), "nlvr"],
        "run": [str(tmp_path / "runs/a")],
        "runs": [str(tmp_path / "runs")],
    }
    pages = [find_pages(targets, tmp_path).write(tmp_path / f"{name}.html")[0] for name, targets in places.items()]
    found = drive("look", *(page.as_uri() for page in pages))
    assert len(found) == 10
    for one in found:
        assert (one["said"], one["broken"], one["unnamed"]) == ([], [], 0), one["url"]
        assert one["wide"] <= 0, one["url"]  # nothing is wider than the window
    assert len({one["dark"] for one in found}) == 2
    [plain, *_] = drive("plain", pages[0].as_uri())
    assert plain == {"url": pages[0].as_uri(), "width": 1280, "said": [], "shots": 7 + 2, "form": False}


def test_samples_are_filtered_ordered_and_enlarged_by_keys(tmp_path: Path) -> None:
    page = find_pages([str(mine(tmp_path / "mine"))], tmp_path).write(tmp_path / "page.html")[0]
    [found] = drive("filter", page.as_uri())
    assert found["said"] == [] and len(found["all"]) == 7 == found["quote"]
    assert found["red"] == ["A red star"] * 2 and found["missing"] == ["nothing to see"]
    assert found["longest"].startswith("three dogs") and found["again"] == found["all"]
    assert (found["opened"], found["next"]) == (found["all"][0], found["all"][1])
    assert found["around"] != found["opened"] and found["closed"] and found["focused"]


def test_a_served_data_set_is_searched_and_paged_through(tmp_path: Path) -> None:
    app = DatasetApp(read_own(str(mine(tmp_path / "mine", PER_PAGE + 30)), tmp_path))
    with served(app) as server:
        [found] = drive("explore", server.address)
        assert found["said"] == [] and server.token not in found["address"]
        assert (found["first"], found["searched"], found["over"]) == ("text 000", 9, f"text {PER_PAGE:03d}")
        assert found["lost"] == 1
        key = {"name": server.cookie, "value": server.token, "url": server.address.rpartition("/")[0]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LAVIS_EXT_COOKIES", json.dumps([key]))
            parts = drive("look", *(f"{key['url']}/{part}" for part in ("", "twice", "missing", "figures", "about")))
        assert [(one["said"], one["broken"], max(one["wide"], 0)) for one in parts] == [([], [], 0)] * 10


def test_runs_that_go_on_appear_by_themselves(tmp_path: Path) -> None:
    leave(tmp_path / "a", [0.2, 0.9])
    leave(tmp_path / "b", [0.5], started="2026-01-02T00:00:00+0000")
    with served(RunsApp([tmp_path])) as server, start("live", server.address) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        leave(tmp_path / "c", [0.7], started="2026-01-03T00:00:00+0000")
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        [found] = json.loads(out.splitlines()[-1])
    assert found["said"] == [] and (found["before"], found["after"]) == ("2 runs", "3 runs")
    assert found["up"] == ["b", "c", "a"] and found["down"] == ["a", "c", "b"] and found["hidden"]
