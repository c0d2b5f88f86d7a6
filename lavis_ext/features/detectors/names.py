"""Class and attribute names of a detector from the files that are published with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lavis_ext.errors import ConfigError, UsageError
from lavis_ext.features.files import read_errors


def read_names(path: Path | None, kind: str, count: int) -> tuple[str, ...]:
    """The names in a file, in the order of the ids that a detector gives; none without a file.

    `.txt`: one a line, of several separated by commas the first (bottom-up-attention's `objects_vocab.txt`). `.json`: a
    list, or a dict name → number from 1 under `<kind>_to_idx` (scene_graph_benchmark's label map; `kind` is label or
    attribute). Raises UsageError where no file is, ConfigError where it does not hold `count` names.
    """
    if path is None:
        return ()
    if not path.is_file():
        raise UsageError(str(path), "no such file", f"name a file with {count} {kind} names")
    with read_errors(path):
        text = path.read_text("utf-8", errors="replace")
    names = _from_json(path, text, kind) if path.suffix == ".json" else _from_lines(text)
    if len(names) != count:
        raise ConfigError(
            str(path), f"holds {len(names)} {kind} names, the detector knows {count}", "name another file"
        )
    return tuple(names)


def _from_lines(text: str) -> list[str]:
    return [line.split(",")[0].strip().lower() for line in text.splitlines() if line.strip()]


def _from_json(path: Path, text: str, kind: str) -> list[str]:
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise ConfigError(str(path), f"is no JSON: {error}", "name another file") from error
    if isinstance(content, dict):
        numbers = content.get(f"{kind}_to_idx")
        if isinstance(numbers, dict) and all(type(number) is int for number in numbers.values()):
            return [name for name, number in sorted(numbers.items(), key=_number) if number > 0]
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    raise ConfigError(str(path), f"holds neither a list of names nor {kind}_to_idx", "name another file")


def _number(item: tuple[str, int]) -> int:
    return item[1]
