"""The openers of `gdrive:ID`, `hf:datasets/OWNER/NAME/FILE` and local files.

Drive and the hub are asked through the http opener; a local file answers with ranges and validators, as a server does.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import replace
from io import FileIO
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from lavis_ext.fetch.mirrors import hub_path
from lavis_ext.fetch.safety import is_loopback, safe_relative
from lavis_ext.fetch.session import Reply, Request, Session, Validators, register_opener
from lavis_ext.fetch.transfer import Failure, Policy, SpeedGate, Unsatisfiable

# Google Drive

DRIVE_ENDPOINT = "https://drive.google.com"
HOSTS = ("google.com", "googleusercontent.com")
PAGE_BYTES = 1 << 20
PAGES = 4
"""Confirmation pages that are followed for one file."""
QUOTA = ("too many users have viewed or downloaded this file", "quota exceeded", "download quota")

_ID = re.compile(r"[\w-]{1,200}")


@register_opener("gdrive")
class DriveOpener:
    """Large files come after a confirmation page, which gdown reads.

    The address it leads to is kept per file, so that further ranges need no page.
    """

    def __init__(self, session: Session) -> None:
        from lavis_ext.fetch.http import HttpOpener  # urllib3, which a local mirror does not need

        self._http = HttpOpener(session)
        self._policy = session.policy
        self._confirmed: dict[str, str] = {}
        self._lock = threading.Lock()

    def open(self, request: Request) -> Reply:
        """The file's bytes; a quota, sign-in or error page becomes a Failure that says what to do."""
        name = drive_id(request.url)
        start = f"{DRIVE_ENDPOINT}/uc?export=download&id={name}"
        with self._lock:
            known = self._confirmed.get(name, "")
        url = known or start
        for _ in range(PAGES):
            reply = self._http.open(replace(request, url=url))
            if not is_page(reply):
                with self._lock:
                    self._confirmed[name] = url
                return reply
            page = read_page(reply, self._policy)
            # a confirmed address may have expired: then Drive is asked from the start
            url, known = (start, "") if url == known != start else (confirmed_url(page, name), known)
        raise Failure("access", f"Drive asks again and again before it gives {name}; name another mirror")

    def close(self) -> None:
        """Close pooled connections."""
        self._http.close()


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


def read_page(reply: Reply, policy: Policy) -> str:
    """The page's text, at most 1 MiB of it; the reply is closed. Raises Failure for one that drips."""
    data, gate = bytearray(), SpeedGate(policy)
    try:
        while len(data) < PAGE_BYTES and (piece := reply.body.read(1 << 16)):
            data += piece
            gate.passed(len(piece))
    finally:
        reply.body.close()
    return data.decode("utf-8", "replace")


def confirmed_url(page: str, name: str) -> str:
    """The address behind the page's "download anyway", read by gdown; raises Failure for a page without one."""
    try:
        from gdown.download import get_url_from_gdrive_confirmation
        from gdown.exceptions import FileURLRetrievalError
    except ImportError as error:
        raise Failure("package", "gdown is not installed: pip install -c constraints.txt gdown") from error
    if any(words in page.lower() for words in QUOTA):
        raise Failure(
            "access",
            f"Drive's download quota for {name} is used up (too many downloads recently): try again in a day, or copy "
            "the file to a Drive of your own and download it there by hand, or name another mirror",
        )
    try:
        url = str(get_url_from_gdrive_confirmation(page))
    except FileURLRetrievalError as error:
        reason = " ".join(str(error).split("Check FAQ")[0].split())
        raise Failure("access", f"Drive refuses {name}: {reason}") from error
    if not belongs_to_drive(url):
        raise Failure("unsafe", f"Drive's page leads to another host, {urlsplit(url).hostname!r}")
    return url


def belongs_to_drive(url: str) -> bool:
    """Whether an address is one of Drive's hosts over TLS, or of the endpoint itself."""
    parts, own = urlsplit(url), urlsplit(DRIVE_ENDPOINT)
    if (parts.scheme, parts.netloc) == (own.scheme, own.netloc):
        return True
    host = parts.hostname or ""
    return parts.scheme == "https" and any(host == name or host.endswith(f".{name}") for name in HOSTS)


# The Hugging Face hub

HUB_ENDPOINT = "https://huggingface.co"
ENDPOINT_VARIABLE = "HF_ENDPOINT"


@register_opener("hf")
class HubOpener:
    """Asks the hub, or the endpoint that `HF_ENDPOINT` names, through the http opener.

    The token goes to that host only: the http opener drops it where a redirect leaves for the content network.
    """

    def __init__(self, session: Session) -> None:
        from lavis_ext.fetch.http import HttpOpener  # urllib3, which a local mirror does not need

        self._http = HttpOpener(session)

    def open(self, request: Request) -> Reply:
        """The file's bytes, or for `hf:api/…` an answer of the API; 401 and 403 say where the licence is accepted."""
        parts = urlsplit(request.url)
        path = hub_place(request.url)
        if path.startswith("api/"):  # as it is: a revision may hold an encoded slash
            url = f"{endpoint()}/{parts.netloc}{parts.path}{'?' + parts.query if parts.query else ''}"
            path = path.removeprefix("api/").removeprefix("models/")
        else:
            url = f"{endpoint()}/{quote(hub_path(path))}"
        token = hub_token() if may_carry_token(url) else None
        headers = {"Authorization": f"Bearer {token}"} if token else None
        try:
            return self._http.open(replace(request, url=url), headers)
        except Failure as failure:
            if failure.kind != "access":
                raise
            raise Failure("access", f"{failure.reason}; {way_in(path, bool(token))}") from failure

    def close(self) -> None:
        """Close pooled connections."""
        self._http.close()


def endpoint() -> str:
    """Where the hub is: `HF_ENDPOINT`, else huggingface.co; without a slash at the end."""
    return (os.environ.get(ENDPOINT_VARIABLE) or HUB_ENDPOINT).rstrip("/")


def hub_place(url: str) -> str:
    """`datasets/owner/name[@revision]/file` of an `hf:` URL; raises Failure where a part is missing."""
    parts = urlsplit(url)
    path = safe_relative("/".join(part for part in (parts.netloc, parts.path) if part))
    rest = path.removeprefix("datasets/").split("/")
    if len(rest) < 3 or not all(rest):
        raise Failure("final", "not an address of the hub: expected hf:datasets/OWNER/NAME[@REVISION]/FILE")
    return path


def hub_page(path: str) -> str:
    """The page of a repository, where its licence is shown and accepted."""
    kind = "datasets/" if path.startswith("datasets/") else ""
    owner, name = path.removeprefix("datasets/").split("/")[:2]
    return f"{endpoint()}/{kind}{owner}/{name.partition('@')[0]}"


def way_in(path: str, signed_in: bool) -> str:
    """What a person does to get at a repository that refuses."""
    page = hub_page(path)
    if signed_in:
        return f"accept the licence on {page} with the account of your token, and see that the token may read it"
    return f"accept the licence on {page}, then set HF_TOKEN or run `hf auth login`"


def may_carry_token(url: str) -> bool:
    """Whether a token may travel there: over TLS, or to this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def hub_token() -> str | None:
    """The user's token: `HF_TOKEN`, else the one that `hf auth login` stored; None where there is none."""
    try:
        from huggingface_hub import get_token
    except ImportError:
        return os.environ.get("HF_TOKEN") or None
    token = get_token()
    return str(token) if token else None


# `file:` URLs and plain paths


class LocalBody:
    """Bytes of an open file up to a stop."""

    def __init__(self, file: FileIO, left: int) -> None:
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

    def readinto(self, buffer: memoryview) -> int:
        """`read` into a buffer."""
        try:
            count = self._file.readinto(buffer[: self._left]) or 0
        except OSError as error:
            raise Failure("transient", f"cannot read: {error.strerror}") from error
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()

    def abort(self) -> None:
        pass  # reads of a file do not block


@register_opener("file")
class LocalOpener:
    """Answers from the file system; needs nothing of the session."""

    def __init__(self, _: Session) -> None:
        pass

    def open(self, request: Request) -> Reply:
        """The bytes of a regular file; raises Failure, Unsatisfiable."""
        path = local_path(request.url)
        if not path.is_file():
            raise Failure("absent", "no such file")
        try:
            file = path.open("rb", buffering=0)
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
