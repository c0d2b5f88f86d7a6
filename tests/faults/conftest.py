"""The world of a download that faults are injected into."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fetching import World
from tests.support.server import Server


@pytest.fixture
def world(
    server: Server, second: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> World:
    """Two healthy servers, a declared file, and a policy."""
    return World(server, second, tmp_path, monkeypatch, caplog)
