"""Progress in words and bars: few lines, no control characters, no colour where none is wanted."""

from __future__ import annotations

import io

import pytest

from lavis_ext.common.secrets import printable
from lavis_ext.fetch import Bars, Lines, make_progress
from lavis_ext.fetch.progress import QuietProgress, human


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_every_step_and_when_time_passes() -> None:
    written: list[str] = []
    now = [0.0]
    lines = Lines(written.append, step=25, every=30.0, clock=lambda: now[0])
    lines.begin("big", 100_000_000)
    for _ in range(100):
        lines.advance("big", 1_000_000)
    lines.end("big", "fetched")
    assert written == [
        "big: 25.0 MB of 100.0 MB (25 %)",
        "big: 50.0 MB of 100.0 MB (50 %)",
        "big: 75.0 MB of 100.0 MB (75 %)",
        "big: fetched, 100.0 MB",
    ]
    written.clear()
    lines.begin("unknown", None)
    lines.advance("unknown", 5)
    now[0] = 31.0
    lines.advance("unknown", 5)
    assert written == ["unknown: 10 B"]


def test_small_files_are_silent_unless_they_fail() -> None:
    written: list[str] = []
    lines = Lines(written.append)
    for n, outcome in enumerate(("fetched", "reused", "failed", "unverified")):
        lines.begin(f"{n}", 100)
        lines.advance(f"{n}", 100)
        lines.end(f"{n}", outcome)
    assert written == ["2: failed", "3: unverified, 100 B"]
    lines.advance("never begun", 1)
    lines.end("never begun", "failed")


def test_bars_draw_and_honour_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    chosen = make_progress(pytest.fail, stream)
    assert isinstance(chosen, Bars)
    with chosen as bars:
        bars.begin("a\x1b[31m.zip", 100)
        bars.advance("a\x1b[31m.zip", 60)
        bars.end("a\x1b[31m.zip", "failed")
    assert "\x1b[31m" not in stream.getvalue() and "1 of 1 files" in stream.getvalue()


def test_choice_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_progress(print, io.StringIO()), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress(print, Terminal()), Lines)
    with make_progress(print, Terminal(), quiet=True) as silent:
        assert isinstance(silent, QuietProgress)
        silent.begin("x", 1)
        silent.advance("x", 1)
        silent.end("x", "fetched")


@pytest.mark.parametrize(
    ("count", "written"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (13_510_573_713, "13.5 GB")]
)
def test_human(count: int, written: str) -> None:
    assert human(count) == written


def test_printable() -> None:
    assert printable("a\n\x07é漢", kept="") == "a\\n\\x07é漢"
