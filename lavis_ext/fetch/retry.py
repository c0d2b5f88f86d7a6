"""When to try again: full jitter, `Retry-After` in both forms, and a gate for connections that crawl."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from lavis_ext.fetch.failures import Failure
from lavis_ext.fetch.model import Policy


def backoff(attempt: int, policy: Policy, retry_after: float | None = None) -> float:
    """Seconds before attempt `attempt` + 1: full jitter over a doubling ceiling, at least `retry_after`, capped."""
    ceiling = min(policy.backoff_cap, policy.backoff * 2.0 ** min(attempt, 30))
    jitter = random.uniform(0.0, ceiling)
    return max(jitter, min(retry_after or 0.0, policy.retry_after_cap))


def parse_retry_after(value: str | None) -> float | None:
    """`Retry-After` as seconds from now, from its number or HTTP-date form (RFC 9110 §10.2.3); None if neither."""
    if not value:
        return None
    text = value.strip()
    if text.isdigit():
        return float(text[:12])
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


class SpeedGate:
    """Raises a Failure when a connection delivers less than `min_speed` over `speed_window` seconds."""

    def __init__(self, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._since = clock()
        self._count = 0

    def passed(self, count: int) -> None:
        """`count` more bytes came."""
        self._count += count
        elapsed = self._clock() - self._since
        if elapsed < self._policy.speed_window:
            return
        speed = self._count / elapsed
        if speed < self._policy.min_speed:
            raise Failure(
                "final", f"too slow: {speed:.0f} B/s over {elapsed:.0f} s (min_speed {self._policy.min_speed:.0f})"
            )
        self._since, self._count = self._clock(), 0
