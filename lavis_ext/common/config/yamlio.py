"""YAML files → plain values with text keys, and the line of each key; what could run code or never end is refused."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import read_bounded

MAX_BYTES = 8 * 2**20
MAX_ALIASES = 64
MAX_DEPTH = 64
MAX_NODES = 200_000
"""Values in a file, each as often as aliases repeat it: a second."""
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 64
_DEEPER = {yaml.MappingStartEvent: 1, yaml.SequenceStartEvent: 1, yaml.MappingEndEvent: -1, yaml.SequenceEndEvent: -1}
TEXT = "tag:yaml.org,2002:str"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The mapping in a YAML file, and `dotted.key` → `file:line`; raises ConfigError with the line of a mistake.

    Keys are text. Tags, duplicate keys, files beyond MAX_BYTES, deep nesting and alias bombs are refused.
    """
    node = _compose(str(path), _read_text(path))
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{path}:1", "the file is not a mapping of keys to values", "start it with `model:`, `datasets:` …"
        )
    walk = _Walk(str(path))
    walk.enter(node)
    places = {key: f"{path}:{line}" for key, line in walk.lines.items()}
    value: dict[str, Any] = _construct(node, str(path))
    return value, places


def read_value(text: str, where: str) -> Any:
    """The value that a YAML text spells, as `--options` give it; raises ConfigError."""
    node = _compose(where, text)
    if node is None:
        return None
    _Walk(where).enter(node)
    return _construct(node, where)


def plain_of(given: Any) -> Any:
    """A script's OmegaConf node as plain values; anything else itself, without that import."""
    if type(given).__module__.partition(".")[0] != "omegaconf":
        return given
    from omegaconf import OmegaConf

    return OmegaConf.to_container(given) if OmegaConf.is_config(given) else given


def _read_text(path: Path) -> str:
    try:
        data = read_bounded(path, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(
                str(path), f"{MAX_BYTES:,} bytes are too many for a YAML of settings", "write the data to another file"
            )
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise ConfigError(str(path), f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
        reason = getattr(error, "strerror", None) or str(error) or "cannot be read"
        raise ConfigError(str(path), reason, "check the path and its permissions") from error


def _compose(where: str, text: str) -> yaml.Node | None:
    try:
        aliases = depth = 0
        # composing recurses in C, without a bound of its own: the events are counted first
        for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
            kind = type(event)
            aliases += kind is yaml.AliasEvent
            depth += _DEEPER.get(kind, 0)
            if depth > MAX_DEPTH:
                raise ConfigError(
                    f"{where}:{event.start_mark.line + 1 if event.start_mark else 1}",
                    "is nested too deep",
                    f"at most {MAX_DEPTH} levels are read",
                )
            if number > MAX_NODES:
                raise ConfigError(where, f"more than {MAX_NODES:,} values", "write the data to another file")
        if aliases > MAX_ALIASES:
            raise ConfigError(where, f"{aliases} aliases", f"write the values out; at most {MAX_ALIASES} are read")
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{where}:{line}", error.problem or "not valid YAML", "mend the line") from error
    except (yaml.YAMLError, ValueError) as error:  # a lone surrogate is no UTF-8
        raise ConfigError(where, str(error).splitlines()[0], "save it as plain YAML text") from error


class _Walk:
    """The line of each key of a node; refuses duplicates, cycles, keys that are no text, and what aliases blow up."""

    def __init__(self, where: str) -> None:
        self.lines: dict[str, int] = {}
        self._where, self._open, self._seen = where, set[int](), 0

    def enter(self, node: yaml.Node, prefix: str = "") -> None:
        self._seen += 1
        if self._seen > MAX_NODES:
            self._refuse(node, f"more than {MAX_NODES:,} values with its aliases", "write them out, or use fewer")
        if isinstance(node, yaml.ScalarNode):
            return
        if id(node) in self._open:
            self._refuse(node, "a value that contains itself", "remove the alias")
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._enter_mapping(node, f"{prefix}." if prefix else "")
        else:
            for index, item in enumerate(node.value):  # as `coerce` names items: without an index where there is one
                self.enter(item, prefix if len(node.value) == 1 else f"{prefix}[{index}]")
        self._open.discard(id(node))

    def _enter_mapping(self, node: yaml.MappingNode, prefix: str) -> None:
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_node, "a key that is no text", "write `key: value`")
            name, line = str(key_node.value), key_node.start_mark.line + 1
            if name in seen:
                where = f"{self._where}:{line} {prefix}{name}"
                raise ConfigError(where, f"is given twice, first in line {seen[name]}", "keep one")
            seen[name] = self.lines[prefix + name] = line
            self.enter(value, prefix + name)

    def _refuse(self, node: yaml.Node, what: str, way_out: str) -> NoReturn:
        raise ConfigError(f"{self._where}:{node.start_mark.line + 1}", what, way_out)


class _Constructor(yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
    """PyYAML's safe constructor over an already composed node, for plain values and text keys only.

    `1e-4` is a number, as OmegaConf has it, and a date is the text that was written.
    """

    def __init__(self) -> None:
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """As PyYAML, with the node's line in every error: `!!bool x` raises KeyError, `!!int ''` IndexError."""
        if node.tag == TEXT and isinstance(node, yaml.ScalarNode):  # most are, and nothing refers to them
            return _construct_float_or_text(self, node)
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                str(value)  # Python writes at most 4,300 digits, and reads any number of hexadecimal ones
            return value
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            problem = f"{shown(node.value)} cannot be read as {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Keys as they are written: `2014:` is text, as in every dotted key."""
        if not isinstance(node, yaml.MappingNode):  # `!!map x`
            raise yaml.constructor.ConstructorError(None, None, f"{node.id} is no mapping", node.start_mark)
        self.flatten_mapping(node)
        return {str(key.value): self.construct_object(value, deep) for key, value in node.value}


def _construct_float_or_text(constructor: yaml.constructor.SafeConstructor, node: yaml.ScalarNode) -> str | float:
    # YAML 1.1, which PyYAML reads, wants `1.0e-4`; LAVIS' YAMLs write `1e-4`
    text: str = constructor.construct_scalar(node)
    if not node.style and text[:1] in "+-.0123456789" and text.lower().count("e") == 1:
        try:
            return float(text)
        except ValueError:
            return text
    return text


_Constructor.add_constructor(TEXT, _construct_float_or_text)  # type: ignore[type-var]
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", _Constructor.construct_scalar)  # type: ignore[type-var]
for _kind in ("binary", "set", "omap", "pairs"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _Constructor.construct_undefined)  # type: ignore[type-var]


def _construct(node: yaml.Node, where: str) -> Any:
    try:
        return _Constructor().construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(
            f"{where}:{line}", error.problem or "cannot be read", "only plain values are read from YAML"
        ) from error


def shown(value: Any) -> str:
    """A value for a message: short, and on one line."""
    try:
        text = _REPR.repr(value)  # of something huge, only a part is made
    except ValueError:  # Python writes at most 4,300 digits
        text = f"a number of {value.bit_length():,} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "…"
