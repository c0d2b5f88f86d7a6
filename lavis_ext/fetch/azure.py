"""The opener of `azure:ACCOUNT/CONTAINER/BLOB`: ranged reads with the container's SAS, seen by no one else."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from lavis_ext.errors import LavisExtError
from lavis_ext.fetch.failures import Failure
from lavis_ext.fetch.http import HttpOpener
from lavis_ext.fetch.hub import may_carry_token
from lavis_ext.fetch.openers import Reply, Request, register_opener
from lavis_ext.fetch.safety import deny_reason, redact, safe_relative
from lavis_ext.fetch.sas import TOKENS, Sas, variable_of

if TYPE_CHECKING:
    from lavis_ext.fetch.session import Session

ENDPOINT = "https://{account}.blob.core.windows.net"
ENDPOINT_VARIABLE = "LAVIS_EXT_AZURE_ENDPOINT"
API_VERSION = "2022-11-02"
"""Asked for where no SAS names one: older versions answer in older forms."""
LOUD = ("urllib3.connectionpool", "urllib3.connection", "urllib3.util.retry")

_NO_NAME = "there is none of this name (a folder is not a blob, and names tell upper from lower case)"
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
    """Signs each request as it leaves; the signed URL is kept nowhere."""

    def __init__(self, session: Session) -> None:
        self._http = HttpOpener(session)
        self._denied = session.policy.denied_hosts
        hush_urls()

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
            raise explained(failure, place, sas) from None  # what lies below may hold the signed URL

    def close(self) -> None:
        """Close pooled connections."""
        self._http.close()


def blob_place(url: str) -> BlobPlace:
    """The parts of `azure:ACCOUNT/CONTAINER/BLOB`; raises Failure where one is missing, UnsafeError for `..`."""
    parts = urlsplit(url)
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
    """The container's token, judged by its own fields before anything is sent; raises Failure (access)."""
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
    """A refusal of Azure with what it means and what would help."""
    if failure.code in CHANGED or failure.kind == "replaced":
        return Failure("replaced", "the blob was replaced while it was fetched", code=failure.code)
    kind, told = failure.kind, redact(failure.reason)
    if failure.code in ADVICE:
        told += f": {ADVICE[failure.code]}"
    if failure.code == "ResourceNotFound" and sas is None:
        kind = "access"
        told += ", or the container is private: that is how it answers where no SAS is sent"
    if kind == "access":
        told += f"; {way_in(place)}"
    return Failure(kind, told, failure.retry_after, failure.code)


class _Hush(logging.Filter):
    """Lets no query into the records of the library that sends the requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


_HUSH = _Hush()


def hush_urls() -> None:
    """From now on the http library's own log shows addresses without their queries, at every level."""
    for name in LOUD:
        logging.getLogger(name).addFilter(_HUSH)  # the same filter is added once


def child_url(folder: str, name: str) -> str:
    """The address of a blob below a folder's address."""
    return f"{folder.rstrip('/')}/{quote(name)}"


def name_below(folder: str, url: str) -> str:
    """The relative name of a blob below a folder; "" where it does not lie below it."""
    prefix = f"{folder.rstrip('/')}/"
    return unquote(url[len(prefix) :]) if url.startswith(prefix) else ""
