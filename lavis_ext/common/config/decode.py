"""YAML → plain values with the line of each key → dataclasses; every mistake is collected with its place."""

from __future__ import annotations

import dataclasses
import logging
import math
import types
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from lavis_ext.common.errors import ConfigError, LavisExtError, Problem, nearest

log = logging.getLogger(__name__)
D = TypeVar("D")
MAX_BYTES = 8 * 2**20
MAX_ALIASES = 64
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
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
        lacking = [name for name in required(kind) if name not in given]
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
        origin, args = get_origin(kind), get_args(kind)
        if kind is Any:
            return value
        if origin is Annotated:
            return self._fit_bounded(args[0], args[1:], value, key)
        if origin in (Union, types.UnionType):
            return self._fit_optional(args, value, key)
        if origin is Literal:
            return self._fit_choice(args, value, key)
        if origin is list:
            items = value if isinstance(value, list) else [] if value is None else [value]
            coerced = [
                self.coerce(args[0], item, f"{key}[{i}]" if len(items) > 1 else key) for i, item in enumerate(items)
            ]
            return BAD if any(one is BAD for one in coerced) else coerced
        if origin is dict:
            return self._fit_mapping(args[1], value, key)
        if dataclasses.is_dataclass(kind):
            built = self.build(kind, value, key)  # type: ignore[arg-type]
            return BAD if built is None else built
        return self._fit_scalar(kind, value, key)

    def _fit_bounded(self, kind: Any, marks: tuple[Any, ...], value: Any, key: str) -> Any:
        found = self.coerce(kind, value, key)
        for bound in marks:
            if isinstance(bound, Bound) and found is not BAD and not bound.holds(found):
                return self.note(key, f"{shown(found)} is out of its range", f"give {_NUMBERS[kind]} {bound}")
        return found

    def _fit_optional(self, kinds: tuple[Any, ...], value: Any, key: str) -> Any:
        if value is None or value == "":
            return None if type(None) in kinds else self.note(key, "is empty", "give it a value")
        wanted = [k for k in kinds if k is not type(None)]
        exact = [k for k in wanted if (get_origin(k) or k) is type(value)]
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
        if isinstance(value, kind) and kind is not float and not (kind is not bool and isinstance(value, bool)):
            return value
        if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if kind in _NUMBERS and isinstance(value, int | float | str) and not isinstance(value, bool):
            return self._fit_number(kind, value, key)
        return self.note(key, f"{shown(value)} is not {_wanted(kind)}", _example(kind))

    def _fit_number(self, kind: type, value: float | str, key: str) -> Any:
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or (kind is int and not number.is_integer()):
            return self.note(key, f"{shown(value)} is not {_NUMBERS[kind]}", _example(kind))
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


def hints(kind: Any) -> dict[str, Any]:
    """Field name → type of a dataclass."""
    resolved = _resolved(kind)
    return {field.name: resolved[field.name] for field in dataclasses.fields(kind)}


@cache
def _resolved(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


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


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The mapping in a YAML file, and `dotted.key` → `file:line`; raises ConfigError with the line of a mistake.

    Tags, duplicate keys, files beyond MAX_BYTES and more than MAX_ALIASES aliases (alias bombs) are refused.
    """
    node = _compose(path, _read_text(path))
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{path}:1", "the file is not a mapping of keys to values", "start it with `model:`, `datasets:` …"
        )
    places = {key: f"{path}:{line}" for key, line in _walk(node, "", path, set())}
    value: dict[str, Any] = _construct(node, path)
    return value, places


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(
                str(path), f"{size:,} bytes are too many for a YAML of settings", f"keep it below {MAX_BYTES:,}"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            str(path), error.strerror or "cannot be read", "check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error


def _compose(path: Path, text: str) -> yaml.Node | None:
    try:
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader))
        if aliases > MAX_ALIASES:
            raise ConfigError(str(path), f"{aliases} aliases", f"write the values out; at most {MAX_ALIASES} are read")
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}", error.problem or "not valid YAML", "mend the line") from error
    except yaml.YAMLError as error:
        raise ConfigError(str(path), str(error).splitlines()[0], "save it as plain YAML text") from error


def _walk(node: yaml.MappingNode, prefix: str, path: Path, open_nodes: set[int]) -> Iterator[tuple[str, int]]:
    """Each key of a mapping and of the mappings in it and its lists, with its line; refuses duplicates and cycles."""
    if id(node) in open_nodes:
        raise ConfigError(f"{path}:{node.start_mark.line + 1}", "a mapping that contains itself", "remove the alias")
    open_nodes.add(id(node))
    seen: dict[str, int] = {}
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        name = str(key_node.value)
        if name in seen:
            raise ConfigError(
                f"{path}:{line} {prefix}{name}", f"is given twice, first in line {seen[name]}", "keep one"
            )
        seen[name] = line
        yield prefix + name, line
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, f"{prefix}{name}.", path, open_nodes)
        elif isinstance(value, yaml.SequenceNode):
            # as `coerce` names items: without an index where there is only one
            for index, item in enumerate(value.value):
                if isinstance(item, yaml.MappingNode):
                    at = name if len(value.value) == 1 else f"{name}[{index}]"
                    yield from _walk(item, f"{prefix}{at}.", path, open_nodes)
    open_nodes.discard(id(node))


class _Constructor(yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
    """PyYAML's safe constructor over an already composed node; `1e-4` is a number, as OmegaConf has it."""

    def __init__(self) -> None:
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)


def _construct_float_or_text(constructor: yaml.constructor.SafeConstructor, node: yaml.ScalarNode) -> str | float:
    # YAML 1.1, which PyYAML reads, wants `1.0e-4`; LAVIS' YAMLs write `1e-4`
    text: str = constructor.construct_scalar(node)
    if not node.style and text[:1] in "+-.0123456789" and text.lower().count("e") == 1:
        try:
            return float(text)
        except ValueError:
            return text
    return text


_Constructor.add_constructor("tag:yaml.org,2002:str", _construct_float_or_text)  # type: ignore[type-var]


def _construct(node: yaml.Node, path: Path) -> Any:
    try:
        return _Constructor().construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(
            f"{path}:{line}", error.problem or "cannot be read", "only plain values are read from YAML"
        ) from error
