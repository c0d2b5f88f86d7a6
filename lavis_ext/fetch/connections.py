"""Connections that refuse private addresses: the open socket's address is checked, so DNS cannot cheat."""

from __future__ import annotations

import socket

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from lavis_ext.fetch import safety
from lavis_ext.fetch.failures import Failure


def refuse_private(peer: socket.socket) -> None:
    """Close the socket and raise Failure where it leads to a private, loopback or link-local address."""
    address = str(peer.getpeername()[0])
    if safety.is_private(address):
        peer.close()
        raise Failure("unsafe", f"redirect from a public host to the private address {address} refused")


class GuardedHTTPConnection(HTTPConnection):
    """An http connection to public addresses only."""

    def _new_conn(self) -> socket.socket:
        peer = super()._new_conn()
        refuse_private(peer)
        return peer


class GuardedHTTPSConnection(HTTPSConnection):
    """An https connection to public addresses only."""

    def _new_conn(self) -> socket.socket:
        peer = super()._new_conn()
        refuse_private(peer)
        return peer


class GuardedHTTPPool(HTTPConnectionPool):
    """A pool of guarded http connections."""

    ConnectionCls = GuardedHTTPConnection


class GuardedHTTPSPool(HTTPSConnectionPool):
    """A pool of guarded https connections."""

    ConnectionCls = GuardedHTTPSConnection


GUARDED_POOLS: dict[str, type[HTTPConnectionPool]] = {"http": GuardedHTTPPool, "https": GuardedHTTPSPool}
