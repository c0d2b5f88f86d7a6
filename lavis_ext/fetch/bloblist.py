"""What a container of Azure holds below a prefix, page by page, where the token may list."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, replace
from urllib.parse import urlencode

# A document type, the carrier of entity attacks, is refused before anything is parsed.
from xml.etree.ElementTree import Element, ParseError, fromstring

from lavis_ext.errors import IntegrityError, NetworkError
from lavis_ext.fetch.azure import blob_place
from lavis_ext.fetch.model import Policy, Source
from lavis_ext.fetch.small import fetch_bytes

PAGE = 5000
PAGE_LIMIT = 64 << 20
MOST_PAGES = 10_000


@dataclass(frozen=True)
class Listed:
    """A blob as a listing tells it: name within its container, bytes, md5 where the server keeps one."""

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
    """The blobs that are files: empty ones that stand for a folder (`a` or `a/` beside `a/b`) are left out."""
    folders = {blob.name[: at + 1] for blob in blobs for at, letter in enumerate(blob.name) if letter == "/"}
    return [
        blob for blob in blobs if not (blob.size == 0 and f"{blob.name}/" in folders) and not blob.name.endswith("/")
    ]
