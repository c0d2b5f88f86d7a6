"""Studies: their YAML, the order and words of their runs, what is used again, and the arithmetic of their table."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.resolve import find_config, load_config
from lavis_ext.common.errors import ConfigError, IntegrityError, TrainingError, UsageError
from lavis_ext.demo.world import World
from studies.run import read_metric, run_study
from studies.study import Figure, Findings, Leg, Study, filled, load_study, needed_by, plain, spread, study_files
from tests.world.oscar.captions import reachable

STUDY = """
title: A toy study
world: {train: 4, val: 2, test: 2, hidden: 1}
prepare: [coco]
legs:
  teacher: {train: configs/projects/demo/train/caption.yaml, options: [[run.max_epoch=1, a.b=1], [[c=2]]]}
  student: {train: configs/projects/demo/train/caption.yaml, options: ["model.finetuned={teacher}", "run.prompt={} ?"]}
figures:
  - {name: score, leg: student, metric: test/CIDEr, times: teacher, at_least: 2}
  - {name: loss, leg: student, metric: train/loss, minus: teacher, at_most: 0}
  - {name: alone, leg: teacher, metric: test/CIDEr}
"""


class Stub:
    """Stands in for the command line: runs leave a log and a checkpoint; the student scores three times as much."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], dict[str, str]]] = []

    def __call__(self, words: list[str], environment: Mapping[str, str], log_file: Path) -> list[dict[str, Any]]:
        self.calls.append((words, dict(environment)))
        if words[0] == "prepare":
            return [{"exit_code": 0}]
        options = dict(word.split("=", 1) for word in words[words.index("--options") + 1 :])
        job = Path(options["run.output_dir"]) / options["run.job_id"]
        job.mkdir(parents=True, exist_ok=True)
        score = (3.0 if options["run.job_id"].startswith("student") else 1.0) * float(options["run.seed"])
        steps = [{"kind": "train", "step": i, "loss": 9.0 - i} for i in range(10)]
        evals = [{"kind": "eval", "split": s, "metrics": {"CIDEr": v}} for s, v in (("val", 0.0), ("test", score))]
        (job / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*steps, *evals]))
        (job / "latest.json").write_text('{"checkpoint": "checkpoint_9", "step": 9}')
        return [{"job": str(job)}, {"exit_code": 0}]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "configs" / "studies"
    folder.mkdir(parents=True)
    (folder / "toy.yaml").write_text(STUDY)
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(tmp_path / "configs"))
    return folder / "toy.yaml"


@pytest.mark.parametrize("name", study_files())
def test_a_shipped_study_names_run_files_and_settings_that_are_there(name: str) -> None:
    study = load_study(name)
    assert study.figures and study.minutes
    for leg in study.legs.values():
        options = [filled(option, dict.fromkeys(study.legs, "somewhere")) for option in leg.options]
        assert load_config(find_config(leg.train), [*options, "run.seed=1"]).run.seed == 1


def test_the_runs_of_a_seed_come_in_order_and_start_from_its_own_checkpoints(toy: Path, tmp_path: Path) -> None:
    stub = Stub()
    found = run_study("toy", tmp_path / "o", seeds=2, jobs=1, seed=2, command=stub)
    assert [words[0] for words, _ in stub.calls] == ["prepare", "train", "train", "train", "train"]
    runs = tmp_path / "o" / "studies" / "toy" / "runs"
    second = stub.calls[4][0]
    taught = next(word for word in second if word.startswith("model.finetuned="))
    assert taught.startswith(f"model.finetuned={runs / 'teacher-2-'}") and taught.endswith("/checkpoint_9")
    assert "run.prompt={} ?" in second and second[-2].startswith("run.job_id=student-2-") and second[-1] == "run.seed=2"
    assert stub.calls[1][0][4:7] == ["run.max_epoch=1", "a.b=1", "c=2"]
    assert {env.get("OMP_NUM_THREADS") for _, env in stub.calls[1:]} == {"1"}
    assert found.values["student/test/CIDEr"] == [3.0, 6.0] and found.seeds == (1, 2)
    assert "| score | 4.500 ± 2.121 | 3.000 6.000 | × 3.000 ± 0.000 | ≥ 2 | yes |" in found.markdown()
    assert (tmp_path / "o" / "studies" / "toy" / "study.md").read_text() == found.markdown()


def test_runs_of_all_seeds_share_the_places_leg_by_leg(toy: Path, tmp_path: Path) -> None:
    stub = Stub()
    run_study("toy", tmp_path / "o", seeds=3, jobs=1, seed=2, command=stub)
    jobs = [words[-2].removeprefix("run.job_id=").rpartition("-")[0] for words, _ in stub.calls[1:]]
    assert jobs == ["teacher-1", "teacher-2", "teacher-3", "student-1", "student-2", "student-3"]


def test_a_run_that_waits_for_its_teacher_holds_no_place(toy: Path, tmp_path: Path) -> None:
    other = "  other: {train: configs/projects/demo/train/caption.yaml, options: [run.max_epoch=2]}\n"
    toy.write_text(STUDY.replace("figures:\n", f"{other}figures:\n"))
    free = threading.Event()

    class Long(Stub):
        def __call__(self, words: list[str], environment: Mapping[str, str], log_file: Path) -> list[dict[str, Any]]:
            if "run.max_epoch=2" in words:
                free.set()
            elif any(word.startswith("run.job_id=teacher-") for word in words):
                assert free.wait(10), "the second place is held by the student, which waits for this run"
            return super().__call__(words, environment, log_file)

    found = run_study("toy", tmp_path / "o", seeds=1, jobs=2, seed=2, command=Long())
    assert found.values["student/test/CIDEr"] == [3.0]


def test_more_places_than_runs_wait_for_what_they_start_from(toy: Path, tmp_path: Path) -> None:
    found = run_study("toy", tmp_path / "o", seeds=2, jobs=8, seed=2, command=Stub())
    assert found.values["student/test/CIDEr"] == [3.0, 6.0]


def test_the_score_that_retrieval_can_reach_is_that_of_the_studys_world() -> None:
    study = load_study("oscar")
    (figure,) = (figure for figure in study.figures if figure.leg == "ir_teacher")
    scenes = list(World(**study.world).scenes("val"))
    assert reachable(scenes) == pytest.approx(figure.times, abs=0.05)
    assert reachable(scenes[:1]) == 100, "there is nobody else to say the same"


def test_what_was_done_in_the_same_words_is_used_again(toy: Path, tmp_path: Path) -> None:
    run_study("toy", tmp_path / "o", seeds=1, jobs=2, seed=2, command=Stub())
    again = Stub()
    run_study("toy", tmp_path / "o", seeds=1, jobs=2, seed=2, command=again)
    assert [words[0] for words, _ in again.calls] == ["prepare"]
    toy.write_text(STUDY.replace("a.b=1", "a.b=5"))
    changed = Stub()
    run_study("toy", tmp_path / "o", seeds=1, jobs=2, seed=2, command=changed)
    trained = [words[-2].rpartition("-")[0] for words, _ in changed.calls[1:]]
    assert trained == ["run.job_id=teacher-1", "run.job_id=student-1"], "the student starts from another teacher now"
    assert not {tuple(words) for words, _ in changed.calls[1:]} & {tuple(words) for words, _ in again.calls[1:]}


def test_another_world_in_the_folder_is_refused(toy: Path, tmp_path: Path) -> None:
    run_study("toy", tmp_path / "o", seeds=1, seed=2, command=Stub())
    with pytest.raises(UsageError, match="holds a demo of study toy, seed 2, 4 \\+ 2 \\+ 2 scenes, not of study toy"):
        run_study("toy", tmp_path / "o", seeds=1, seed=3, command=Stub())


def test_a_run_that_fails_ends_the_study_and_is_not_recorded(toy: Path, tmp_path: Path) -> None:
    class Failing(Stub):
        def __call__(self, words: list[str], environment: Mapping[str, str], log_file: Path) -> list[dict[str, Any]]:
            if any(word.startswith("run.job_id=student-1-") for word in words):
                raise TrainingError("loss", "is not finite", "lower the rate")
            return super().__call__(words, environment, log_file)

    with pytest.raises(TrainingError):
        run_study("toy", tmp_path / "o", seeds=1, seed=2, command=Failing())
    stages = json.loads((tmp_path / "o" / "studies" / "toy" / "stages.json").read_text())["stages"]
    assert list(stages) == ["teacher 1"]


def findings(values: dict[str, list[float]], **figure: Any) -> tuple[Figure, Findings]:
    one = Figure(name="f", leg="a", metric="test/x", **figure)
    study = Study(title="t", prepare=[], legs={"a": Leg(train="x"), "b": Leg(train="x")}, figures=[one])
    return one, Findings("n", study, (1, 2), values)


def test_ratios_and_differences_are_taken_seed_by_seed() -> None:
    values = {"a/test/x": [4.0, 9.0], "b/test/x": [2.0, 3.0]}
    assert findings(values, times="b")[0].compared(values) == [2.0, 3.0]
    assert findings(values, minus="b")[0].compared(values) == [2.0, 6.0]
    assert findings(values, times=2.0)[0].compared(values) == [2.0, 4.5]
    assert findings(values)[0].compared(values) == [4.0, 9.0]


def test_a_base_of_nothing_does_not_make_an_endless_ratio() -> None:
    values = {"a/test/x": [1.0, 1.0], "b/test/x": [0.0, 1e-9]}
    assert findings(values, times="b")[0].compared(values) == [100.0, 100.0]


def test_a_bound_is_kept_by_the_mean_and_told_either_way() -> None:
    values = {"a/test/x": [4.0, 9.0], "b/test/x": [2.0, 3.0]}
    assert findings(values, at_least=6.5)[0].holds(values) is True
    assert findings(values, at_least=6.6)[0].holds(values) is False
    assert findings(values, at_most=6.4)[0].holds(values) is False
    assert findings(values)[0].holds(values) is None
    row = findings(values, times="b", at_least=3)[1].rows()[0]
    assert row == ["f", "6.500 ± 3.536", "4.000 9.000", "× 2.500 ± 0.707", "≥ 3", "no"]
    summary = findings(values, times="b", at_least=3)[1].summary()
    assert summary["figures"][0]["compared"] == [2.0, 3.0] and summary["figures"][0]["holds"] is False


def test_figures_are_written_with_the_places_a_person_reads() -> None:
    assert [plain(v) for v in (0.12345, 12.345, -12.345, 1234.5)] == ["0.123", "12.3", "-12.3", "1234"]
    assert spread([1.0]) == "1.000" and spread([1.0, 3.0]) == "2.000 ± 1.414"


def test_training_losses_are_the_mean_of_the_last_fifth(tmp_path: Path) -> None:
    lines = [{"kind": "train", "loss": float(i)} for i in range(10)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_metric(tmp_path, "train/loss") == 8.5
    (tmp_path / "log.jsonl").write_text(json.dumps(lines[3]) + "\n")
    assert math.isclose(read_metric(tmp_path, "train/loss"), 3.0)


@pytest.mark.parametrize("metric", ["train/loss", "test/CIDEr"])
@pytest.mark.parametrize("text", ["", "{}\n", "torn", '{"kind": "eval", "split": "test", "metrics": {"B": 1}}\n'])
def test_a_log_without_the_metric_is_named(tmp_path: Path, metric: str, text: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(IntegrityError, match=metric):
        read_metric(tmp_path, metric)


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="blip2"):
        load_study("blip")


def test_all_mistakes_of_a_study_are_told_with_their_lines(toy: Path) -> None:
    toy.write_text(STUDY.replace("{teacher}", "{student}").replace("times: teacher", "times: nobody"))
    with pytest.raises(ConfigError) as caught:
        load_study("toy")
    text = str(caught.value)
    assert "legs.student: leg 'student' is not there before it" in text
    assert "figures 'score': leg 'nobody' is not there before it" in text
    toy.write_text(STUDY.replace("at_least: 2", "at_least: two, unknown: 1"))
    with pytest.raises(ConfigError) as caught:
        load_study("toy")
    assert len(caught.value.problems) == 2


def test_only_legs_that_are_named_are_needed() -> None:
    leg = Leg(train="x", options=["a={one}", "b={} two"])
    assert needed_by(leg, ["one", "two"]) == ["one"]


def test_no_seed_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--seeds: 0 give no figure"):
        run_study("blip2", tmp_path / "o", seeds=0, command=Stub())
    assert not (tmp_path / "o").exists()
