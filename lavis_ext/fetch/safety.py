"""What is refused before a request is sent: texts that are no URL, schemes, hosts, private addresses."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import unquote

from lavis_ext.common.errors import UnsafeError
from lavis_ext.common.secrets import identity as identity
from lavis_ext.common.secrets import redact as redact
from lavis_ext.common.secrets import redact_url as redact_url
from lavis_ext.common.secrets import split_url as split_url
from lavis_ext.common.secrets import url_fault as url_fault

DENIED_HOSTS: Mapping[str, str] = {
    "visualgenome.org": "the domain has left the project and serves casino spam, seen 2026-06-30",
    "msvocds.blob.core.windows.net": "the storage account is gone; whoever takes the name next decides what it serves",
}
REMOTE_SCHEMES = frozenset({"http", "https"})
NAT64 = ipaddress.ip_network("64:ff9b::/96")
INSIDE = tuple(
    ipaddress.ip_network(text)
    for text in ("::/96", "64:ff9b:1::/48", "fec0::/10", "168.63.129.16/32", "192.88.99.0/24")
)
"""Inside by nature, though `ipaddress` calls them global: IPv4-compatible, local NAT64, site-local, Azure's host
services, 6to4 relays."""


def unwrap(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address, or the IPv4 address that it leads to (mapped, NAT64, 6to4)."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found in NAT64:
            return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        return found.ipv4_mapped or found.sixtofour or found
    return found


def is_private(address: str) -> bool:
    """Whether an IP address is not one of the public internet (loopback, link-local, private, multicast …)."""
    found = unwrap(address)
    return not found.is_global or found.is_multicast or any(found in net for net in INSIDE)


def may_dial(address: str, inside: frozenset[str]) -> bool:
    """Whether a guarded connection may go to an address: a public one, or one of the first host's own, `inside`."""
    found, own = unwrap(address), {unwrap(one) for one in inside}
    return not is_private(address) or found in own or (found.is_loopback and any(one.is_loopback for one in own))


def addresses(host: str, numeric: bool = False) -> list[str]:
    """What a host resolves to, in the resolver's order; with `numeric` only one that is an address in any spelling.

    `2130706433`, `0x7f000001`, `127.1` and `0` are addresses too, by inet_aton. [] where it does not resolve.
    """
    try:
        flags = socket.AI_NUMERICHOST if numeric else 0
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, ValueError):
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_loopback(host: str) -> bool:
    """Whether a host name or literal address is this machine's loopback."""
    name = host.strip("[]").lower()
    try:
        return unwrap(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def leads_inside(host: str) -> bool:
    """Whether a host resolves to private addresses only; False where it does not resolve."""
    found = addresses(host)
    return bool(found) and all(map(is_private, found))


def deny_reason(url: str, denied: Mapping[str, str]) -> str | None:
    """Why nothing is fetched from this URL's host, or None."""
    host = (split_url(url).hostname or "").rstrip(".").lower()
    for name, reason in denied.items():
        if host == name or host.endswith(f".{name}"):
            return f"{name} is on the deny-list: {reason}"
    return None


def refuse_unless_remote(url: str, denied: Mapping[str, str] = DENIED_HOSTS) -> None:
    """Refuse what may not come from a data row: any scheme but http and https, and denied hosts; raises UnsafeError."""
    scheme = split_url(url).scheme.lower()
    if scheme not in REMOTE_SCHEMES:
        raise UnsafeError(redact_url(url)[:200], f"scheme {scheme or 'none'!r} is refused", "use http or https")
    reason = deny_reason(url, denied)
    if reason:
        raise UnsafeError(redact_url(url), reason, "name another mirror")


def redirect_reason(before: str, after: str) -> str | None:
    """Why a redirect may not be followed: a scheme that is not http(s), or https left for http; None where it may."""
    old, new = split_url(before).scheme.lower(), split_url(after).scheme.lower()
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
