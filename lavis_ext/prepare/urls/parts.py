"""Subclasses for img2dataset: guarded downloads, images under the names that annotations ask for, progress files."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path
from typing import Any

from img2dataset.downloader import Downloader
from img2dataset.writer import BufferedParquetWriter, WebDatasetSampleWriter

from lavis_ext.fetch.guard import ResponseLimits, install_guard
from lavis_ext.prepare.urls.supervise import reporting
from lavis_ext.prepare.urls.tables import LISTED, PATH

PULSE = 0.5


class GuardedDownloader(Downloader):  # type: ignore[misc]
    """img2dataset's downloader, which installs the guard of urllib in the process that calls it.

    A write that fails is reported where it happens: in the midst of a shard img2dataset leaves out the sample, and may
    wait for ever for its threads.
    """

    def __init__(self, limits: ResponseLimits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.limits = limits

    def __call__(self, row: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        """One shard: (whether it went well, the shard)."""
        install_guard(self.limits)
        done: tuple[bool, tuple[int, str]] = super().__call__(row)
        return done

    def download_shard(self, row: tuple[int, str]) -> None:
        """One shard."""
        with reporting(self.output_folder):
            super().download_shard(row)


class ShardPulse:
    """Writes the progress of a shard (rows and bytes) to `NNNNN.pulse`, for the process that watches."""

    def __init__(self, folder: str, shard: int) -> None:
        self._path = Path(folder) / f"{shard:05d}.pulse"
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


class ShardWriter(WebDatasetSampleWriter):  # type: ignore[misc]
    """img2dataset's tar writer, with progress."""

    def __init__(self, shard_id: int, output_folder: str, *rest: Any) -> None:
        super().__init__(shard_id, output_folder, *rest)
        self._folder = output_folder
        self._pulse = ShardPulse(output_folder, shard_id)

    def write(self, img_str: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """Enter a row, and its image if it has one; with the URL that is listed in the place of a mirror's."""
        meta["url"] = meta.get(LISTED) or meta["url"]
        with reporting(self._folder):
            super().write(img_str, key, caption, meta)
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
        with reporting(str(path)):
            if img_str is not None:
                self._place(path, img_str)
            self._status.write(meta)
            self._pulse.beat(len(img_str or b""))

    def _place(self, path: Path, data: bytes) -> None:
        if path.parent not in self._folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
        part = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.part")  # names hold 255 bytes
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        """The end of the shard."""
        self._status.close()
        self._pulse.write()
