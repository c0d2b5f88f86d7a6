"""Small file systems that can be filled, used up and made read-only, where this machine allows a mount."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class SmallDisk:
    """A tmpfs at `path`."""

    path: Path

    def fill(self, leave: int = 0) -> None:
        """Take all space but about `leave` bytes (a tmpfs gives whole pages)."""
        with (self.path / "filler").open("wb", buffering=0) as file:
            try:
                while shutil.disk_usage(self.path).free > leave:
                    file.write(bytes(min(1 << 16, max(1, shutil.disk_usage(self.path).free - leave))))
            except OSError:
                return

    def use_up_inodes(self, leave: int = 0) -> None:
        """Make empty files until only `leave` more may be made."""
        folder = self.path / "filler.d"
        folder.mkdir()
        for number in range(os.statvfs(self.path).f_ffree - leave):
            (folder / str(number)).touch()

    def relieve(self) -> None:
        """Take away what filled it."""
        (self.path / "filler").unlink(missing_ok=True)
        shutil.rmtree(self.path / "filler.d", ignore_errors=True)

    def grow(self, size: int) -> None:
        """Make it larger."""
        self._remount(f"size={size}")

    def read_only(self, on: bool = True) -> None:
        """Refuse every write, root's too."""
        self._remount("ro" if on else "rw")

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True, capture_output=True)


@contextmanager
def small_disk(path: Path, size: int, inodes: int | None = None) -> Iterator[SmallDisk]:
    """Mount one of `size` bytes; the test is skipped where that is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={size}" + (f",nr_inodes={inodes}" if inodes else "")
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no tmpfs may be mounted here, which takes CAP_SYS_ADMIN")
    try:
        yield SmallDisk(path)
    finally:
        os.sync()
        subprocess.run(["umount", "-l", path], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., SmallDisk]]:
    """`disk(size, inodes=None)` mounts a small disk for the time of the test."""
    with ExitStack() as mounted:
        yield lambda size, inodes=None: mounted.enter_context(
            small_disk(tmp_path / f"disk{size}", size, inodes)  # one of a size in a test
        )
