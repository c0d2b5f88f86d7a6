"""img2dataset's messages become few reasons, and only what may pass is tried again."""

from __future__ import annotations

import pytest

from lavis_ext.prepare.urls.shards import RowOutcome, classify_failure


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        ("HTTP Error 404: Not Found", RowOutcome("missing", "HTTP 404")),
        ("HTTP Error 410: Gone", RowOutcome("missing", "HTTP 410")),
        ("HTTP Error 429: Too Many Requests", RowOutcome("missing", "HTTP 429", True)),
        ("HTTP Error 503: Service Unavailable", RowOutcome("missing", "HTTP 503", True)),
        ("<urlopen error timed out>", RowOutcome("missing", "timeout", True)),
        ("timed out: the body took longer than 60 s", RowOutcome("missing", "timeout", True)),
        ("The read operation timed out", RowOutcome("missing", "timeout", True)),
        ("<urlopen error [Errno 111] Connection refused>", RowOutcome("missing", "connection", True)),
        ("[Errno 104] Connection reset by peer", RowOutcome("missing", "connection", True)),
        ("<urlopen error [Errno -2] Name or service not known>", RowOutcome("missing", "host is gone")),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", RowOutcome("missing", "name server", True)),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] x>", RowOutcome("missing", "TLS")),
        ("Use of image disallowed by X-Robots-Tag directive", RowOutcome("missing", "disallowed by its host")),
        ("refused: private address 10.0.0.1", RowOutcome("missing", "refused: private address 10.0.0.1")),
        ("<urlopen error unknown url type: ftp>", RowOutcome("missing", "refused: not a URL")),
        (
            "<urlopen error refused: redirect to scheme 'file'>",
            RowOutcome("missing", "refused: redirect to scheme 'file'"),
        ),
        ("placeholder", RowOutcome("missing", "placeholder")),
        ("corrupt: image is damaged or cut off", RowOutcome("corrupt", "image is damaged or cut off")),
        ("cut: the body ended 7 bytes early", RowOutcome("corrupt", "body cut short", True)),
        ("something new", RowOutcome("missing", "other: something new")),
    ],
)
def test_failed_download(message: str, verdict: RowOutcome) -> None:
    assert classify_failure("failed_to_download", message) == verdict


def test_other_ends_of_a_row() -> None:
    assert classify_failure("success", None) == RowOutcome("present")
    assert classify_failure("failed_to_resize", "Image decoding error") == RowOutcome("corrupt", "cannot be decoded")
    assert classify_failure(None, None) == RowOutcome("missing", "unfinished", True)
    assert classify_failure("failed_to_download", None).reason == "other: no reason given"
