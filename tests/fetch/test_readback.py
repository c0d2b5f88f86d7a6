"""Digests that are taken behind the front of a file that grows."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lavis_ext.fetch import readback
from lavis_ext.fetch.readback import BLOCK, ReadBack
from lavis_ext.fetch.transfer import Failure
from tests.support.server import payload, wait_until

DATA = payload(3 * BLOCK + 4321)
SHA256, MD5 = hashlib.sha256(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()


@pytest.fixture
def grown(tmp_path: Path) -> Iterator[int]:
    """The descriptor of a file that has its length, and no byte yet."""
    descriptor = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, len(DATA))
    yield descriptor
    os.close(descriptor)


def nothing() -> None:
    pass


@pytest.mark.parametrize("md5", [True, False])
@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, len(DATA)])
def test_digests_are_those_of_the_file(grown: int, size: int, md5: bool) -> None:
    chance, at = random.Random(size), 0
    found = ReadBack(grown, md5, flush=False)
    while at < size:
        stop = min(size, at + chance.randrange(1, BLOCK))
        os.pwrite(grown, DATA[at:stop], at)
        found.advance(stop)
        at = stop
    digests = hashlib.sha256(DATA[:size]).hexdigest(), hashlib.md5(DATA[:size]).hexdigest() if md5 else None
    assert found.finish(size, nothing) == digests
    assert found.takes(md5) and found.takes(False) and found.takes(True) == md5


@pytest.mark.parametrize("at", [5, BLOCK, 2 * BLOCK + 7, 3 * BLOCK - 1])
def test_what_changes_once_it_is_hashed_is_seen(grown: int, at: int) -> None:
    os.pwrite(grown, DATA[: 3 * BLOCK], 0)
    found = ReadBack(grown, md5=False, flush=False)
    found.advance(3 * BLOCK)
    assert wait_until(lambda: len(found._sums) == 3)
    os.pwrite(grown, bytes([DATA[at] ^ 1]), at)
    os.pwrite(grown, DATA[3 * BLOCK :], 3 * BLOCK)
    with pytest.raises(Failure) as caught:
        found.finish(len(DATA), nothing)
    assert caught.value.kind == "integrity" and not found._thread.is_alive()


def test_a_file_that_was_cut_off_is_left_to_who_reads_all_of_it(grown: int) -> None:
    os.pwrite(grown, DATA, 0)
    os.ftruncate(grown, BLOCK + 5)
    assert ReadBack(grown, md5=False, flush=False).finish(len(DATA), nothing) is None


def test_what_stops_a_run_stops_it(grown: int) -> None:
    os.pwrite(grown, DATA, 0)
    found = ReadBack(grown, md5=False, flush=False)
    found.advance(2 * BLOCK)
    assert wait_until(lambda: len(found._sums) == 2)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found.finish(len(DATA), interrupt)
    assert not found._thread.is_alive()


@pytest.mark.parametrize("number", [0, errno.EIO, errno.ENOSPC])
def test_an_error_of_a_flush_on_the_way_is_told_at_the_end(
    grown: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel tells it to the first flush that asks, and no more to the one at the end."""
    flushed: list[int] = []

    def flush(descriptor: int) -> None:
        flushed.append(descriptor)
        if number:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(readback, "FLUSHED", 2 * BLOCK)
    monkeypatch.setattr(os, "fdatasync", flush)
    os.pwrite(grown, DATA, 0)
    found = ReadBack(grown, md5=True, flush=True)
    if number:
        with pytest.raises(OSError) as caught:
            found.finish(len(DATA), nothing)
        assert caught.value.errno == number
    else:
        assert found.finish(len(DATA), nothing) == (SHA256, MD5)
    assert flushed == [grown]
