"""`lavis-ext runs`: what a folder of runs tells, with whole, stopped and torn ones in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavis_ext.browse.runs_page import difference, flat, list_runs
from lavis_ext.cli import main


def leave(folder: Path, config: dict[str, Any], metrics: list[float], **facts: Any) -> Path:
    """A run's folder as the runner leaves it, evaluated once for each metric."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"job": folder.name, "status": "finished", "seconds": 75.0, **facts}))
    lines: list[dict[str, Any]] = [{"kind": "train", "step": 10 * (i + 1), "loss": 2.0 - i} for i in range(2)]
    for index, value in enumerate(metrics):
        figures = {"CIDEr": value / 2, "agg_metrics": value}
        lines.append({"kind": "eval", "split": "val", "step": 10 * (index + 1), "metrics": figures})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config(**run: Any) -> dict[str, Any]:
    return {"model": {"arch": "blip2_opt"}, "run": {"seed": 1, "job_id": "x", **run}}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    best = {"metric": 1.0, "split": "val", "step": 10, "epoch": 0}
    leave(tmp_path / "b", config(init_lr=0.1), [1.0, 3.0], started="2026-01-01T00:00:00+0000", best=best)
    leave(tmp_path / "deep" / "a", config(init_lr=0.2), [1.0, 3.0], started="2026-01-02T00:00:00+0000")
    stopped = {"started": "2026-01-03T00:00:00+0000", "status": "stopped", "error": "loss: is nan; lower init_lr"}
    leave(tmp_path / "c", config(init_lr=0.1, amp=True, job_id="other"), [], **stopped)
    return tmp_path


def test_by_start_with_their_best(output: Path) -> None:
    first, second, third = list_runs(output)
    assert (first.folder, second.folder, third.folder) == ("b", "deep/a", "c")
    assert (first.metric, first.best, first.split, first.step) == ("CIDEr", 0.5, "val", 20), "what the run judged best"
    assert second.best == 1.5, "no judgement was left, so the highest aggregate"
    assert (third.best, third.state, third.loss) == (None, "stopped", 1.0)


@pytest.mark.parametrize(
    ("against", "last"),
    [
        ("previous", {"run.init_lr": (0.2, 0.1), "run.amp": (None, True)}),
        ("first", {"run.amp": (None, True)}),
    ],
)
def test_what_each_changed(output: Path, against: str, last: dict[str, Any]) -> None:
    first, second, third = list_runs(output, against)
    assert first.differs == {}
    assert second.differs == {"run.init_lr": (0.1, 0.2)}
    assert third.differs == last


def test_like_is_compared_with_like(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trainings with trainings, and on the same data; the rest is one line, and the table is last."""
    many = {f"key_{number}": number for number in range(20)}

    def mine(name: str, started: int, **run: Any) -> None:
        data = {"datasets": {name: {"vis_processor": {"eval": {"name": "blip_image_eval"}}}}}
        facts = {"started": f"2026-01-0{started}T00:00:00+0000", "datasets": [name]}
        leave(tmp_path / f"{name}{started}", {**config(**run), **data}, [1.0], **facts)

    mine("mine", 1, init_lr=0.1)
    mine("mine", 2, evaluate=True)
    mine("miss", 3, init_lr=0.3)
    mine("miss", 4, init_lr=0.3, **many)
    mine("mine", 5, init_lr=0.2)
    mine("mine", 6, evaluate=True, num_beams=3)
    found = {run.folder: run for run in list_runs(tmp_path)}
    assert {name: run.base for name, run in found.items()} == {
        **{"mine1": "", "mine2": "", "miss3": "mine1", "miss4": "miss3", "mine5": "mine1", "mine6": "mine2"}
    }
    assert found["miss3"].differs == {"data": ("mine", "miss")}
    assert found["mine5"].differs == {"run.init_lr": (0.1, 0.2)}
    assert found["mine6"].differs == {"run.num_beams": (None, 3)}
    assert len(found["miss4"].differs) == 20
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("run.key_" in line for line in lines) == 8 and "  and 12 more (--json)" in lines
    assert [line.split()[0] for line in lines[-7:]] == ["run", *found]


def test_torn_files_leave_blanks(tmp_path: Path) -> None:
    folder = leave(tmp_path / "torn", config(), [float("nan")], seconds=None)
    (folder / "run.json").write_text('{"status": "fini')
    (folder / "config.yaml").write_text("run: [1, {")
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    (run,) = list_runs(tmp_path)
    assert (run.state, run.best, run.settings, run.step, run.seconds) == ("unknown", None, {}, 20, None)
    json.dumps(run.as_dict(), allow_nan=False)


def test_flat_and_difference() -> None:
    assert flat({"a": {"b": [1], "c": {}}, "d": None}) == {"a.b": [1], "a.c": {}, "d": None}
    assert difference({"a": 1, "b": 2, "run.job_id": "x"}, {"a": 1, "c": 3}) == {"b": (2, None), "c": (None, 3)}


def test_the_verb_in_lines_and_objects(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(output)]) == 0
    text = capsys.readouterr().out
    for part in ("CIDEr 0.5", "1 min 15 s", "run.init_lr: 0.1 → 0.2", "run.amp: (not set) → True", "loss: is nan"):
        assert part in text
    assert main(["runs", str(output), "--against", "first", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("folder") for row in rows] == ["b", "deep/a", "c", None]
    assert rows[2]["differs"] == {"run.amp": [None, True]}


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert "no runs here" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "absent")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_no_torch_for_it(output: Path) -> None:
    code = (
        f"import sys; from lavis_ext.cli import main; main(['runs', {str(output)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
