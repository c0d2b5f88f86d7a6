"""YAML files in, plain values and the line of every key out; refuses tags, duplicate keys and alias bombs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lavis_ext.errors import ConfigError

MAX_BYTES = 8 * 2**20
MAX_ALIASES = 64
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The mapping in a YAML file, and `dotted.key` → `file:line`; raises ConfigError with the line of a mistake."""
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
            raise ConfigError(f"{path}:{line} {prefix}{name}", f"stands twice, first in line {seen[name]}", "keep one")
        seen[name] = line
        yield prefix + name, line
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, f"{prefix}{name}.", path, open_nodes)
        elif isinstance(value, yaml.SequenceNode):
            # the index that typed.py gives an item: none where it is the only one
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
