"""One live process a job folder, by the same owner file with heartbeat that guards downloads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lavis_ext.errors import OwnedError
from lavis_ext.fetch import Policy
from lavis_ext.fetch.owner import Ownership
from lavis_ext.runner.files import disk_errors

AT_ONCE = Policy(owner_wait=0, owner_stall=0)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold `folder` for the block; raises OwnedError at once if another live process holds it."""
    file = folder / "owner.json"
    with disk_errors(file):
        folder.mkdir(parents=True, exist_ok=True)
    owner = Ownership(file, file, AT_ONCE)
    try:
        owner.__enter__()
    except OwnedError as error:
        what = error.problems[0].what
        raise OwnedError(str(folder), what, "wait for it, or use another run.job_id") from error
    try:
        yield
    finally:
        owner.__exit__()
