"""An extraction or a conversion in a process of its own, that can be killed in the middle."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.killing import ask_for_leave


def run_extract(pictures: str, destination: str, form: str) -> None:
    """Extract, asking before each batch of two."""
    from lavis_ext.features.detectors import DetectorOptions
    from lavis_ext.features.extraction.extract import ExtractionRequest, extract
    from tests.support.regions import FakeDetector

    class Slow(FakeDetector):
        def detect(self, images: Any) -> Any:
            ask_for_leave()
            return super().detect(images)

    options = DetectorOptions(min_boxes=36, probabilities=form == "volta-tsv")
    request = ExtractionRequest([pictures], Path(destination), Path(pictures), form, batch_size=2)
    extract(request, lambda: Slow(options))


def run_serialise(source: str, destination: str) -> None:
    """Convert, asking after each row, a commit every three."""
    from lavis_ext.fetch.transfer import Silent
    from lavis_ext.oscar.volta import serialise

    class Slow(Silent):
        def advance(self, label: str, count: int) -> None:
            ask_for_leave()

    serialise.COMMIT_ROWS = 3
    serialise.serialise([Path(source)], Path(destination), progress=Slow())


def within(limit: int, work: Callable[..., None], *args: str) -> None:
    """Do it with files of at most so many bytes: as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    work(*args)
