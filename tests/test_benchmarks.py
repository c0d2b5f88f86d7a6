"""The harness of the benchmarks: what it lists, one item run, what it makes of figures, and when it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import END, PAGE, main
from benchmarks.harness import Item, Result, Target, Watch
from benchmarks.items import ITEMS

ROOT = Path(__file__).parents[1]


def test_every_line_of_the_table_is_listed_and_published_or_said_to_be_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--list", "--json"]) == 0
    keys = [one["item"] for one in json.loads(capsys.readouterr().out)]
    assert {f"P{number}" for number in range(1, 13)} <= set(keys)
    page = PAGE.read_text()
    assert END in page
    for item in ITEMS:
        for target in item.targets:
            assert f"| {item.key} | {item.title} | {target.says} |" in page


def test_one_item_is_measured(tmp_path: Path) -> None:
    words = ["-m", "benchmarks", "--quick", "--only", "P8", "--json", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["quick"] is True
    (item,) = found["items"]
    for name in ("list", "status", "dry run", "check"):
        figures = item["runs"][f"ours, {name}"]
        assert 0 < figures["cpu"]["median"] < figures["memory"]["median"]
    assert [one["value"] is None for one in item["targets"]] == [False] * 4
    assert not list(tmp_path.iterdir())


def test_ratios_are_taken_within_a_round_and_the_best_peer_is_no_bound() -> None:
    rate = {"ours": [20.0, 10.0], "slow": [5.0, 2.5], "fast": [10.0, 5.0], "decoding alone": [100.0, 100.0]}
    runs = {name: [{"rate": value, "wall": 1 / value} for value in found] for name, found in rate.items()}
    assert Target("", "rate", "best", least=3).value(runs) == [2, 2]
    assert Target("", "wall", "best", most=0.5).value(runs) == [0.5, 0.5]
    assert Target("", "rate", "decoding alone", least=0.2).value(runs) == [0.2, 0.1]
    assert Target("", "rate", "nobody", least=1).value(runs) is None
    result = Result(Item("P", "", None, (Target("", "rate", "slow", least=5), Target("", "bytes", most=1))), runs)
    assert [(one["reached"], one["value"] is None) for one in result.as_json()["targets"]] == [
        (False, False),
        (None, True),
    ]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux says what the cores do")
def test_a_busy_machine_is_said_and_nothing_is_published() -> None:
    before = PAGE.read_bytes()
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert Watch(0.5).reasons()
        assert main(["--publish"]) == 1
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert PAGE.read_bytes() == before


@pytest.mark.parametrize("words", [["--only", "P99"], ["--images", "/nowhere"]])
def test_wrong_flags(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
