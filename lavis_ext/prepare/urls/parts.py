"""Subclasses for img2dataset: guarded downloads, images under the names that annotations ask for, progress files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from img2dataset.downloader import Downloader
from img2dataset.writer import BufferedParquetWriter, WebDatasetSampleWriter

from lavis_ext.fetch.guard import ResponseLimits, install_guard
from lavis_ext.prepare.urls.rows import PATH

PULSE = 0.5
DISK_TROUBLE = "disk_trouble.json"


class GuardedDownloader(Downloader):  # type: ignore[misc]
    """img2dataset's downloader, which installs the guard of urllib in the process that calls it."""

    def __init__(self, limits: ResponseLimits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.limits = limits

    def __call__(self, row: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        """One shard: (whether it went well, the shard)."""
        install_guard(self.limits)
        done: tuple[bool, tuple[int, str]] = super().__call__(row)
        return done


class ShardPulse:
    """Writes the progress of a shard (rows and bytes) to `NNNNN.pulse`, and a failing disk to `disk_trouble.json`.

    The process that watches reads both.
    """

    def __init__(self, folder: str, shard: int) -> None:
        self._path = Path(folder) / f"{shard:05d}.pulse"
        self._trouble = Path(folder) / DISK_TROUBLE
        self._rows, self._bytes, self._written = 0, 0, 0.0

    def beat(self, size: int) -> None:
        """Count one more row, with an image of `size` bytes."""
        self._rows += 1
        self._bytes += size
        if time.monotonic() - self._written >= PULSE:
            self.write()

    def write(self) -> None:
        """Write the counts now."""
        self._written = time.monotonic()
        self._path.write_text(f"{self._rows} {self._bytes}", encoding="ascii")

    def fail(self, error: OSError, path: str) -> None:
        """Report a write that failed: img2dataset itself goes on after it."""
        self._trouble.write_text(json.dumps({"errno": error.errno, "path": path}), encoding="utf-8")


class ShardWriter(WebDatasetSampleWriter):  # type: ignore[misc]
    """img2dataset's tar writer, with progress."""

    def __init__(self, shard_id: int, output_folder: str, *rest: Any) -> None:
        super().__init__(shard_id, output_folder, *rest)
        self._folder = output_folder
        self._pulse = ShardPulse(output_folder, shard_id)

    def write(self, img_str: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """Enter a row, and its image if it has one."""
        try:
            super().write(img_str, key, caption, meta)
        except OSError as error:
            self._pulse.fail(error, self._folder)
            raise
        self._pulse.beat(len(img_str or b""))

    def close(self) -> None:
        """The end of the shard."""
        super().close()
        self._pulse.write()


class NamedFilesWriter:
    """Writes each image, bytes as they came, under its wanted path below `target`, whole or not at all."""

    def __init__(
        self,
        target: Path,
        shard_id: int,
        output_folder: str,
        save_caption: bool,
        oom_shard_count: int,
        schema: Any,
        encode_format: str,
    ) -> None:
        self._target = target
        self._folders: set[Path] = set()
        self._status = BufferedParquetWriter(f"{output_folder}/{shard_id:05d}.parquet", schema, 100)
        self._pulse = ShardPulse(output_folder, shard_id)

    def write(self, img_str: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """Enter a row, and put its image in place if it has one."""
        path = self._target / meta[PATH]
        try:
            if img_str is not None:
                self._place(path, img_str)
            self._status.write(meta)
        except OSError as error:
            self._pulse.fail(error, str(path))
            raise
        self._pulse.beat(len(img_str or b""))

    def _place(self, path: Path, data: bytes) -> None:
        if path.parent not in self._folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)

    def close(self) -> None:
        """The end of the shard."""
        self._status.close()
        self._pulse.write()
