"""Small documents (manifests, listings) straight into memory, by the same rules as files."""

from __future__ import annotations

from lavis_ext.errors import NetworkError
from lavis_ext.fetch.failures import Failure, conclude
from lavis_ext.fetch.model import Policy, Source
from lavis_ext.fetch.openers import Request
from lavis_ext.fetch.retry import SpeedGate, backoff
from lavis_ext.fetch.safety import redact_url
from lavis_ext.fetch.session import Session

CHUNK = 1 << 16


def fetch_bytes(source: Source, policy: Policy | None = None, limit: int = 1 << 20) -> bytes | None:
    """The whole body, None where there is no such object (404); raises NetworkError, AccessError, IntegrityError.

    More than `limit` bytes are refused.
    """
    with Session(policy) as session:
        for attempt in range(session.policy.retries + 1):
            try:
                return _read(session, source, limit)
            except Failure as failure:
                if failure.kind == "absent":
                    return None
                if failure.kind != "transient" or attempt == session.policy.retries:
                    raise conclude(redact_url(source.url), [(redact_url(source.url), failure)]) from failure
                session.pause(backoff(attempt, session.policy, failure.retry_after))
    raise NetworkError(redact_url(source.url), "not fetched", "run again")


def _read(session: Session, source: Source, limit: int) -> bytes:
    data, gate = bytearray(), SpeedGate(session.policy)
    with session.open(Request(source.url, trusted=source.trusted)) as reply:
        while piece := reply.body.read(CHUNK):
            data += piece
            gate.passed(len(piece))
            if len(data) > limit:
                raise Failure("integrity", f"more than {limit} bytes came")
    return bytes(data)
