"""What is refused before a request is sent (schemes, hosts, private addresses), and the redaction of secrets."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from lavis_ext.common.errors import UnsafeError

DENIED_HOSTS: Mapping[str, str] = {
    "visualgenome.org": "the domain has left the project and serves casino spam, seen 2026-06-30",
    "msvocds.blob.core.windows.net": "the storage account is gone; whoever takes the name next decides what it serves",
}
REMOTE_SCHEMES = frozenset({"http", "https"})

_SECRET_NAME = re.compile(
    r"^(sig|se|sp|st|sv|sr|spr|sip|ske|skt|skoid|sktid|sks|skv|x-amz-.*|x-goog-.*|.*token.*|.*signature.*|.*secret.*"
    r"|.*password.*|.*key.*|policy|expires|auth.*|awsaccesskeyid|googleaccessid)$",
    re.IGNORECASE,
)
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
_BARE_QUERY = re.compile(r"(/[^\s'\"<>?]*)\?[^\s'\"<>]+")
_SIGNATURE = re.compile(r"\b((?:sig|signature|x-amz-signature|x-goog-signature)=)[^\s&'\"<>]+", re.IGNORECASE)
_HEADER = re.compile(
    r"((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:basic|bearer)\s+)?[^\s'\",]+", re.IGNORECASE
)


def redact_url(url: str) -> str:
    """The URL without userinfo, query and fragment, which are where tokens live."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def redact(text: str) -> str:
    """Free text with every URL redacted, and every signature and authorization header's value replaced by `***`."""
    text = _URL.sub(lambda found: redact_url(found.group()), text)
    text = _SIGNATURE.sub(r"\1***", _BARE_QUERY.sub(r"\1", text))
    return _HEADER.sub(r"\1***", text)


def identity(url: str) -> str:
    """A name for the object behind a URL that holds no secret: no userinfo, signature or token, no query in clear text.

    Query parameters that may choose the object (`?id=7`) enter as a digest, so that two objects never share a name.
    """
    kept = sorted((k, v) for k, v in parse_qsl(urlsplit(url).query) if not _SECRET_NAME.match(k))
    if not kept:
        return redact_url(url)
    return f"{redact_url(url)}#{hashlib.sha256(urlencode(kept).encode()).hexdigest()[:16]}"


def is_private(address: str) -> bool:
    """Whether an IP address is not one of the public internet (loopback, link-local, private, reserved …)."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return not (mapped or found).is_global


def is_loopback(host: str) -> bool:
    """Whether a host name or literal address is this machine's loopback."""
    name = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def leads_inside(host: str) -> bool:
    """Whether a host resolves to private addresses only; False where it does not resolve."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return bool(found) and all(is_private(str(entry[4][0])) for entry in found)


def deny_reason(url: str, denied: Mapping[str, str]) -> str | None:
    """Why nothing is fetched from this URL's host, or None."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    for name, reason in denied.items():
        if host == name or host.endswith(f".{name}"):
            return f"{name} is on the deny-list: {reason}"
    return None


def refuse_unless_remote(url: str, denied: Mapping[str, str] = DENIED_HOSTS) -> None:
    """Refuse what may not come from a data row: any scheme but http and https, and denied hosts; raises UnsafeError."""
    scheme = urlsplit(url).scheme.lower()
    if scheme not in REMOTE_SCHEMES:
        raise UnsafeError(redact_url(url)[:200], f"scheme {scheme or 'none'!r} is refused", "use http or https")
    reason = deny_reason(url, denied)
    if reason:
        raise UnsafeError(redact_url(url), reason, "name another mirror")


def redirect_reason(before: str, after: str) -> str | None:
    """Why a redirect may not be followed: a scheme that is not http(s), or https left for http; None where it may."""
    old, new = urlsplit(before).scheme.lower(), urlsplit(after).scheme.lower()
    if new not in REMOTE_SCHEMES:
        return f"redirect to scheme {new or 'none'!r} refused"
    if old == "https" and new == "http":
        return "redirect from https to http refused"
    return None


def safe_relative(path: str) -> str:
    """A URL path as a path below a folder, decoded; raises UnsafeError where it would leave the folder."""
    parts = unquote(path).split("/")
    if any(part == ".." or "\\" in part or "\0" in part for part in parts):
        raise UnsafeError(path[:200], "the path leaves its folder", "use a path without '..'")
    return "/".join(part for part in parts if part not in ("", "."))
