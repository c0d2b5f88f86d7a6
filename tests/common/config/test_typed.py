"""Mappings become dataclasses; what does not fit is told at once, with its key."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.common.config.decode import ConfigDecoder
from lavis_ext.common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    rate: float = 0.0
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    splits: list[str] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    table: dict[str, Inner] = field(default_factory=dict)
    maybe: int | None = None
    free: Any = None


def build(value: Any) -> Outer | None:
    door = ConfigDecoder({"name": "f.yaml:1", "table": "f.yaml:7"})
    built = door.build(Outer, value)
    door.close()
    return built


@pytest.mark.fault("D05")
def test_documented_coercions() -> None:
    built = build({"name": 3, "rate": "1e-4", "splits": "val", "maybe": "", "inner": {"size": 2.0}, "table": {"x": {}}})
    assert built == Outer(name="3", rate=1e-4, splits=["val"], maybe=None, inner=Inner(size=2), table={"x": Inner()})


@pytest.mark.fault("D05")
def test_every_mistake_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build(
            {"rate": "fast", "flag": "yes", "kind": "c", "inner": {"sise": 1}, "table": {"x": {"size": 1.5}}, "naem": 1}
        )
    text = str(caught.value)
    assert "rate: 'fast' is not a number" in text
    assert "flag: 'yes' is not true or false" in text
    assert "kind: 'c' is not a choice; known: a, b" in text
    assert "inner.sise: unknown key; did you mean 'size'?" in text
    assert "f.yaml:7 table.x.size: 1.5 is not a whole number" in text
    assert "naem: unknown key; did you mean 'name'?" in text
    assert "f.yaml:1 name: is missing" in text


def test_a_bare_no_is_a_choice_again() -> None:
    assert ConfigDecoder().coerce(Literal["no", "fp16"], False, "precision") == "no"
    door = ConfigDecoder()
    door.coerce(Literal["yes"], False, "precision")
    assert door.problems


def test_true_is_not_a_number() -> None:
    with pytest.raises(ConfigError, match="True is not a number"):
        build({"name": "x", "rate": True})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_anything_is_built_or_refused_in_words(value: Any) -> None:
    door = ConfigDecoder()
    built = door.build(Outer, {"name": "x", "inner": value, "table": value, "splits": value})
    assert built is not None
    assert isinstance(built.inner, Inner)
    if not door.problems and isinstance(value, dict):
        assert set(value) <= {"size"}
