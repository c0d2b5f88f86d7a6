"""Errors say `where: what; way out`, several at once, and know their exit code."""

import pytest

from lavis_ext.common import errors
from lavis_ext.common.errors import ConfigError, LavisExtError, Problem, nearest


def test_message_has_where_what_and_way_out() -> None:
    assert str(ConfigError("a.yaml:3", "unknown key", "remove it")) == "a.yaml:3: unknown key; remove it"
    assert str(ConfigError("a.yaml:3", "unknown key")) == "a.yaml:3: unknown key"


def test_of_tells_every_problem() -> None:
    error = ConfigError.of([Problem("a", "x"), Problem("b", "y", "z")])
    assert isinstance(error, ConfigError)
    assert str(error).splitlines() == ["a: x", "b: y; z"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("LavisExtError", 1),
        ("UsageError", 2),
        ("ConfigError", 3),
        ("NetworkError", 4),
        ("IntegrityError", 5),
        ("DiskError", 6),
        ("AccessError", 7),
        ("PartialError", 8),
        ("OwnedError", 9),
        ("UnsafeError", 10),
        ("TrainingError", 11),
        ("Preempted", 75),
    ],
)
def test_exit_codes_are_the_documented_ones(name: str, code: int) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, LavisExtError)
    assert kind.exit_code == code


def test_nearest_suggests_or_lists() -> None:
    assert nearest("captoin", ["caption", "vqa"]) == "did you mean 'caption'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", []) == "none is known"
