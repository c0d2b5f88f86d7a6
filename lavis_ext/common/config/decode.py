"""Plain values, as `yamlio` reads them → dataclasses; every mistake is collected with its place."""

from __future__ import annotations

import dataclasses
import logging
import math
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from lavis_ext.common.config.yamlio import read_yaml as read_yaml
from lavis_ext.common.config.yamlio import shown
from lavis_ext.common.errors import ConfigError, LavisExtError, Problem, nearest

log = logging.getLogger(__name__)
D = TypeVar("D")
LARGEST = 2**63 - 1
"""Whole numbers beyond it are refused: no seed, size or count of torch, numpy or Arrow is larger."""
_NUMBERS: dict[type, str] = {int: "a whole number", float: "a number"}
BAD = object()
"""Returned for a value that did not fit: its field keeps its default."""


@dataclass(frozen=True)
class Bound:
    """The range of a number, written beside its field: `num_beams: Annotated[int, Bound(1)] = 5`."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    """Whether `low` itself is excluded."""

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        return (self.low < value if self.open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low = f"{'above' if self.open else 'from'} {self.low:g} on"
        return low if self.high == math.inf else f"{'above' if self.open else 'from'} {self.low:g} to {self.high:g}"


Count = Annotated[int, Bound(1)]
Natural = Annotated[int, Bound(0)]
Rate = Annotated[float, Bound(0)]
Positive = Annotated[float, Bound(0, open=True)]
Share = Annotated[float, Bound(0, 1)]


def require_bounds(settings: Any) -> None:
    """Raise ConfigError with every number of a section that was made in code and is not finite, or out of its range."""
    problems = []
    for name, kind in hints(type(settings)).items():
        value = getattr(settings, name)
        if value is None or isinstance(value, str | bool | list):
            continue
        for key, item in value.items() if isinstance(value, Mapping) else [("", value)]:
            if isinstance(item, int | float) and not isinstance(item, bool):
                low = next((bound for bound in _bounds_of(kind) if not bound.holds(item)), None)
                if low is not None or not math.isfinite(item) or abs(item) > LARGEST:
                    what = f"{shown(item)} is out of its range"
                    problems.append(Problem(join(name, key) if key else name, what, f"give a number {low or ''}"))
    if problems:
        raise ConfigError.of(problems)


class ConfigDecoder:
    """Builds dataclasses from nested mappings; `problems` holds all that did not fit.

    Coercions, and no others: a whole number where a number is wanted, text that spells a number (`"1e-4"`), a number
    where text is wanted, a single value where a list is wanted, `null` and `""` where the value may be absent.
    Numbers are finite, and within the `Bound` of their field. A dataclass may define these hooks:

    - `accept(value)` (static) reshapes the value before it is read, for LAVIS' short forms.
    - `variant(value)` (class) is the class with the keys of those who read the section, and whether all of them are
      known.
    - `readers(key)` (static) names those elsewhere who read a key that this class does not have.
    - `ignored` (class variable) maps keys that are ignored with a notice to the reason.
    - `rest` (class variable) names a field that takes the mapping as it is given, for sections whose reader declares no
      keys; then no key is unknown.
    - `examine(decoder, key)` notes what the types do not say.
    """

    def __init__(self, places: Mapping[str, str] | None = None, lenient: bool = False) -> None:
        """`lenient` skips keys that others read: for the `config.yaml` of a run that an older version wrote."""
        self.places, self.lenient = places or {}, lenient
        self.problems: list[Problem] = []
        self.faulty: set[str] = set()
        """Keys whose value did not fit."""

    def build(self, kind: type[D], value: Any, key: str = "") -> D | None:
        """An instance of the dataclass `kind`; `key` is the dotted key of `value`.

        Each problem is noted and its field left at its default, so that what depends on the others can be seen too;
        None where a field without a default is missing.
        """
        accept = getattr(kind, "accept", None)
        value = accept(value) if accept is not None else value
        if not isinstance(value, Mapping):
            self.note(key, f"{shown(value)} is not a mapping", f"write {' | '.join(hints(kind))} under it")
            return None
        variant = getattr(kind, "variant", None)
        complete = True
        if variant is not None:
            kind, complete = variant(value)
        known = hints(kind)
        rest = getattr(kind, "rest", "")
        given: dict[str, Any] = {rest: dict(value)} if rest else {}
        for name, item in value.items():
            if name in known and name != rest:
                found = self.coerce(known[name], item, join(key, name))
                if found is not BAD:
                    given[name] = found
            elif not rest or str(name) in getattr(kind, "ignored", {}):
                self._unknown(kind, str(name), item, join(key, name), complete)
        lacking = [name for name in _required(cast("Any", kind)) if name not in given]
        for name in lacking:
            if name not in value:
                self.note(join(key, name), "is missing", "give it a value")
        if lacking:
            return None
        try:
            built = kind(**given)
        except LavisExtError as error:
            self.problems += [Problem(self.place(join(key, p.where)), p.what, p.way_out) for p in error.problems]
            return None
        examine = getattr(built, "examine", None)
        if examine is not None:
            examine(self, key)
        return built

    def _unknown(self, kind: Any, name: str, value: Any, key: str, complete: bool) -> None:
        """Note a key that the class does not have; where not all readers are known (`complete`), only a key of nobody.

        `null` for a key that others read says that it is not set, which is true.
        """
        if why := getattr(kind, "ignored", {}).get(name):
            log.warning("%s is not needed (%s)", self.place(key), why)
            return
        readers = kind.readers(name) if hasattr(kind, "readers") else []
        if readers and value is None:
            return
        if readers and self.lenient:
            log.warning("%s is not read by this %s", self.place(key), kind.__name__)
        elif readers and complete:
            self.note(key, "is not read here", f"remove it; it is a key of {', '.join(readers)}")
        elif not readers:
            self.note(key, "unknown key", nearest(name, hints(kind)))

    def coerce(self, kind: Any, value: Any, key: str) -> Any:
        """`value` as `kind`; notes a problem and returns BAD where it cannot be."""
        fit, of = _fit_of(kind)
        return fit(self, of, value, key)

    def _fit_any(self, of: None, value: Any, key: str) -> Any:
        return value

    def _fit_list(self, kind: Any, value: Any, key: str) -> Any:
        items = value if isinstance(value, list) else [] if value is None else [value]
        coerced = [self.coerce(kind, item, f"{key}[{i}]" if len(items) > 1 else key) for i, item in enumerate(items)]
        return BAD if any(one is BAD for one in coerced) else coerced

    def _fit_dataclass(self, kind: Any, value: Any, key: str) -> Any:
        built = self.build(kind, value, key)
        return BAD if built is None else built

    def _fit_bounded(self, of: tuple[Any, ...], value: Any, key: str) -> Any:
        kind, *marks = of
        found = self.coerce(kind, value, key)
        for bound in marks:
            if isinstance(bound, Bound) and found is not BAD and not bound.holds(found):
                return self.note(key, f"{shown(found)} is out of its range", f"give {_NUMBERS[kind]} {bound}")
        return found

    def _fit_optional(self, kinds: tuple[Any, ...], value: Any, key: str) -> Any:
        if value is None or value == "":
            return None if type(None) in kinds else self.note(key, "is empty", "give it a value")
        wanted = [k for k in kinds if k is not type(None)]
        exact = [] if len(wanted) == 1 else [k for k in wanted if (get_origin(k) or k) is type(value)]
        if not exact and isinstance(value, Mapping):
            exact = [k for k in wanted if dataclasses.is_dataclass(k)]
        return self.coerce((exact or wanted)[0], value, key)

    def _fit_choice(self, choices: tuple[Any, ...], value: Any, key: str) -> Any:
        if value is False and "no" in choices:
            return "no"  # YAML reads a bare no as false
        if value not in choices:
            return self.note(key, f"{shown(value)} is not a choice", nearest(str(value), map(str, choices)))
        return value

    def _fit_mapping(self, kind: Any, value: Any, key: str) -> Any:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            return self.note(key, f"{shown(value)} is not a mapping", "write `name: value` lines under it")
        coerced = {str(name): self.coerce(kind, item, join(key, name)) for name, item in value.items()}
        return {name: item for name, item in coerced.items() if item is not BAD}

    def _fit_scalar(self, kind: type, value: Any, key: str) -> Any:
        if isinstance(value, kind) and kind not in _NUMBERS and not (kind is not bool and isinstance(value, bool)):
            return value
        if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if kind in _NUMBERS and isinstance(value, int | float | str) and not isinstance(value, bool):
            return self._fit_number(kind, value, key)
        return self.note(key, f"{shown(value)} is not {_wanted(kind)}", _example(kind))

    def _fit_number(self, kind: type, value: float | str, key: str) -> Any:
        try:
            number = value if kind is int and isinstance(value, int) else float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or (kind is int and number != int(number)):
            return self.note(key, f"{shown(value)} is not {_NUMBERS[kind]}", _example(kind))
        if kind is int and abs(number) > LARGEST:
            return self.note(key, f"{shown(value)} is too large", "write a number of at most 63 bits")
        return kind(number)

    def note(self, key: str, what: str, way_out: str) -> Any:
        """Remember one problem at the place of `key`, or of the nearest key above it; returns BAD."""
        self.problems.append(Problem(self.place(key), what, way_out))
        self.faulty.add(key)
        return BAD

    def place(self, key: str) -> str:
        """`file:line key`, as near as is known."""
        at = key
        while at and at not in self.places:
            at = at[: at.rindex("[")] if at.endswith("]") and "[" in at else at.rpartition(".")[0]
        return f"{self.places[at]} {key}" if at else key

    def close(self) -> None:
        """Raise ConfigError with all problems, if there are any."""
        if self.problems:
            raise ConfigError.of(self.problems)


def hints(kind: Any) -> Mapping[str, Any]:
    """Field name → type of a dataclass."""
    return _hints(kind)


@cache
def _hints(kind: Hashable) -> Mapping[str, Any]:
    resolved, fields = get_type_hints(kind, include_extras=True), dataclasses.fields(cast("Any", kind))
    return {field.name: resolved[field.name] for field in fields}


@cache
def _required(kind: Hashable) -> list[str]:
    missing, fields = dataclasses.MISSING, dataclasses.fields(cast("Any", kind))
    return [one.name for one in fields if one.default is missing and one.default_factory is missing]


@cache
def _fit_of(kind: Hashable) -> tuple[Callable[[ConfigDecoder, Any, Any, str], Any], Any]:
    """How a value becomes one of a type, and of what: a type is taken apart once, not for each of its values."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return ConfigDecoder._fit_any, None
    if origin is Annotated:
        return ConfigDecoder._fit_bounded, args
    if origin in (Union, types.UnionType):
        return ConfigDecoder._fit_optional, args
    if origin is Literal:
        return ConfigDecoder._fit_choice, args
    if origin is list:
        return ConfigDecoder._fit_list, args[0]
    if origin is dict:
        return ConfigDecoder._fit_mapping, args[1]
    return (ConfigDecoder._fit_dataclass if dataclasses.is_dataclass(kind) else ConfigDecoder._fit_scalar), kind


@cache
def _bounds_of(kind: Hashable) -> list[Bound]:
    if get_origin(kind) is Annotated:
        return [mark for mark in get_args(kind)[1:] if isinstance(mark, Bound)]
    return [bound for inner in get_args(kind) for bound in _bounds_of(inner)]


def join(key: str, name: object) -> str:
    """`key.name`, or `name` at the top."""
    return f"{key}.{name}" if key else str(name)


def _wanted(kind: type) -> str:
    return _NUMBERS.get(kind) or {bool: "true or false", str: "text"}.get(kind, kind.__name__)


def _example(kind: type) -> str:
    return {bool: "write true or false", int: "write for example 2", float: "write for example 1e-4"}.get(
        kind, "put it in quotes"
    )


SECTIONS = {"env": 0, "model": 0, "run": 0, "preprocess": 1, "datasets": 1, "artifacts": 1}
"""Sections that are mappings, and how many levels below them are mappings too."""


def read_sections(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """`read_yaml` of a file of ours, whose sections are mappings; raises ConfigError with each that is something else.

    Null stands for an empty section.
    """
    tree, places = read_yaml(path)
    decoder = ConfigDecoder(places)
    tree = mappings_only(tree, decoder)
    decoder.close()
    return tree, places


def mappings_only(tree: Mapping[str, Any], decoder: ConfigDecoder) -> dict[str, Any]:
    """A tree without the sections, data sets and artifacts that are not mappings, which are noted as mistakes."""

    def keep(section: Mapping[str, Any], prefix: str, below: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, body in section.items():
            if not prefix and name not in SECTIONS:
                kept[name] = body
            elif body is not None and not isinstance(body, Mapping):
                decoder.note(f"{prefix}{name}", f"{shown(body)} is not a mapping", "write `key: value` lines under it")
            else:
                deeper = below if prefix else SECTIONS[name]
                kept[name] = keep(body or {}, f"{prefix}{name}.", deeper - 1) if deeper else dict(body or {})
        return kept

    return keep(tree, "", 0)
