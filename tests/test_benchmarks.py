"""The harness of the benchmarks: what it lists, one item run, what it makes of figures, and when it refuses."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

import benchmarks.__main__ as command
from benchmarks import page, prepared_coco
from benchmarks.__main__ import main
from benchmarks.harness import Contender, Item, Result, Scene, Target, keep, kept_rows, measure, output
from benchmarks.items import ITEMS
from benchmarks.machine import busy
from benchmarks.page import END, PAGE, PANELS, table
from benchmarks.peers import LISTS, MissingPeer, peer_python
from benchmarks.plot import drawing, growth

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


def test_members_of_a_large_zip_move_little_more_than_their_bytes(tmp_path: Path) -> None:
    result = measure(next(item for item in ITEMS if item.key == "P6"), Scene(tmp_path, quick=True), str)
    assert not result.missing
    ours, singles = (result.runs[name][0] for name in ("ours", "FiftyOne's way"))
    assert singles["bytes"] == 1
    assert 1 < ours["all"] < ours["bytes"] < 1.1
    assert not list(tmp_path.iterdir())


def test_memory_is_of_the_process_itself() -> None:
    held = bytearray(200 << 20)
    words = [sys.executable, "-c", "from benchmarks.machine import peak_memory; print(peak_memory())"]
    assert 1 < float(subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout) < len(held) / 2**20 / 2


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
        assert any("others" in why for why in busy(1.0))
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


@contextmanager
def three(scene: Scene) -> Iterator[Sequence[Contender]]:
    """One that runs, one that fails, one that is not there."""

    def fails() -> dict[str, float]:
        raise KeyError("no such field")

    def lacks() -> dict[str, float]:
        raise MissingPeer("x is not installed")

    yield [Contender("ours", lambda: {"rate": 4.0}), Contender("a", fails), Contender("b", lacks)]


@contextmanager
def broken(scene: Scene) -> Iterator[Sequence[Contender]]:
    """What fails before anybody ran."""
    raise OSError("no room | left")
    yield []


RATE = Target("≥ 2", "rate", least=2)


def test_what_fails_is_a_row_that_says_so_and_the_others_are_measured(tmp_path: Path) -> None:
    results = [measure(Item(key, "work", one, (RATE,)), Scene(tmp_path), str) for key, one in WORK.items()]
    assert results[0].missing == {"all": "OSError: no room | left"}
    assert results[1].runs == {"ours": [{"rate": 4.0}] * 3}
    assert results[1].missing == {"a": "KeyError: 'no such field'", "b": "x is not installed"}
    head = {"machine": "m", "commit": "c", "date": "d", "images": "drawn", "busy": [], "quick": False}
    rows = [line.split("|") for line in table(head, results).splitlines() if line.startswith("| P")]
    assert {len(row) for row in rows} == {8, 9}
    assert [row[4].strip() for row in rows if len(row) == 8] == ["not measured: OSError: no room / left", "4"]
    late = measure(Item("P1", "work", three, (RATE,)), Scene(tmp_path, until=0), str)
    assert late.runs == {"ours": [{"rate": 4.0}]}


WORK = {"P1": broken, "P2": three}


def test_finished_rows_are_kept_and_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def item(key: str) -> Item:
        @contextmanager
        def open_it(scene: Scene) -> Iterator[Sequence[Contender]]:
            begun.append(key)
            if key == "P2" and begun.count("P2") == 1:
                raise KeyboardInterrupt
            yield [Contender("ours", lambda: {"rate": 4.0})]

        return Item(key, "work", open_it, (RATE,), rounds=1)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(command, "ITEMS", [item(key) for key in ("P1", "P2", "P3")])
    monkeypatch.setattr("benchmarks.harness.QUIET_SHARE", 2.0)  # other tests run meanwhile
    monkeypatch.setattr(command, "busy", list)  # it takes seconds
    with pytest.raises(KeyboardInterrupt):
        main([])
    assert main(["--continue", "--json"]) == 0
    assert begun == ["P1", "P2", "P2", "P3"]
    found = json.loads(capsys.readouterr().out)
    assert [(one["item"], one["runs"]["ours"]["rate"]["median"]) for one in found["items"]] == [
        ("P1", 4.0),
        ("P2", 4.0),
        ("P3", 4.0),
    ]
    assert main(["--only", "P3"]) == 0
    assert begun[4:] == ["P3"]


def test_a_disturbed_row_has_no_verdict_and_is_measured_again(tmp_path: Path) -> None:
    item = Item("P1", "work", three, (RATE,))
    keep(tmp_path / "rows.json", Result(item, {"ours": [{"rate": 4.0}]}, {}, 0.5, 3.0))
    (found,) = kept_rows(tmp_path / "rows.json", [item]).values()
    assert found == Result(item, {"ours": [{"rate": 4.0}]}, {}, 0.5, 3.0)
    assert not found.finished
    assert found.as_json()["targets"][0]["reached"] is None


def test_a_command_may_write_its_bytecode_as_installed_peers_did() -> None:
    code = "import os, sys; sys.exit('PYTHONDONTWRITEBYTECODE' in os.environ)"
    with pytest.raises(RuntimeError):
        prepared_coco.measure(["-c", "raise SystemExit(1)"], os.environ)
    prepared_coco.measure(["-c", code], {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


def test_a_command_that_hangs_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    written = tmp_path / "alive"
    script = f"(while true; do date > {written}; sleep 0.02; done) & wait"
    with pytest.raises(MissingPeer, match="not done"):
        output(["sh", "-c", script], 2)
    written.unlink(missing_ok=True)
    time.sleep(0.2)
    assert not written.exists()


def test_peers_are_installed_beforehand_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    named = {name for item in ITEMS for name in item.peers}
    assert named == {path.stem for path in LISTS.glob("*.txt")}
    for name in named:
        assert all("==" in line for line in (LISTS / f"{name}.txt").read_text().splitlines())
        with pytest.raises(MissingPeer, match="--prepare"):
            peer_python(name)
    assert not list(tmp_path.iterdir())


def test_growth_is_drawn() -> None:
    sizes = {"": 100.0, " of 1,232": 1.0, " of 12,328": 10.0}
    runs = {
        f"ours, {what}{size}": [{"wall": s, "memory": 90}]
        for what in ("prepare", "verify")
        for size, s in sizes.items()
    }
    runs |= {"unzip": [{"wall": 9.0, "memory": 3}]}
    assert growth(runs, "wall", 123_287)["prepare"] == [(1232, 1), (12328, 10), (123287, 100)]
    svg = ElementTree.fromstring(drawing({title: growth(runs, of, 123_287) for title, of in PANELS.items()}, "it"))
    lines = svg.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
    assert all(len(line.attrib["points"].split()) == 3 for line in lines)


def test_a_table_is_published_in_its_place_with_the_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "README.md")
    monkeypatch.setattr(page, "GROWTH", tmp_path / "pictures" / "growth.svg")
    page.PAGE.write_text(f"before\n{page.BEGIN}old\n{END}after\n")
    head = {"machine": "m", "commit": "c", "date": "d", "images": "photographs", "busy": [], "quick": False}
    figures = {"wall": 2.0, "memory": 90.0}
    runs = {f"ours, prepare{size}": [figures] for size in ("", " of 1,232", " of 12,328")}
    for _ in range(2):
        page.publish(head, [Result(next(item for item in ITEMS if item.key == "P12"), {**runs, "unzip": [figures]})])
    text = page.PAGE.read_text()
    assert text.startswith(f"before\n{page.BEGIN}m; commit c")
    assert text.endswith(f"{END}after\n")
    assert "old" not in text
    assert "| P12 | 123,287 pictures of 0.7 kB prepared and verified | prepare ≤ 1.3 × unzip | 1 | 1–1 | yes |" in text
    assert "](../docs/pictures/growth.svg)" in text
    assert ElementTree.parse(page.GROWTH).getroot().tag.endswith("svg")
