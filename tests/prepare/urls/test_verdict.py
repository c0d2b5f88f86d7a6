"""img2dataset's messages become few reasons, and only what may pass is tried again."""

from __future__ import annotations

import pytest

from lavis_ext.prepare.urls.shards import Verdict, judge


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        ("HTTP Error 404: Not Found", Verdict("missing", "HTTP 404")),
        ("HTTP Error 410: Gone", Verdict("missing", "HTTP 410")),
        ("HTTP Error 429: Too Many Requests", Verdict("missing", "HTTP 429", True)),
        ("HTTP Error 503: Service Unavailable", Verdict("missing", "HTTP 503", True)),
        ("<urlopen error timed out>", Verdict("missing", "timeout", True)),
        ("timed out: the body took longer than 60 s", Verdict("missing", "timeout", True)),
        ("The read operation timed out", Verdict("missing", "timeout", True)),
        ("<urlopen error [Errno 111] Connection refused>", Verdict("missing", "connection", True)),
        ("[Errno 104] Connection reset by peer", Verdict("missing", "connection", True)),
        ("<urlopen error [Errno -2] Name or service not known>", Verdict("missing", "host is gone")),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", Verdict("missing", "name server", True)),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] x>", Verdict("missing", "TLS")),
        ("Use of image disallowed by X-Robots-Tag directive", Verdict("missing", "disallowed by its host")),
        ("refused: private address 10.0.0.1", Verdict("missing", "refused: private address 10.0.0.1")),
        ("<urlopen error unknown url type: ftp>", Verdict("missing", "refused: not a URL")),
        (
            "<urlopen error refused: redirect to scheme 'file'>",
            Verdict("missing", "refused: redirect to scheme 'file'"),
        ),
        ("placeholder", Verdict("missing", "placeholder")),
        ("corrupt: image is damaged or cut off", Verdict("corrupt", "image is damaged or cut off")),
        ("cut: the body ended 7 bytes early", Verdict("corrupt", "body cut short", True)),
        ("something new", Verdict("missing", "other: something new")),
    ],
)
def test_failed_download(message: str, verdict: Verdict) -> None:
    assert judge("failed_to_download", message) == verdict


def test_other_ends_of_a_row() -> None:
    assert judge("success", None) == Verdict("present")
    assert judge("failed_to_resize", "Image decoding error") == Verdict("corrupt", "cannot be decoded")
    assert judge(None, None) == Verdict("missing", "unfinished", True)
    assert judge("failed_to_download", None).reason == "other: no reason given"
