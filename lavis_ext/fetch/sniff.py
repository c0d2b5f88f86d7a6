"""Whether the first bytes are of the kind that a file's name promises: login and quota pages are caught here."""

from __future__ import annotations

from lavis_ext.fetch.failures import Failure
from lavis_ext.fetch.model import Figures
from lavis_ext.fetch.openers import Reply

MAGIC: dict[str, tuple[bytes, ...]] = {
    ".zip": (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
    ".gz": (b"\x1f\x8b",),
    ".tgz": (b"\x1f\x8b",),
    ".jpg": (b"\xff\xd8",),
    ".jpeg": (b"\xff\xd8",),
    ".png": (b"\x89PNG",),
    ".parquet": (b"PAR1",),
}
PAGES = (".html", ".htm", ".xhtml", ".svg", ".xml")


def describe(reply: Reply) -> str:
    """The size of a reply's object in words, with a hint where it looks like a page made for people."""
    hint = " (an HTML page: login, quota or error page)" if reply.content_type == "text/html" else ""
    return f"{reply.total}{hint}"


def refuse_foreign(reply: Reply | None, name: str, figures: Figures, data: bytes = b"") -> None:
    """Raise Failure where the headers or the first bytes cannot be of a file of this name.

    With a declared hash only HTML pages are refused early: the hash decides the rest.
    """
    lower = name.lower()
    if data and not lower.endswith(PAGES) and looks_like_html(data):
        told = ": the host's download quota is used up" if b"uota" in data[:65536] else " (login, quota or error page)"
        raise Failure("integrity", f"the server sent an HTML page instead of {name}{told}")
    if figures.hashed:
        return
    if reply is not None and reply.encoding and not lower.endswith((".gz", ".tgz")):
        raise Failure("integrity", f"the server encodes the body ({reply.encoding}) although identity was asked for")
    suffix = lower[lower.rfind(".") :]
    expected = MAGIC.get(suffix, ())
    if data and expected and not data.startswith(tuple(magic[: len(data)] for magic in expected)):
        raise Failure("integrity", f"the first bytes are not those of a {suffix} file")


def looks_like_html(data: bytes) -> bool:
    """Whether bytes begin as an HTML page does."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html"))
