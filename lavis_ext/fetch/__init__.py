"""The one engine through which all bytes come: a `Transfer` becomes a verified file, from the first mirror that can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis_ext.common.names import imported_on_use

if TYPE_CHECKING:
    from lavis_ext.fetch.engine import fetch
    from lavis_ext.fetch.ledger import Ledger
    from lavis_ext.fetch.mirrors import MirrorMap
    from lavis_ext.fetch.pool import fetch_all
    from lavis_ext.fetch.progress import Bars, Lines, make_progress
    from lavis_ext.fetch.remote import RemoteFile, fetch_bytes
    from lavis_ext.fetch.safety import redact, redact_url, refuse_unless_remote
    from lavis_ext.fetch.session import Reply, Request, Session, register_opener
    from lavis_ext.fetch.transfer import Figures, Policy, Progress, Result, Silent, Source, Transfer

_HOMES = {  # `list` and `status` fetch nothing
    "engine": ("fetch",),
    "ledger": ("Ledger",),
    "mirrors": ("MirrorMap",),
    "pool": ("fetch_all",),
    "progress": ("Bars", "Lines", "make_progress"),
    "remote": ("RemoteFile", "fetch_bytes"),
    "safety": ("redact", "redact_url", "refuse_unless_remote"),
    "session": ("Reply", "Request", "Session", "register_opener"),
    "transfer": ("Figures", "Policy", "Progress", "Result", "Silent", "Source", "Transfer"),
}

__all__ = [
    "Bars",
    "Figures",
    "Ledger",
    "Lines",
    "MirrorMap",
    "Policy",
    "Progress",
    "RemoteFile",
    "Reply",
    "Request",
    "Result",
    "Session",
    "Silent",
    "Source",
    "Transfer",
    "fetch",
    "fetch_all",
    "fetch_bytes",
    "make_progress",
    "redact",
    "redact_url",
    "refuse_unless_remote",
    "register_opener",
]
__getattr__ = imported_on_use(__name__, {name: home for home, names in _HOMES.items() for name in names})
