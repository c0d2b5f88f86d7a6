"""What is refused before a request is sent: schemes, hosts, private addresses. Redaction is `common/secrets.py`'s."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from lavis_ext.common.errors import UnsafeError
from lavis_ext.common.secrets import identity as identity
from lavis_ext.common.secrets import redact as redact
from lavis_ext.common.secrets import redact_url as redact_url

DENIED_HOSTS: Mapping[str, str] = {
    "visualgenome.org": "the domain has left the project and serves casino spam, seen 2026-06-30",
    "msvocds.blob.core.windows.net": "the storage account is gone; whoever takes the name next decides what it serves",
}
REMOTE_SCHEMES = frozenset({"http", "https"})


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
