"""Two live processes do not share a job folder; a dead one's mark does not block the next."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from lavis_ext.common.errors import OwnedError
from lavis_ext.runners.job import owned
from tests.support.killing import own_until_killed


def test_a_live_owner_is_respected(tmp_path: Path) -> None:
    with owned(tmp_path), pytest.raises(OwnedError, match=str(os.getpid())) as caught, owned(tmp_path):
        pass
    assert caught.value.exit_code == 9
    assert not (tmp_path / "owner.json").exists()


def test_a_live_owner_in_another_process_is_respected(tmp_path: Path) -> None:
    pid = own_until_killed(tmp_path)
    try:
        with pytest.raises(OwnedError, match=str(pid)), owned(tmp_path):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with owned(tmp_path):  # killed without a chance to clean up
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", ['{"pid": 1', "[]", "{}"])
def test_a_torn_owner_file_of_nobody_is_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_text(content)
    os.utime(tmp_path / "owner.json", (1, 1))
    with owned(tmp_path):
        pass
