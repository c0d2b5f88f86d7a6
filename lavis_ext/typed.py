"""Plain values become dataclasses at the door, and every mistake on the way is collected with its place."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lavis_ext.errors import ConfigError, Problem, nearest

D = TypeVar("D")
_NUMBERS: dict[type, str] = {int: "a whole number", float: "a number"}


class Door:
    """Builds dataclasses from nested mappings; `problems` holds all that did not fit.

    Coercions, and no others: a whole number where a number is wanted, text that spells a number (`"1e-4"`), a number
    where text is wanted, a single value where a list is wanted, `null` and `""` where the value may be absent.
    A dataclass with a static method `accept(value)` may reshape what it is given first.
    """

    def __init__(self, places: Mapping[str, str] | None = None) -> None:
        self.places = places or {}
        self.problems: list[Problem] = []

    def build(self, kind: type[D], value: Any, key: str = "") -> D | None:
        """An instance of the dataclass `kind`, or None after noting problems; `key` is where `value` stands."""
        accept = getattr(kind, "accept", None)
        value = accept(value) if accept is not None else value
        if not isinstance(value, Mapping):
            self.note(key, f"{shown(value)} is not a mapping", f"write {' | '.join(hints(kind))} under it")
            return None
        known = hints(kind)
        before = len(self.problems)
        for name in value:
            if name not in known:
                self.note(join(key, name), "unknown key", nearest(str(name), known))
        given = {name: self.fit(known[name], value[name], join(key, name)) for name in value if name in known}
        for name in required(kind):
            if name not in given:
                self.note(join(key, name), "is missing", "give it a value")
        return kind(**given) if len(self.problems) == before else None

    def fit(self, kind: Any, value: Any, key: str) -> Any:
        """`value` as `kind`; notes a problem and returns None where it cannot be."""
        origin, args = get_origin(kind), get_args(kind)
        if kind is Any:
            return value
        if origin in (Union, types.UnionType):
            return self._fit_optional(args, value, key)
        if origin is Literal:
            return self._fit_choice(args, value, key)
        if origin is list:
            items = value if isinstance(value, list) else [] if value is None else [value]
            return [self.fit(args[0], item, f"{key}[{i}]" if len(items) > 1 else key) for i, item in enumerate(items)]
        if origin is dict:
            return self._fit_mapping(args[1], value, key)
        if dataclasses.is_dataclass(kind):
            return self.build(kind, value, key)  # type: ignore[arg-type]
        return self._fit_scalar(kind, value, key)

    def _fit_optional(self, kinds: tuple[Any, ...], value: Any, key: str) -> Any:
        if value is None or value == "":
            return None if type(None) in kinds else value
        wanted = [k for k in kinds if k is not type(None)]
        exact = [k for k in wanted if (get_origin(k) or k) is type(value)]
        return self.fit((exact or wanted)[0], value, key)

    def _fit_choice(self, choices: tuple[Any, ...], value: Any, key: str) -> Any:
        if value is False and "no" in choices:
            return "no"  # YAML reads a bare no as false
        if value not in choices:
            self.note(key, f"{shown(value)} is not a choice", nearest(str(value), map(str, choices)))
        return value

    def _fit_mapping(self, kind: Any, value: Any, key: str) -> Any:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.note(key, f"{shown(value)} is not a mapping", "write `name: value` lines under it")
            return {}
        return {str(name): self.fit(kind, item, join(key, name)) for name, item in value.items()}

    def _fit_scalar(self, kind: type, value: Any, key: str) -> Any:
        if isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)):
            return value
        if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if kind in _NUMBERS and isinstance(value, int | float | str) and not isinstance(value, bool):
            return self._fit_number(kind, value, key)
        self.note(key, f"{shown(value)} is not {_wanted(kind)}", _example(kind))
        return None

    def _fit_number(self, kind: type, value: float | str, key: str) -> Any:
        try:
            number = float(value)
        except ValueError:
            number = None
        if number is None or (kind is int and not number.is_integer()):
            self.note(key, f"{shown(value)} is not {_NUMBERS[kind]}", _example(kind))
            return None
        return kind(number)

    def note(self, key: str, what: str, way_out: str) -> None:
        """Remember one problem at the place of `key`, or of the nearest key above it."""
        self.problems.append(Problem(self.place(key), what, way_out))

    def place(self, key: str) -> str:
        """`file:line key`, as near as is known."""
        at = key
        while at and at not in self.places:
            at = at.rpartition(".")[0]
        return f"{self.places[at]} {key}" if at else key

    def close(self) -> None:
        """Raise ConfigError with all problems, if there are any."""
        if self.problems:
            raise ConfigError.of(self.problems)


def hints(kind: Any) -> dict[str, Any]:
    """Field name → type of a dataclass."""
    resolved = _resolved(kind)
    return {field.name: resolved[field.name] for field in dataclasses.fields(kind)}


@cache
def _resolved(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)


def required(kind: Any) -> list[str]:
    """The fields of a dataclass that have no default."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]


def join(key: str, name: object) -> str:
    """`key.name`, or `name` at the top."""
    return f"{key}.{name}" if key else str(name)


def shown(value: Any) -> str:
    """A value for a message: short, and on one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _wanted(kind: type) -> str:
    return _NUMBERS.get(kind) or {bool: "true or false", str: "text"}.get(kind, kind.__name__)


def _example(kind: type) -> str:
    return {bool: "write true or false", int: "write for example 2", float: "write for example 1e-4"}.get(
        kind, "put it in quotes"
    )
