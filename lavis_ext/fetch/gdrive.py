"""The opener of `gdrive:ID`: Drive's questions are answered as gdown answers them, bytes come as from any server."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lavis_ext.fetch.failures import Failure
from lavis_ext.fetch.http import HttpOpener
from lavis_ext.fetch.openers import Reply, Request, register_opener

if TYPE_CHECKING:
    from lavis_ext.fetch.session import Session

ENDPOINT = "https://drive.google.com"
HOSTS = ("google.com", "googleusercontent.com")
PAGE_LIMIT = 1 << 20
QUESTIONS = 4
QUOTA = ("too many users have viewed or downloaded this file", "quota exceeded", "download quota")

_ID = re.compile(r"[\w-]{1,200}")


@register_opener("gdrive")
class DriveOpener:
    """Remembers, per file, the address that its confirmation page led to, so that ranges need no second question."""

    def __init__(self, session: Session) -> None:
        self._http = HttpOpener(session)
        self._confirmed: dict[str, str] = {}
        self._lock = threading.Lock()

    def open(self, request: Request) -> Reply:
        """The file's bytes; a quota, sign-in or error page becomes a Failure that says what to do."""
        name = drive_id(request.url)
        start = f"{ENDPOINT}/uc?export=download&id={name}"
        known = self._known(name)
        url = known or start
        for _ in range(QUESTIONS):
            reply = self._http.open(replace(request, url=url))
            if not is_page(reply):
                self._remember(name, url)
                return reply
            page = read_page(reply)
            # an answer that was good once may have expired: then Drive is asked from the start
            url, known = (start, "") if url == known != start else (confirmed_url(page, name), known)
        raise Failure("access", f"Drive asks again and again before it gives {name}; name another mirror")

    def close(self) -> None:
        """Close pooled connections."""
        self._http.close()

    def _known(self, name: str) -> str:
        with self._lock:
            return self._confirmed.get(name, "")

    def _remember(self, name: str, url: str) -> None:
        with self._lock:
            self._confirmed[name] = url


def drive_id(url: str) -> str:
    """The file's id; raises Failure for what cannot be one."""
    parts = urlsplit(url)
    name = parts.netloc or parts.path.strip("/")
    if not _ID.fullmatch(name):
        raise Failure("final", "not a Drive file: expected gdrive:ID")
    return name


def is_page(reply: Reply) -> bool:
    """Whether Drive answered with a page for people instead of the file."""
    return reply.content_type == "text/html"


def read_page(reply: Reply) -> str:
    """The page's text, at most 1 MiB of it; the reply is closed."""
    data = bytearray()
    try:
        while len(data) < PAGE_LIMIT and (piece := reply.body.read(1 << 16)):
            data += piece
    finally:
        reply.body.close()
    return data.decode("utf-8", "replace")


def confirmed_url(page: str, name: str) -> str:
    """Where the page's "download anyway" leads, read by gdown; raises Failure for a page that leads nowhere."""
    try:
        from gdown.download import get_url_from_gdrive_confirmation
        from gdown.exceptions import FileURLRetrievalError
    except ImportError as error:
        raise Failure("final", "gdown is not installed: pip install -c constraints.txt gdown") from error
    if any(words in page.lower() for words in QUOTA):
        raise Failure("access", quota_told(name))
    try:
        url = str(get_url_from_gdrive_confirmation(page))
    except FileURLRetrievalError as error:
        told = " ".join(str(error).split("Check FAQ")[0].split())
        raise Failure("access", f"Drive refuses {name}: {told}") from error
    if not belongs_to_drive(url):
        raise Failure("unsafe", f"Drive's page leads to another host, {urlsplit(url).hostname!r}")
    return url


def quota_told(name: str) -> str:
    """What to do about a file whose quota is used up."""
    return (
        f"Drive's download quota for {name} is used up (too many downloads recently): try again in a day, or copy the "
        "file to a Drive of your own and download it there by hand, or name another mirror"
    )


def belongs_to_drive(url: str) -> bool:
    """Whether an address is one of Drive's hosts over TLS, or of the endpoint itself."""
    parts, own = urlsplit(url), urlsplit(ENDPOINT)
    if (parts.scheme, parts.netloc) == (own.scheme, own.netloc):
        return True
    host = parts.hostname or ""
    return parts.scheme == "https" and any(host == name or host.endswith(f".{name}") for name in HOSTS)
