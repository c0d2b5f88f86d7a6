"""The opener of `file:` URLs and plain paths: local mirrors, with ranges and validators as a server has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

from lavis_ext.fetch.failures import Failure, Unsatisfiable
from lavis_ext.fetch.openers import Reply, Request, Validators, register_opener

if TYPE_CHECKING:
    from lavis_ext.fetch.session import Session


class LocalBody:
    """Bytes of an open file up to a stop."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file = file
        self._left = left

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the stop; raises Failure where the file cannot be read."""
        try:
            data = self._file.read(min(size, self._left))
        except OSError as error:
            raise Failure("transient", f"cannot read: {error.strerror}") from error
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def abort(self) -> None:
        """Nothing blocks here."""


@register_opener("file")
class LocalOpener:
    """Answers from the file system."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def open(self, request: Request) -> Reply:
        """The bytes of a regular file; raises Failure, Unsatisfiable."""
        path = local_path(request.url)
        if not path.is_file():
            raise Failure("absent", "no such file")
        try:
            file = path.open("rb")
        except OSError as error:
            raise Failure("access", f"cannot open: {error.strerror}") from error
        stat = path.stat()
        validators = Validators(etag=f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"')
        if request.start and request.start >= stat.st_size:
            file.close()
            raise Unsatisfiable(stat.st_size)
        full = request.whole or request.condition not in (None, validators.etag)
        start = 0 if full else request.start
        stop = stat.st_size if full or request.stop is None else min(request.stop, stat.st_size)
        file.seek(start)
        return Reply(start, stat.st_size, LocalBody(file, stop - start), validators, partial=not full, ranges=True)


def local_path(url: str) -> Path:
    """`file:///folder/a%20b` or `/folder/a b` → path; another host is refused with a Failure."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return Path(url)
    if parts.netloc not in ("", "localhost"):
        raise Failure("unsafe", f"file URL of another host, {parts.netloc!r}")
    return Path(unquote(parts.path))
