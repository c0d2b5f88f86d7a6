"""The journey: which verbs run in which order and surroundings, what is used again, and how a failing verb is told."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from lavis_ext.common.errors import IntegrityError, LavisExtError, NetworkError, OwnedError, UsageError
from lavis_ext.demo import steps
from lavis_ext.demo.tour import EVALUATE, TRAIN, run_demo
from lavis_ext.demo.world import World

WORLD = World(seed=2, train=4, val=2, test=2, hidden=1)


class Stub:
    """Stands in for `python -m lavis_ext`: remembers its calls and leaves behind what each verb would."""

    def __init__(self, untrained: float = 0.02, trained: float = 1.5) -> None:
        self.calls: list[tuple[list[str], dict[str, str]]] = []
        self.scores = {"untrained": untrained, "trained": trained}
        self.manifest: dict[str, Any] = {}

    @property
    def verbs(self) -> list[str]:
        """The verbs so far."""
        return [words[0] for words, _ in self.calls]

    def __call__(self, words: list[str], environment: Mapping[str, str], log_file: Path) -> list[dict[str, Any]]:
        self.calls.append((words, dict(environment)))
        if words[0] == "prepare":
            with urlopen(f"{environment['LAVIS_EXT_MIRROR']}/manifest.json") as response:
                self.manifest = json.load(response)
            return [{"exit_code": 0}]
        options = dict(word.split("=", 1) for word in words[words.index("--options") + 1 :])
        return self.run(Path(options["run.output_dir"]) / options["run.job_id"])

    def run(self, job: Path) -> list[dict[str, Any]]:
        """A job folder with its scores, its captions and its report."""
        (job / "result").mkdir(parents=True)
        record = {"kind": "eval", "split": "test", "metrics": {"CIDEr": self.scores[job.name], "Bleu_4": 0.1}}
        lines = [{"kind": "train", "loss": 1.0}, {"kind": "eval", "split": "val", "metrics": {"CIDEr": 9.0}}, record]
        (job / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows = [{"image_id": scene.id, "caption": "a red ring"} for scene in WORLD.scenes("test")]
        (job / "result" / "test_epochbest.json").write_text(json.dumps(rows))
        (job / "result" / "test_epochbest_recipe.json").write_text("{}")
        (job / "report.html").write_text("<html>")
        return [{"job": str(job), "report": str(job / "report.html")}, {"exit_code": 0}]


def test_the_way_leads_through_the_real_verbs(tmp_path: Path) -> None:
    stub = Stub()
    result = run_demo(tmp_path / "d", world=WORLD, command=stub)
    assert stub.verbs == ["prepare", "evaluate", "train"]
    prepare, evaluate, train = (words for words, _ in stub.calls)
    assert prepare[1] == "coco"
    assert evaluate[1:3] == ["--cfg-path", EVALUATE] and train[1:3] == ["--cfg-path", TRAIN]
    assert stub.manifest["equivalence"] == "subset" and len(stub.manifest["files"]) == 9
    assert {env["LAVIS_EXT_CACHE_ROOT"] for _, env in stub.calls} == {str(tmp_path / "d" / "cache")}
    assert [bool(env["LAVIS_EXT_MIRROR"]) for _, env in stub.calls] == [True, False, False]
    assert result.report == tmp_path / "d" / "runs" / "trained" / "report.html"


def test_the_result_tells_scores_ratio_seconds_and_examples(tmp_path: Path) -> None:
    result = run_demo(tmp_path, world=WORLD, command=Stub())
    assert result.ratio == pytest.approx(75)
    assert [stage.name for stage in result.stages] == ["draw", "prepare", "untrained", "train"]
    text = "\n".join(result.lines())
    assert "untrained 0.020, trained 1.500 (75.0 ×)" in text and "report.html" in text
    assert f"said: a red ring   there: {next(WORLD.scenes('test')).captions()[0]}" in text
    summary = json.loads(json.dumps(result.summary()))
    assert summary["ratio"] == 75 and summary["world"]["train"] == 4


def test_a_model_that_scored_nothing_has_an_infinite_ratio_and_null_in_json(tmp_path: Path) -> None:
    result = run_demo(tmp_path, world=WORLD, command=Stub(untrained=0.0))
    assert math.isinf(result.ratio) and result.summary()["ratio"] is None
    assert "no score before" in result.lines()[0]
    assert run_demo(tmp_path / "same", world=WORLD, command=Stub(untrained=0.0, trained=0.0)).ratio == 1.0


def test_a_score_that_is_noise_gives_no_ratio_to_people(tmp_path: Path) -> None:
    result = run_demo(tmp_path, world=WORLD, command=Stub(untrained=0.0099))
    assert "(no score before)" in result.lines()[0] and "×" not in result.lines()[0]
    assert result.summary()["ratio"] == pytest.approx(151.515)


def test_a_second_demo_uses_what_is_there(tmp_path: Path) -> None:
    first = run_demo(tmp_path, world=WORLD, command=Stub())
    manifest = tmp_path / "mirror" / "manifest.json"
    drawn = manifest.stat().st_mtime_ns
    stub = Stub()
    second = run_demo(tmp_path, world=WORLD, command=stub)
    assert stub.verbs == ["prepare"]  # which itself finds that nothing is missing
    assert manifest.stat().st_mtime_ns == drawn
    assert [stage.reused for stage in second.stages] == [True, False, True, True]
    assert second.trained == first.trained


def test_what_was_lost_is_made_again(tmp_path: Path) -> None:
    run_demo(tmp_path, world=WORLD, command=Stub())
    (tmp_path / "mirror" / "manifest.json").unlink()
    for path in (tmp_path / "runs" / "trained").rglob("*"):
        if path.is_file():
            path.unlink()
    (tmp_path / "runs" / "trained" / "result").rmdir()
    stub = Stub(trained=1.2)
    assert run_demo(tmp_path, world=WORLD, command=stub).trained["CIDEr"] == 1.2
    assert stub.verbs == ["prepare", "train"]


def test_a_stage_that_failed_is_not_recorded_and_the_next_call_goes_on(tmp_path: Path) -> None:
    class Failing(Stub):
        def run(self, job: Path) -> list[dict[str, Any]]:
            if job.name == "trained":
                raise NetworkError("lavis-ext train", "ended with exit code 4")
            return super().run(job)

    with pytest.raises(NetworkError):
        run_demo(tmp_path, world=WORLD, command=Failing())
    stub = Stub()
    run_demo(tmp_path, world=WORLD, command=stub)
    assert stub.verbs == ["prepare", "train"]


def test_another_world_in_the_same_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    run_demo(tmp_path, world=WORLD, command=Stub())
    before = (tmp_path / "demo.json").read_bytes()
    stub = Stub()
    with pytest.raises(UsageError, match=r"holds a demo of seed 2.*not of seed 3") as told:
        run_demo(tmp_path, seed=3, command=stub)
    assert "--out" in str(told.value)
    assert not stub.calls and (tmp_path / "demo.json").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", '{"plan": 1}', "null"])
def test_a_record_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(IntegrityError, match="not the record of a demo"):
        run_demo(tmp_path, world=WORLD, command=Stub())


def test_a_run_without_scores_is_told(tmp_path: Path) -> None:
    class Silent(Stub):
        def run(self, job: Path) -> list[dict[str, Any]]:
            found = super().run(job)
            (job / "log.jsonl").write_text('{"kind": "train"}\n')
            return found

    with pytest.raises(IntegrityError, match="holds no evaluation of the test split"):
        run_demo(tmp_path, world=WORLD, command=Silent())


def test_options_reach_both_runs(tmp_path: Path) -> None:
    stub = Stub()
    run_demo(tmp_path, world=WORLD, options=("run.max_epoch=1",), command=stub)
    assert [words[-1] for words, _ in stub.calls[1:]] == ["run.max_epoch=1"] * 2


def test_the_environment_keeps_bytes_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_EXT_OFFLINE", "1")
    monkeypatch.setenv("NO_PROXY", "example.org")
    with_mirror, without = steps.environment_for(tmp_path, "http://127.0.0.1:1"), steps.environment_for(tmp_path)
    assert (with_mirror["LAVIS_EXT_OFFLINE"], without["LAVIS_EXT_OFFLINE"]) == ("", "1")
    assert with_mirror["NO_PROXY"] == "example.org,127.0.0.1"
    assert (Path(without["PYTHONPATH"].split(os.pathsep)[0]) / "lavis_ext").is_dir()


def test_an_installed_package_puts_no_site_packages_before_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "__file__", str(tmp_path / "site-packages" / "lavis_ext" / "demo" / "steps.py"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert steps.environment_for(tmp_path)["PYTHONPATH"] == ""


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A package `lavis_ext` whose command line does what its first word says; put before ours on the path."""
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "fake" / "lavis_ext"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import json, os, sys, time\n"
        "print('on stderr', file=sys.stderr, flush=True)\n"
        "told = {'pid': os.getpid(), 'words': sys.argv[1:], 'mirror': os.environ.get('LAVIS_EXT_MIRROR')}\n"
        "print('not json'); print(json.dumps(told))\n"
        "code = int(sys.argv[2]) if sys.argv[1] == 'exit' else 0\n"
        "print(json.dumps({'exit_code': code, 'errors': ['it: broke'] if code else []}), flush=True)\n"
        "time.sleep(60 if sys.argv[1] == 'sleep' else 0)\n"
        "sys.exit(code)\n"
    )
    return {"PYTHONPATH": str(tmp_path / "fake"), "LAVIS_EXT_MIRROR": "m"}


def test_a_verb_runs_in_its_own_process(fake_package: dict[str, str], tmp_path: Path) -> None:
    answer = steps.run_verb(["say", "it"], fake_package, tmp_path / "logs" / "say.log")
    assert (answer[0]["words"], answer[0]["mirror"]) == (["say", "it", "--json"], "m")
    assert (tmp_path / "logs" / "say.log").read_text() == "on stderr\n"


@pytest.mark.parametrize(
    ("code", "kind"), [(4, NetworkError), (9, OwnedError), (1, LavisExtError), (77, LavisExtError)]
)
def test_a_verb_that_fails_keeps_its_kind_and_its_words(
    fake_package: dict[str, str], tmp_path: Path, code: int, kind: type[LavisExtError]
) -> None:
    with pytest.raises(kind, match="it: broke") as told:
        steps.run_verb(["exit", str(code)], fake_package, tmp_path / "x.log")
    assert type(told.value) is kind and "x.log" in str(told.value)


def test_a_demo_that_is_stopped_takes_its_verb_along(fake_package: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]); import lavis_ext.demo.steps as s;"
        f"s.run_verb(['sleep'], {fake_package!r}, pathlib.Path(sys.argv[2]))"
    )
    root = str(Path(steps.__file__).parents[2])
    said = tmp_path / "sleep.jsonl"
    demo = subprocess.Popen([sys.executable, "-c", code, root, str(tmp_path / "sleep.log")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (said.exists() and "exit_code" in said.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(60) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(steps.read_objects(said)[0]["pid"], 0)
