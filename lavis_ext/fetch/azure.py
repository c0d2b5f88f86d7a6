"""Azure Blob Storage: SAS tokens, the opener of `azure:ACCOUNT/CONTAINER/BLOB`, and listings of containers.

A token is sent with each request and appears in no log, message, record or `repr`.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlencode

from lavis_ext.common.errors import AccessError, ConfigError, IntegrityError, LavisExtError, NetworkError
from lavis_ext.common.files import expanded
from lavis_ext.fetch.backends import may_carry_token
from lavis_ext.fetch.remote import fetch_bytes
from lavis_ext.fetch.safety import deny_reason, redact, safe_relative, split_url
from lavis_ext.fetch.session import Reply, Request, Session, register_opener
from lavis_ext.fetch.transfer import Failure, Policy, Source

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# Shared access signatures (SAS): where the token of a container comes from, and what its own fields say

VARIABLE = "LAVIS_EXT_AZURE_SAS_"
FILE_VARIABLE = "LAVIS_EXT_AZURE_TOKENS"
STANDARD_INPUT = "-"
ANY = ""
"""The container name of a token without one: it is used for every container that has no token of its own."""

_FORM = re.compile(r"[\x21-\x7e]+")
RIGHTS = {"r": "read", "l": "list"}


@dataclass(frozen=True)
class Sas:
    """A token as the user gave it, without the leading `?`; `repr` does not show it."""

    query: str = field(repr=False)
    origin: str = ""

    def value(self, name: str) -> str:
        """One of its fields (`sp`, `se` …), "" where it has none."""
        return parse_qs(self.query).get(name, [""])[0]

    def obstacle(self, right: str, now: datetime | None = None) -> str | None:
        """Why this token cannot do what is asked (`r` read, `l` list), from its own fields; None where it may."""
        now = now or datetime.now(timezone.utc)
        starts, ends = parse_time(self.value("st")), parse_time(self.value("se"))
        if ends is not None and ends <= now:
            return f"the SAS from {self.origin} expired on {self.value('se')}"
        if starts is not None and starts > now:
            return f"the SAS from {self.origin} is valid only from {self.value('st')} on, by this machine's clock"
        rights = self.value("sp")
        if rights and right not in rights:
            return f"the SAS from {self.origin} gives no right to {RIGHTS[right]} (sp={rights})"
        return None

    @property
    def may_list(self) -> bool:
        """Whether its own fields say that it lists."""
        return self.obstacle("l") is None and "l" in self.value("sp")


def parse_time(text: str) -> datetime | None:
    """A time of a SAS (`2030-01-31`, `2030-01-31T10:00Z`, `2030-01-31T10:00:00Z`), None where it is none."""
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def clean_token(text: str, where: str) -> str:
    """The token in a text that may be a whole signed URL or begin with `?`, otherwise unchanged.

    Raises ConfigError, which does not show the text, for what cannot be a token.
    """
    token = text.strip().rpartition("?")[2].lstrip("&")
    if not _FORM.fullmatch(token) or "sig" not in parse_qs(token):
        raise ConfigError(where, "holds no SAS", "expected what stands behind the `?` of a signed URL: sv=…&sig=…")
    return token


def variable_of(container: str) -> str:
    """The environment variable that holds a container's token: `LAVIS_EXT_AZURE_SAS_OSCAR`."""
    return VARIABLE + re.sub(r"[^A-Z0-9]", "_", container.upper())


class SasTokens:
    """The tokens of this process: from the environment, then from a file or standard input that the user named."""

    def __init__(self) -> None:
        self._tokens: dict[str, Sas] = {}
        self._source = ""

    def load(self, source: str) -> None:
        """Take tokens from a file that only its owner may read, or from standard input (`-`).

        A line is `CONTAINER TOKEN`, or a token alone, for every container. Raises AccessError, ConfigError.
        """
        text = sys.stdin.read() if source == STANDARD_INPUT else read_private(Path(source))
        where = "standard input" if source == STANDARD_INPUT else source
        found: dict[str, Sas] = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            container, _, token = line.rpartition(" ")
            found[container.strip()] = Sas(clean_token(token, where), where)
        if not found:
            raise ConfigError(where, "holds no SAS", "write `CONTAINER TOKEN` on a line of it")
        self._tokens, self._source = found, source

    def forget(self) -> None:
        """Drop what was loaded."""
        self._tokens, self._source = {}, ""

    def find(self, container: str) -> Sas | None:
        """The token of a container, None where there is none; raises AccessError, ConfigError."""
        name = variable_of(container)
        if os.environ.get(name):
            return Sas(clean_token(os.environ[name], name), name)
        file = os.environ.get(FILE_VARIABLE, "")
        if file and not self._source:
            self.load(file)
        return self._tokens.get(container) or self._tokens.get(ANY)


TOKENS = SasTokens()


def read_private(path: Path) -> str:
    """The text of a file that nobody but its owner may read; raises AccessError for any other."""
    try:
        with expanded(path).open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise AccessError(str(path), "others may read it, and it holds a secret", f"chmod 600 {path}")
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(
            str(path),
            f"cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}",
            "name a file with tokens",
        ) from error


# Addresses and the opener

ENDPOINT = "https://{account}.blob.core.windows.net"
ENDPOINT_VARIABLE = "LAVIS_EXT_AZURE_ENDPOINT"
API_VERSION = "2022-11-02"
"""Asked for where no SAS names one: older versions answer in older forms."""

_NO_NAME = "there is none of this name (a folder is not a blob, and names are case-sensitive)"
ADVICE = {
    "PublicAccessNotPermitted": "the account gives nothing without a SAS",
    "NoAuthenticationInformation": "no SAS was sent",
    "AuthenticationFailed": "the SAS is wrong, expired, or was issued for another container",
    "AuthorizationPermissionMismatch": "the SAS lacks the right that this asks for",
    "AuthorizationFailure": "the SAS does not allow this",
    "AuthorizationResourceTypeMismatch": "the SAS does not allow this kind of request",
    "AuthorizationSourceIPMismatch": "the SAS is not valid from this network address",
    "BlobNotFound": _NO_NAME,
    "ContainerNotFound": "there is no container of this name",
    "ResourceNotFound": _NO_NAME,
    "BlobArchived": "the blob is in the archive and has to be brought back by its owner first",
    "ServerBusy": "the account is busy",
    "OperationTimedOut": "the account took too long",
    "InternalError": "an error on the side of Azure",
}
CHANGED = frozenset({"ConditionNotMet", "TargetConditionNotMet"})


@dataclass(frozen=True)
class BlobPlace:
    """Where a blob is (`blob` "" is the container itself); `query` is that of a listing, else ""."""

    account: str
    container: str
    blob: str = ""
    query: str = ""

    @property
    def listing(self) -> bool:
        """Whether this asks what a container holds."""
        return "comp=list" in self.query.split("&")

    def url(self) -> str:
        """Its address at the endpoint, without a SAS."""
        base = os.environ.get(ENDPOINT_VARIABLE) or ENDPOINT
        base = base if "{account}" in base else f"{base.rstrip('/')}/{{account}}"
        path = quote(f"{self.container}/{self.blob}".rstrip("/"))
        query = f"?{self.query}" if self.query else ""
        return f"{base.replace('{account}', self.account).rstrip('/')}/{path}{query}"


@register_opener("azure")
class AzureOpener:
    """Appends the SAS to each request when it is sent; the signed URL is not kept."""

    def __init__(self, session: Session) -> None:
        from lavis_ext.fetch.http import HttpOpener  # urllib3, which tokens alone do not need

        self._http = HttpOpener(session)
        self._denied = session.policy.denied_hosts

    def open(self, request: Request) -> Reply:
        """The blob's bytes, or a listing; Azure's refusals become Failures that say what would help."""
        place = blob_place(request.url)
        sas = find_token(place)
        url = place.url()
        reason = deny_reason(ENDPOINT.replace("{account}", place.account), self._denied)
        if reason:
            raise Failure("unsafe", reason)
        if sas is not None and not may_carry_token(url):
            raise Failure("unsafe", f"a SAS is not sent over plain http ({ENDPOINT_VARIABLE})")
        headers = {} if sas else {"x-ms-version": API_VERSION}
        if request.condition and request.condition.startswith('"'):
            headers["If-Match"] = request.condition  # Azure knows no If-Range
        try:
            return self._http.open(replace(request, url=signed(url, sas)), headers)
        except Failure as failure:
            raise explained(failure, place, sas) from None  # the cause may hold the signed URL

    def close(self) -> None:
        """Close pooled connections."""
        self._http.close()


def blob_place(url: str) -> BlobPlace:
    """The parts of `azure:ACCOUNT/CONTAINER/BLOB`; raises Failure where one is missing, UnsafeError for `..`."""
    parts = split_url(url)
    whole = "/".join(part for part in (parts.netloc, parts.path) if part)
    account, _, rest = safe_relative(whole).partition("/")
    container, _, blob = rest.partition("/")
    if not container or not account.isalnum() or not (blob or parts.query):
        raise Failure("final", "not an address of a blob: expected azure:ACCOUNT/CONTAINER/BLOB")
    ending = "/" if blob and whole.endswith("/") else ""
    return BlobPlace(account, container, blob + ending, parts.query)


def signed(url: str, sas: Sas | None) -> str:
    """The URL with the token appended as it was given."""
    if sas is None:
        return url
    return f"{url}{'&' if '?' in url else '?'}{sas.query}"


def find_token(place: BlobPlace) -> Sas | None:
    """The container's token; raises Failure (access) where its own fields say that it cannot do this."""
    try:
        sas = TOKENS.find(place.container)
    except LavisExtError as error:
        raise Failure("access", str(error)) from None
    obstacle = sas.obstacle("l" if place.listing else "r") if sas else None
    if obstacle:
        raise Failure("access", f"{obstacle}; {way_in(place)}")
    return sas


def way_in(place: BlobPlace) -> str:
    """What a person does to get at a container."""
    return f"set {variable_of(place.container)} to a SAS of the container '{place.container}', or use --sas-file"


def explained(failure: Failure, place: BlobPlace, sas: Sas | None) -> Failure:
    """The failure with what Azure's error code means and what would help."""
    if failure.code in CHANGED or failure.kind == "replaced":
        return Failure("replaced", "the blob was replaced while it was fetched", code=failure.code)
    kind, reason = failure.kind, redact(failure.reason)
    if failure.code in ADVICE:
        reason += f": {ADVICE[failure.code]}"
    if failure.code == "ResourceNotFound" and sas is None:
        kind = "access"
        reason += ", or the container is private: Azure answers so where no SAS is sent"
    if kind == "access":
        reason += f"; {way_in(place)}"
    return Failure(kind, reason, failure.retry_after, failure.code)


def child_url(folder: str, name: str) -> str:
    """The address of a blob below a folder's address."""
    return f"{folder.rstrip('/')}/{quote(name)}"


def name_below(folder: str, url: str) -> str:
    """The relative name of a blob below a folder; "" where it does not lie below it."""
    prefix = f"{folder.rstrip('/')}/"
    return unquote(url[len(prefix) :]) if url.startswith(prefix) else ""


# Listings

PAGE = 5000
PAGE_LIMIT = 64 << 20
MOST_PAGES = 10_000


@dataclass(frozen=True)
class Listed:
    """A blob in a listing: name within its container, bytes, md5 where the server keeps one."""

    name: str
    size: int
    md5: str | None = None


def list_blobs(folder: str, policy: Policy | None = None, page: int = PAGE) -> list[Listed]:
    """Every blob below `azure:ACCOUNT/CONTAINER/FOLDER`, names relative to it, in the server's order.

    `NextMarker` is followed to the end. Raises AccessError where the token may not list, NetworkError where there is no
    such container, IntegrityError for an answer that cannot be read.
    """
    place = blob_place(f"{folder.rstrip('/')}/?comp=list")
    base = f"azure:{place.account}/{place.container}"
    found: list[Listed] = []
    marker = ""
    for _ in range(MOST_PAGES):
        asked = {"restype": "container", "comp": "list", "prefix": place.blob, "maxresults": page, "marker": marker}
        query = urlencode({name: value for name, value in asked.items() if value != ""})
        data = fetch_bytes(Source(f"{base}?{query}"), policy, PAGE_LIMIT)
        if data is None:
            raise NetworkError(folder, "there is no such container", "name another address")
        blobs, following = parse_listing(data, folder)
        found += blobs
        if not following:
            return [replace(blob, name=blob.name.removeprefix(place.blob)) for blob in without_folders(found)]
        if following == marker:
            break
        marker = following
    raise IntegrityError(folder, "its listing does not come to an end", "name the blobs in a manifest")


def parse_listing(data: bytes, where: str) -> tuple[list[Listed], str]:
    """One page of `comp=list`: its blobs, and the marker of the next page ("" on the last).

    Form: <EnumerationResults><Blobs><Blob><Name>, <Properties><Content-Length>, <Content-MD5>; <NextMarker>.
    """
    # document types, by which entity attacks come, are refused before it is parsed
    from xml.etree.ElementTree import ParseError, fromstring

    try:
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise ValueError("a document type is refused")
        root = fromstring(data)  # noqa: S314
        if root.tag != "EnumerationResults":
            raise ValueError(f"<{root.tag}> is no listing")
        return [_blob(node) for node in root.iterfind("Blobs/Blob")], (root.findtext("NextMarker") or "").strip()
    except (ParseError, ValueError) as error:
        raise IntegrityError(where, f"its listing cannot be read: {error}", "name the blobs in a manifest") from error


def _blob(node: Element) -> Listed:
    name, size = node.findtext("Name") or "", node.findtext("Properties/Content-Length") or ""
    if not name or not size.isdigit():
        raise ValueError(f"blob {name[:100]!r} has no size")
    return Listed(name, int(size), md5_of(node.findtext("Properties/Content-MD5") or ""))


def md5_of(text: str) -> str | None:
    """Hexadecimal digits of a `Content-MD5` (base64), None where there is none or it is of another length."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest.hex() if len(digest) == 16 else None


def without_folders(blobs: list[Listed]) -> list[Listed]:
    """The blobs that are files: empty ones that mark a folder (`a` or `a/` beside `a/b`) are left out."""
    folders = {blob.name[: at + 1] for blob in blobs for at, letter in enumerate(blob.name) if letter == "/"}
    return [
        blob for blob in blobs if not (blob.size == 0 and f"{blob.name}/" in folders) and not blob.name.endswith("/")
    ]
