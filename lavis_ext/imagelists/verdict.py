"""Why a row has no image, in few words: img2dataset's messages become reasons that can be counted and acted on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["present", "missing", "corrupt"]
TRANSIENT_STATUS = frozenset({408, 425, 429})

_STATUS = re.compile(r"HTTP Error (\d{3})")
_TABLE: tuple[tuple[str, str, bool], ...] = (
    (r"timed? ?out", "timeout", True),
    (r"Temporary failure in name resolution", "name server", True),
    (
        r"Name or service not known|No address associated|nodename nor servname|getaddrinfo failed",
        "host is gone",
        False,
    ),
    (r"CERTIFICATE|certificate|SSL|TLS", "TLS", False),
    (r"X-Robots-Tag", "disallowed by its host", False),
    (
        r"refused\]|Connection refused|reset by peer|Remote end closed|unreachable|No route|Broken pipe|EOF occurred"
        r"|IncompleteRead|BadStatusLine|no address",
        "connection",
        True,
    ),
    (r"redirect", "redirects", False),
    (r"unknown url type|no host given|control characters|InvalidURL|nonnumeric port", "refused: not a URL", False),
)


@dataclass(frozen=True)
class Verdict:
    """What became of a row; `passing` says that another try may go better."""

    kind: Kind
    reason: str = ""
    passing: bool = False


def judge(status: str | None, message: str | None) -> Verdict:
    """The verdict on img2dataset's status and error message of one row; None as status: it left no record."""
    if status == "success":
        return Verdict("present")
    if status is None:
        return Verdict("missing", "unfinished", True)
    told = (message or "no reason given").strip().removeprefix("<urlopen error ").removesuffix(">")
    head, _, rest = told.partition(": ")
    if head == "corrupt":
        return Verdict("corrupt", rest[:80])
    if head == "cut":
        return Verdict("corrupt", "body cut short", True)
    if head in ("refused", "placeholder"):
        return Verdict("missing", told[:80])
    if status == "failed_to_resize":
        return Verdict("corrupt", "cannot be decoded")
    return _of_network(told)


def _of_network(told: str) -> Verdict:
    found = _STATUS.search(told)
    if found:
        status = int(found[1])
        return Verdict("missing", f"HTTP {status}", status in TRANSIENT_STATUS or status >= 500)
    for pattern, reason, passing in _TABLE:
        if re.search(pattern, told):
            return Verdict("missing", reason, passing)
    return Verdict("missing", f"other: {told[:60]}")
