"""The table of upstream's scripts and flags, read from flags.yaml; its header says what each field means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lavis_ext.typed import Door
from lavis_ext.yamlio import read_yaml

TABLE = Path(__file__).with_name("flags.yaml")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag: the kind of its value, and what becomes of it."""

    kind: Literal["int", "float", "text", "switch"]
    to: str = ""
    via: str = ""
    default: Any = None
    by: dict[str, Any] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    also: list[str] = field(default_factory=list)
    unset: bool | None = None
    least: int | None = None
    train: bool = False
    kept: bool = False
    why: str = ""
    refuse: str = ""
    but: list[Any] = field(default_factory=list)

    def default_of(self, script: str) -> Any:
        """What upstream takes where the flag is not given; None where that is left to us."""
        return self.unset if self.unset is not None else self.by.get(script, self.default)


@dataclass(frozen=True, kw_only=True)
class Script:
    """One script of upstream's: the flags that it takes, and what it is here. `term` is how its teacher teaches."""

    groups: list[str]
    task: str
    folders: dict[str, str]
    name: str = ""
    term: str = ""
    flags: dict[str, Flag] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything that is known: scripts by name, endings of names by term, groups of flags."""

    scripts: dict[str, Script]
    teachers: dict[str, str]
    groups: dict[str, dict[str, Flag]]


@cache
def load_table() -> Mapping[str, Script]:
    """Every script by its name (without `.py`), those with a teacher too, with all of its flags."""
    tree, places = read_yaml(TABLE)
    door = Door(places)
    table = door.build(Table, tree)
    door.close()
    assert table is not None
    found: dict[str, Script] = {}
    for name, script in table.scripts.items():
        for ending, term in {"": "", **table.teachers}.items():
            groups = [*script.groups, *(["distillation"] if term else [])]
            flags = {key: flag for group in groups for key, flag in table.groups[group].items()}
            found[name + ending] = replace(script, name=name, term=term, flags=flags)
    return found
