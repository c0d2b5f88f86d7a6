"""A loopback stand-in of Azure's blob service: ranges, ETags, If-Match, SAS, XML errors, paged listings."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.server import Seen, Server, _Handler

ACCOUNT = "biglmdiag"
CANARY = "c4n4ry%2BSAS%2Fs3cret%3D"
"""A signature in the form that Azure writes: what is escaped in it must arrive so."""
STATUS = {
    "PublicAccessNotPermitted": 409,
    "AuthenticationFailed": 403,
    "AuthorizationPermissionMismatch": 403,
    "NoAuthenticationInformation": 401,
    "ResourceNotFound": 404,
    "BlobNotFound": 404,
    "ContainerNotFound": 404,
    "ConditionNotMet": 412,
    "ServerBusy": 503,
}


def token(container: str, rights: str = "r", days: float = 1, signature: str = CANARY) -> str:
    """A SAS of a container, as Azure writes one."""
    now = datetime.now(timezone.utc)
    start, end = (f"{now + timedelta(days=d):%Y-%m-%dT%H:%M:%SZ}" for d in (-1000, days))
    return f"sp={rights}&st={start}&se={end}&spr=https&sv=2022-11-02&sr=c&sig={container}{signature}"


@dataclass
class Refusal:
    """What is answered instead, the next `times` times for a path."""

    code: str
    times: int = 1
    in_header: bool = True


class Azure(Server):
    """Serves `/ACCOUNT/CONTAINER/BLOB` to those who bring the container's SAS; `public` containers to all."""

    def __init__(self) -> None:
        super().__init__()
        self._httpd.RequestHandlerClass = _AzureHandler
        self.tokens: dict[str, str] = {}
        self.public: set[str] = set()
        self.denial = "PublicAccessNotPermitted"
        self.refusals: dict[str, Refusal] = {}
        self.queries: list[str] = []
        self.page = 5000

    def offer(self, container: str, blobs: dict[str, bytes], rights: str = "r", **more: Any) -> str:
        """Put blobs into a container; returns the SAS that reads it."""
        for name, data in blobs.items():
            self.put(f"/{ACCOUNT}/{container}/{name}", data, **more)
        self.tokens[container] = token(container, rights)
        return self.tokens[container]

    def blobs(self, container: str) -> dict[str, bytes]:
        """What a container holds."""
        prefix = f"/{ACCOUNT}/{container}/"
        return {path[len(prefix) :]: o.data for path, o in sorted(self.objects.items()) if path.startswith(prefix)}

    def find(self, path: str) -> Any:
        """Names are kept as they are, addresses may be escaped."""
        return super().find(unquote(path))

    def judge(self, path: str, query: str, condition: str | None) -> str:
        """The code with which a request is refused, "" where it is served."""
        container = path.split("/")[2] if path.count("/") > 1 else ""
        refusal = self.refusals.get(path)
        if refusal is not None and refusal.times > 0:
            refusal.times -= 1
            return refusal.code
        if container not in self.public:
            if "sig=" not in query:
                return self.denial
            own = self.tokens.get(container)
            if own is None or not query.endswith(own):  # byte for byte: nothing may be encoded anew
                return "AuthenticationFailed"
            if "comp=list" in query and "l" not in parse_qs(own)["sp"][0]:
                return "AuthorizationPermissionMismatch"
        if "comp=list" in query:
            return "" if self.blobs(container) else "ContainerNotFound"
        found = self.find(path)
        if found is None:
            return "BlobNotFound"
        return "ConditionNotMet" if condition not in (None, found.etag) else ""

    def listing(self, container: str, asked: dict[str, list[str]]) -> bytes:
        """The page of a container that is asked for."""
        prefix, marker = asked.get("prefix", [""])[0], asked.get("marker", [""])[0]
        size = min(self.page, int(asked.get("maxresults", ["5000"])[0]))
        names = [name for name in self.blobs(container) if name.startswith(prefix) and name >= marker]
        blobs = {name: self.blobs(container)[name] for name in names[:size]}
        return listing_page(blobs, container, prefix, names[size] if len(names) > size else "")[0]


def listing_page(blobs: dict[str, bytes], container: str, prefix: str, following: str) -> tuple[bytes, str]:
    """A page of a listing in Azure's form, with the mark of byte order that it begins with, and its marker."""
    rows = "".join(_row(name, data) for name, data in blobs.items())
    text = (
        f'\ufeff<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="{container}">'
        f"<Prefix>{escape(prefix)}</Prefix><Blobs>{rows}</Blobs><NextMarker>{escape(following)}</NextMarker>"
        "</EnumerationResults>"
    )
    return text.encode(), following


def _row(name: str, data: bytes) -> str:
    digest = base64.b64encode(hashlib.md5(data).digest()).decode()
    return (
        f"<Blob><Name>{escape(name)}</Name><Properties><Content-Length>{len(data)}</Content-Length>"
        f"<Content-MD5>{digest}</Content-MD5><BlobType>BlockBlob</BlobType></Properties></Blob>"
    )


class _AzureHandler(_Handler):
    def _answer(self, body: bool) -> None:
        world: Azure = self.server.server  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        with world.lock:
            world.queries.append(parts.query)
            code = world.judge(path, parts.query, self.headers.get("If-Match"))
            refusal = world.refusals.get(path)
        if code:
            self._refuse(code, refusal is None or refusal.in_header)
        elif "comp=list" in parts.query:
            self._send(200, world.listing(path.split("/")[2], parse_qs(parts.query)), {})
        else:
            super()._answer(body)

    def _refuse(self, code: str, in_header: bool) -> None:
        data = f'\ufeff<?xml version="1.0"?><Error><Code>{code}</Code><Message>No.\nTime:…</Message></Error>'.encode()
        self._send(STATUS[code], data, {"x-ms-error-code": code} if in_header else {})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        world: Azure = self.server.server  # type: ignore[attr-defined]
        seen = Seen(self.command, urlsplit(self.path).path, self.headers.get("Range"), dict(self.headers.items()))
        with world.lock:
            world.log.append(seen)
        self._head(seen, status, {"Content-Type": "application/xml", "Content-Length": str(len(data)), **headers})
        if self.command != "HEAD":
            self.wfile.write(data)


def traces(secret: str, *folders: Path) -> list[str]:
    """Files below these folders that hold any piece of a secret, in their names or contents."""
    pieces = [piece.encode() for piece in (secret, unquote(secret))]
    return [
        str(path)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if any(piece in str(path).encode() or (path.is_file() and piece in path.read_bytes()) for piece in pieces)
    ]
