"""Faults are counted by reason, judged against the tolerance, and survive a resume."""

import json
import pickle

import pytest

from lavis_ext.common.errors import IntegrityError, PartialError
from lavis_ext.datasets.readers import FaultLog, SampleError


def fail(log: FaultLog, count: int, why: str = "image is missing", seen: int | None = None) -> None:
    log.seen("coco", "train", count if seen is None else seen)
    for i in range(count):
        log.record("coco", "train", SampleError(f"coco/train#{i}", f"/x/{i}.jpg", why))


def test_a_sample_error_reads_and_travels() -> None:
    error = pickle.loads(pickle.dumps(SampleError("coco/train#3", "/x/3.jpg", "image is damaged: bad marker")))
    assert isinstance(error, IntegrityError)
    assert error.exit_code == 5
    assert (error.sample_id, error.path, error.reason) == ("coco/train#3", "/x/3.jpg", "image is damaged")
    assert str(error) == "sample coco/train#3: image is damaged: bad marker (/x/3.jpg)"


def test_counts_by_reason_and_first_ids() -> None:
    log = FaultLog(keep=2)
    fail(log, 3, seen=1000)
    fail(log, 1, "image is damaged: x", seen=1)
    summary = log.summary()["coco/train"]
    assert summary["seen"] == 1001
    assert summary["bad"] == 4
    assert summary["reasons"] == {"image is missing": 3, "image is damaged": 1}
    assert [first["id"] for first in summary["first"]] == ["coco/train#0", "coco/train#1"]


@pytest.mark.parametrize(
    ("bad", "seen", "tolerance", "final", "stops"),
    [
        (1, 20, 0.01, False, False),  # one of twenty can happen at one in a hundred
        (1, 20, 0.01, True, True),
        (20, 20, 0.01, False, True),
        (19, 19, 0.01, False, False),  # too early to judge
        (19, 19, 0.01, True, True),
        (60, 5000, 0.01, False, False),
        (80, 5000, 0.01, False, True),
        (50, 5000, 0.01, True, False),
        (51, 5000, 0.01, True, True),
        (1, 1, 0.0, False, True),
        (0, 1000, 0.0, True, False),
        (10, 20, 0.6, True, False),
        (20, 20, 1.0, False, False),
        (20, 20, 1.0, True, True),  # nothing at all could be read
    ],
)
def test_when_too_many_fail(bad: int, seen: int, tolerance: float, final: bool, stops: bool) -> None:
    log = FaultLog(tolerances={"coco": tolerance})
    fail(log, bad, seen=seen)
    if not stops:
        log.check(final)
        return
    with pytest.raises(PartialError, match=f"{bad} of {seen} samples failed") as error:
        log.check(final)
    assert error.value.exit_code == 8
    assert "coco/train#0 at /x/0.jpg" in str(error.value)
    assert "datasets.coco.tolerance" in str(error.value)


def test_state_survives() -> None:
    log, other = FaultLog(), FaultLog()
    fail(log, 12, seen=5000)
    other.load_state_dict(json.loads(json.dumps(log.state_dict())))
    assert other.summary() == log.summary()
    fail(other, 1)
    assert other.summary()["coco/train"]["bad"] == 13
    assert log.summary()["coco/train"]["bad"] == 12
