"""Why one attempt at one source failed, and what the engine does about it: retry, next source, or give up."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Literal

from lavis_ext.errors import AccessError, DiskError, IntegrityError, LavisExtError, NetworkError, UnsafeError
from lavis_ext.files import to_disk_error

Kind = Literal["transient", "final", "absent", "ranges", "access", "unsafe", "integrity", "replaced"]

DISK_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENOTDIR, errno.ENAMETOOLONG}
)


class Failure(Exception):
    """An attempt that failed.

    transient: the same source again, after a delay · final, access, unsafe: the next source · absent, ranges: as final,
    the source has no such object, or gives no parts of it · integrity: what came is
    thrown away, once more, then the next source · replaced: what is there belongs to another object, start over.
    `code` is the server's own word for it (Azure's `BlobNotFound`), "" where it gave none.
    """

    def __init__(self, kind: Kind, reason: str, retry_after: float | None = None, code: str = "") -> None:
        super().__init__(reason)
        self.kind: Kind = kind
        self.reason = reason
        self.retry_after = retry_after
        self.code = code


class RangesUnsupported(NetworkError):
    """No source gives parts of the object: only the whole of it can be fetched."""


class Unsatisfiable(Exception):
    """416: the server has nothing at that range; `total` is the object's size where the server tells."""

    def __init__(self, total: int | None) -> None:
        super().__init__(f"range not satisfiable, total {total}")
        self.total = total


class Stopped(Exception):
    """Another part of the same run failed or was interrupted; the partial file and its sidecar are valid."""


_WAYS_OUT: dict[type[LavisExtError], str] = {
    AccessError: "sign in, accept the licence, or set the token that this host asks for (run `lavis-ext doctor`)",
    IntegrityError: "the host may have replaced the file: compare with its homepage, then correct the declared figures "
    "or name another mirror",
    UnsafeError: "name a source that is safe",
    NetworkError: "try again later, or name another mirror (LAVIS_EXT_MIRROR)",
}


def conclude(where: str, failures: list[tuple[str, Failure]]) -> LavisExtError:
    """The error for a transfer whose sources all failed: `failures` are (redacted URL, failure) in order.

    Bytes that did not match anywhere make it an IntegrityError; else the last reason decides.
    """
    kinds = [failure.kind for _, failure in failures]
    error: type[LavisExtError] = NetworkError
    if any(kind in ("integrity", "replaced") for kind in kinds):
        error = IntegrityError
    elif "ranges" in kinds:
        error = RangesUnsupported
    elif kinds and kinds[-1] == "access":
        error = AccessError
    elif kinds and kinds[-1] == "unsafe":
        error = UnsafeError
    told = "; ".join(f"{url}: {failure.reason}" for url, failure in failures) or "no source is declared"
    way_out = next(told_way for kind, told_way in _WAYS_OUT.items() if issubclass(error, kind))
    return error(where, told, way_out)


def disk_error(error: OSError, path: Path) -> DiskError:
    """An OSError of the file system as DiskError that says what to free or change; what was fetched is kept."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    way_out = "free space or choose another cache_root" if full else "choose a cache_root that you may write to"
    return to_disk_error(error, path, f"{way_out}; what was fetched is kept, run again to continue")
