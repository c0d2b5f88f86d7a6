"""One mirror of both families for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.support.oscar_world import Published


@pytest.fixture(scope="package")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Oscar's and VinVL's files of a small world."""
    return Published(tmp_path_factory.mktemp("oscar"))
