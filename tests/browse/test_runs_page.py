"""Runs beside each other, and one that goes on: what is drawn, what is compared, and what is not celebrated."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

import pytest
import yaml

from lavis_ext import runners as public
from lavis_ext.browse import find_pages, write_page, write_run_report
from lavis_ext.browse.html import figure, figures
from lavis_ext.browse.run_report import page_values, read_run
from lavis_ext.browse.runs_page import RunsApp, find_runs, list_runs, runs_values, write_runs_page
from lavis_ext.cli import main
from lavis_ext.common.config.schema import Config, DatasetConfig, ModelConfig
from lavis_ext.common.errors import UsageError
from lavis_ext.common.registry import models, tasks
from lavis_ext.runners import run as jobs
from tests.support.html import HOSTILE, Page
from tests.support.runs import EvaluationFeed
from tests.support.server import wait_until
from tests.support.serving import ask, served
from tests.support.toys import ToyDataset, ToyFeed, ToyModel, ToyTask, toy_run


def leave(folder: Path, scores: list[float], rate: float = 0.1, **facts: Any) -> Path:
    """A run that was evaluated after each epoch, and its best checkpoint at the end."""
    folder.mkdir(parents=True)
    best = {"split": "val", "step": 10 * (scores.index(max(scores)) + 1), "metric": max(scores)} if scores else None
    known = {"job": folder.name, "status": "finished", "seconds": 75.0, "datasets": ["toy"], "best": best}
    known |= {"model": {"arch": "blip2_opt"}, "started": "2026-01-01T00:00:00+0000", **facts}
    (folder / "run.json").write_text(json.dumps(known))
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"init_lr": rate, "job_id": folder.name}}))
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": 5 * s, "epoch": 0, "loss": 3.0 / s, "lr": 0.1} for s in (1, 2, 3)
    ]
    for number, score in enumerate(scores):
        lines.append(evaluation("val", str(number), 10 * (number + 1), score))
    lines += [evaluation(split, "best", 10 * len(scores), max(scores)) for split in ("val", "test") if scores]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def evaluation(split: str, label: str, step: int, score: float) -> dict[str, Any]:
    metrics = {"CIDEr": score, "agg_metrics": score}
    return {"kind": "eval", "split": split, "label": label, "step": step, "epoch": 0, "metrics": metrics}


def test_the_evaluation_of_the_best_checkpoint_is_no_point_of_the_curve(tmp_path: Path) -> None:
    text = write_run_report(leave(tmp_path / "run", [0.2, 0.9, 0.4])).read_text()
    assert "CIDEr · step 20: 0.9" in text and "CIDEr · step 30: 0.4" in text
    assert "CIDEr · step 30: 0.9" not in text
    assert "test, best checkpoint" in text and "val, best checkpoint" in text  # both stand in the table
    assert "Metrics on test" not in text


def test_a_run_that_goes_on_has_a_best_already(tmp_path: Path) -> None:
    run = leave(tmp_path / "run", [0.2, 0.9, 0.4], status="running")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "best": None}))
    lines = (run / "log.jsonl").read_text().splitlines()[:-2]  # those of the best checkpoint come at the end
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    tile = page_values(read_run(run))["tiles"][0]
    assert (tile.name, tile.value) == ("best CIDEr", "0.900")
    text = write_runs_page([run], tmp_path / "all.html").read_text()
    assert text.index("CIDEr 0.900") < text.index('<figure class="chart"'), (
        "the best score stands above the curves, also on a phone"
    )


def test_a_best_of_nothing_is_not_celebrated(tmp_path: Path) -> None:
    values = page_values(read_run(leave(tmp_path / "zero", [0.0, 0.0])))
    assert values["metrics"]["marked"] == -1 and "best" not in values["tiles"][0].name
    assert page_values(read_run(leave(tmp_path / "one", [0.0, 0.1])))["metrics"]["marked"] == 1
    rounding = leave(tmp_path / "rounding", [4.348e-17, 0.0])
    values = page_values(read_run(rounding))
    assert (values["metrics"]["marked"], values["tiles"][0].value) == (-1, "0")
    assert not any(row["leads"] for row in runs_values([tmp_path / "zero", rounding])["rows"])
    leave(tmp_path / "other", [0.0, 0.0])
    assert not any(row["leads"] for row in runs_values([tmp_path / "zero", tmp_path / "other"])["rows"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0.0, "0"), (0.123456, "0.123"), (1.25, "1.25"), (63.3333, "63.3"), (100, "100"), (1234.5, "1,234")],
        *[(99.96, "100.0"), (-0.5, "-0.500"), (3e-5, "3e-5"), (0.0123, "0.012"), (2e7, "2e7"), (float("inf"), "inf")],
    ],
)
def test_figures_are_rounded_as_a_person_writes_them(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_column_has_one_number_of_decimals() -> None:
    assert figures([0.5, 1.23456, None, 0.0]) == ["0.500", "1.235", "–", "0.000"]
    assert figures([63.3333, 7.0]) == ["63.33", "7.00"]
    assert figures([]) == [] and figures([None]) == ["–"]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    leave(tmp_path / "a", [0.2, 0.9, 0.4])
    leave(tmp_path / "deep/b", [0.3, 0.5], rate=0.2, started="2026-01-02T00:00:00+0000")
    leave(tmp_path / "c", [], status="stopped", error=HOSTILE, started="2026-01-03T00:00:00+0000")
    return tmp_path


def test_runs_are_overlaid_and_compared(output: Path) -> None:
    values = runs_values([output])
    assert [row["name"] for row in values["rows"]] == ["a", "deep/b", "c"]
    assert [row["leads"] for row in values["rows"]] == [True, False, False]
    assert values["rows"][1]["changes"] == ["run.init_lr: 0.1 → 0.2"]
    assert values["rows"][0]["cells"][:4] == ["CIDEr 0.900", "blip2_opt", "toy", "val"]
    text = write_runs_page([output], output / "page.html").read_text()
    page = Page(text)
    assert not page.open and page.count("script") == 1 and page.count("tr", class_="marked") == 1
    assert page.count("g", class_="s0 few") and page.count("g", class_="s1 few")
    assert "a · step 20: 0.9" in text and "deep/b · step 20: 0.5" in text and "a · step 30: 0.9" not in text
    assert "alert('x')" in page.words and not any("onerror" in attributes for _, attributes in page.tags)


def test_errors_and_changes_stand_below_their_run(tmp_path: Path) -> None:
    long = "\n".join(f"setting{n}: is wrong; mend it" for n in range(40))
    leave(tmp_path / "a", [0.5])
    leave(tmp_path / "b", [], rate=0.2, status="stopped", error="loss is nan", started="2026-01-02T00:00:00+0000")
    leave(tmp_path / "c", [], status="stopped", error=long, started="2026-01-03T00:00:00+0000")
    page = Page(write_runs_page([tmp_path], tmp_path / "page.html").read_text())
    assert page.count("tr", class_="more") == 2 and page.count("td", colspan="9") == 2 and page.count("th") == 9 + 3
    assert page.count("p", class_="why") == 1 and "run.init_lr: 0.1 → 0.2" in page.words
    assert page.count("summary", class_="why") == 1 and page.count("div", class_="lines why") == 1
    assert long in page.words, "the whole of it unfolds"


def metrics_of(run: Path, *found: dict[str, float]) -> Path:
    """Another log: an evaluation on `val` after each epoch."""
    lines = [evaluation("val", str(n), n + 1, 0) | {"metrics": metrics} for n, metrics in enumerate(found)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_a_score_of_nothing_is_no_peak(tmp_path: Path) -> None:
    """BLEU is smoothed: without a match of four words it is 2e-9, not 0."""
    scores = [{"CIDEr": c, "Bleu_4": b, "loss": loss} for c, b, loss in ((0.1, 4e-13, 3e-6), (0.3, 2.3e-9, 1e-6))]
    run = metrics_of(leave(tmp_path / "run", []), *scores)
    for text in (write_runs_page([run], tmp_path / "all.html").read_text(), write_run_report(run).read_text()):
        assert "step 2: 0<" in text and "e-9" not in text and "e-13" not in text
        assert "step 2: 1e-6<" in text, "a loss may be that small"
    flat = re.search(r"<figcaption>Bleu_4 on val.*?</figure>", (tmp_path / "all.html").read_text(), re.DOTALL)
    assert flat and ">0.01</text>" in flat.group()
    nothing = metrics_of(leave(tmp_path / "two/nothing", []), {"CIDEr": 9.6e-6})
    [row] = runs_values([nothing])["rows"]
    assert (row["cells"][0], row["leads"]) == ("CIDEr 0", False)
    assert list_runs(tmp_path / "two")[0].best == 9.6e-6, "a program gets what was measured"


def test_an_evaluation_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = metrics_of(leave(tmp_path / "run", [], status="evaluated"), {})
    assert runs_values([run])["rows"][0]["cells"][0] == "nothing scored"
    assert main(["runs", str(tmp_path)]) == 0 and "nothing scored" in capsys.readouterr().out
    values = page_values(read_run(run))
    assert values["tiles"][0] == ("score", "none", "nothing was scored on val")
    assert values["metrics"]["unscored"] == "val"
    assert "Nothing was scored on val" in write_run_report(run).read_text()


def test_the_verb_takes_runs_a_folder_of_runs_or_data(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(output)
    assert main(["browse", str(output)]) == 0 and (output / "runs.html").is_file()
    assert main(["browse", "a", "deep/b", "--out", "two.html"]) == 0
    assert "2 runs" in (output / "two.html").read_text()
    assert main(["browse", "a"]) == 0 and (output / "a/report.html").is_file()
    capsys.readouterr()
    assert main(["browse", "a", "coco_caption"]) == 2
    for nothing in ("/nonexistent", "./nonexistent", "~/nonexistent", "nonexistent/", "", "no\0thing"):
        assert main(["browse", nothing]) == 2, nothing
    said = capsys.readouterr().err
    assert "family ''" not in said and "Traceback" not in said
    with pytest.raises(UsageError):
        find_pages(["a", "b"], output)


def test_runs_of_one_name_stay_apart(tmp_path: Path) -> None:
    places = [leave(tmp_path / side / "run", [0.5]) for side in ("x", "y")]
    assert [row["name"] for row in runs_values(places)["rows"]] == ["run", "y/run"]
    assert len(runs_values([places[0], tmp_path / "x"])["rows"]) == 1  # the same one twice


def test_each_run_has_its_page_and_nothing_else(output: Path) -> None:
    with served(RunsApp([output])) as server:
        assert "3 runs" in ask(server, "/").text
        assert "← all runs" in ask(server, "/?run=deep%2Fb").text
        for path in ("/?run=nothing", "/?run=../a", "/a/run.json", "/run.json", "/report.html"):
            assert ask(server, path).status == 404
        before = ask(server, "/state").text
        assert ask(server, "/state").text == before
        leave(output / "new", [0.1])
        assert ask(server, "/state").text != before and "4 runs" in ask(server, "/").text


def test_a_folder_that_goes_while_runs_are_looked_for(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training writes a checkpoint under another name first, and deletes old ones."""
    going, real = output / "deep" / "b" / ".checkpoint_7.tmp", os.scandir
    going.mkdir()
    before = find_runs(output)

    def scandir(path: Any = ".") -> Any:
        if Path(path) == going:
            going.rmdir()
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_runs(output) == before and before and not going.exists()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Semaphore]:
    """A toy training under its names, of which each step takes one of these."""
    allowed = Semaphore(0)

    class Slow(ToyTask):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            assert allowed.acquire(timeout=60)
            return super().step(*args, **kwargs)

    for registry, item in ((models, ToyModel), (tasks, Slow)):
        registry.names()
        monkeypatch.setitem(registry._items, "toy", item)
    monkeypatch.setattr(jobs, "open_datasets", lambda config, splits: {"toy": {"train": ToyDataset(12)}})
    monkeypatch.setattr(jobs, "train_feed", lambda config, opened, accelerator: ToyFeed(opened["toy"]["train"]))
    monkeypatch.setattr(
        jobs,
        "eval_feeds",
        lambda config, opened, splits, accelerator: {s: EvaluationFeed(ToyDataset(4, split=s)) for s in splits},
    )
    yield allowed


def test_a_run_that_goes_on_is_shown_as_it_is(tmp_path: Path, steps: Semaphore) -> None:
    run = toy_run(tmp_path, valid_splits=["val"], report=False)
    config = Config(
        run=run,
        model=ModelConfig(arch="toy", model_type="tiny"),
        datasets={"toy": DatasetConfig(name="toy")},
        cache_root="c",
    )
    training = Thread(target=public.train, args=(config,))
    with served(RunsApp([tmp_path])) as server:
        assert "No run is here yet" in ask(server, "/").text
        training.start()
        marks, running = [ask(server, "/state").text], 0
        while training.is_alive():
            steps.release(3)
            assert wait_until(lambda: not training.is_alive() or ask(server, "/state").text != marks[-1], 60)
            marks.append(ask(server, "/state").text)
            running += "1 running" in ask(server, "/").text
        training.join(60)
        assert len({*marks}) >= 4 and running
        last = ask(server, "/?run=job").text
        assert ask(server, "/state").text != marks[0]
    assert "finished" in last and "18" in Page(last).words
    assert write_page(str(tmp_path / "job"), tmp_path / "report.html", tmp_path).is_file()
