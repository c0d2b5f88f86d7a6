"""LAVIS' and VPGTrans' own YAMLs: `check` passes, and they start with tiny sizes given by options only."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from lavis_ext.common.config.check import check_file, check_run, load_checked
from lavis_ext.fetch.mirrors import mirror_path
from lavis_ext.models import load_model
from lavis_ext.models.weights import to_upstream
from lavis_ext.runners.run import evaluate, train
from tests.tasks.test_projects import cache  # noqa: F401  # a fixture
from tests.upstream import yamls

DEMO = "vl_vicuna_demo"
"""A page's settings, which name no split: `chat` reads it."""
ELSEWHERE = re.compile("msrvtt|msvd|vatex|modelnet40")
"""Videos and point clouds."""
FOUND, MODELS = yamls.run_files(), yamls.model_files()
RUNS = [path for path in FOUND if not ELSEWHERE.search(path.stem)]
OUTSIDE = [path for path in FOUND if ELSEWHERE.search(path.stem)]
STARTED = [path for path in RUNS if path.stem != DEMO]
SCRIPTS = [path for path in yamls.scripts() if path.stem != "eval_cap_coco_flant5xl"]  # its run file is empty
needs_code = pytest.mark.skipif(not RUNS, reason=yamls.REASON)
PUBLISHED = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/blip2_pretrained.pth"


def names(paths: list[Path]) -> list[str]:
    return [f"{path.parts[-5]}-{path.parent.name}-{path.stem}" for path in paths]


def lay_weights(folder: Path, urls: set[str]) -> Path:
    """Below `folder`, as a mirror has them, what tiny models hold under LAVIS' names."""
    for url in urls:
        arch, language = ("blip2_llama", "llama") if "llama" in url else ("blip2", "")
        state = load_model(arch, "tiny").trainable_state()
        path = folder / mirror_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": to_upstream(state, language)}, path)
    return folder


@needs_code
@pytest.mark.parametrize("path", RUNS, ids=names(RUNS))
def test_check_passes(path: Path) -> None:
    assert check_run(path, yamls.given_options(path)) == []


@needs_code
@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_scripts_name_runs_that_pass(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell script of theirs starts, once `lavis` is replaced in it, from their checkout."""
    (tmp_path / "python").write_text('#!/bin/sh\nfor one in "$@"; do printf "%s\\0" "$one"; done\n')
    (tmp_path / "python").chmod(0o755)
    code = next(folder for folder in path.parents if (folder / "run_scripts").is_dir())
    monkeypatch.chdir(code)
    text = path.read_text("utf-8").replace(" lavis/", " lavis_ext/")
    words = ["0", "1", "0", "2.7b" if "opt" in path.stem else "xl", "/weights", "c.pth", "16"]
    given = words if "$7" in text else ["/weights/q.pth", "", "/models/llama"]
    shell = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", text, "x", *given], env=shell, capture_output=True, text=True, check=True)
    found = done.stdout[done.stdout.index("-m") :].split("\0")[:-1]
    run = found[found.index("--cfg-path") + 1]
    assert found[:2] == ["-m", "torch.distributed.run"] and run.startswith("lavis_ext/projects/")
    options = found[found.index("--options") + 1 :] if "--options" in found else []
    assert check_run(run, options) == []


@needs_code
@pytest.mark.parametrize("path", OUTSIDE, ids=names(OUTSIDE))
def test_what_is_not_of_pictures_says_so(path: Path) -> None:
    assert "not served here" in check_run(path)[0].what


@needs_code
@pytest.mark.parametrize("path", MODELS, ids=names(MODELS))
def test_model_files_pass_or_say_what_they_are(path: Path) -> None:
    found = check_file(path)
    served = path.parent.name == "blip2" and "xinstruct" not in path.stem
    assert [problem.what.split(" is ")[0] for problem in found] == ([] if served else [found[0].what.split(" is ")[0]])
    assert served or "not served here" in found[0].what


@needs_code
@pytest.mark.slow
@pytest.mark.parametrize("path", STARTED, ids=names(STARTED))
def test_they_start(path: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("LAVIS_EXT_MIRROR", str(lay_weights(tmp_path / "mirror", yamls.urls([path]))))
    config = load_checked(path, [*yamls.given_options(path), *yamls.tiny_options(path, tmp_path)])
    job = evaluate(config) if config.run.evaluate else train(config)
    assert json.loads((job / "run.json").read_text())["status"] == ("evaluated" if config.run.evaluate else "finished")
