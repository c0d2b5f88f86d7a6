"""Passes in the test's own process: img2dataset is imported once, not once per pass."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lavis_ext.prepare.urls import run as passes
from lavis_ext.prepare.urls.worker import PassOrder, run_pass


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[PassOrder]]:
    """The passes that were run, in order; each ran here."""
    with passes_here(monkeypatch) as done:
        yield done


@contextmanager
def passes_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[PassOrder]]:
    """Run passes in this process, as long as the patch lasts; gives those that were run, in order."""
    pytest.importorskip("img2dataset")
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    done: list[PassOrder] = []

    def run_here(order: Path, stall: float, measure: Callable[[], object]) -> str:
        done.append(PassOrder.read(order))
        run_pass(done[-1])
        measure()
        return "done"

    monkeypatch.setattr(passes, "run_worker", run_here)
    try:
        yield done
    finally:
        urllib.request.install_opener(None)  # type: ignore[arg-type]
