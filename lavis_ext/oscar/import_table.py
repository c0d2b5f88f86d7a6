"""The table of upstream's scripts and flags, and the draft of a run file that `import_args` fills by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lavis_ext.common.config.decode import ConfigDecoder, read_yaml
from lavis_ext.common.errors import Problem

TABLE = Path(__file__).with_name("flags.yaml")
"""Upstream's scripts and flags; the header of the file says what each field means."""


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
    """One script of upstream's: its flags, our task and data sets; `term` is its distillation term, "" without one."""

    groups: list[str]
    task: str
    folders: dict[str, str]
    name: str = ""
    term: str = ""
    flags: dict[str, Flag] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FlagTable:
    """Everything that is known: scripts by name, the term that an ending of a name means, groups of flags."""

    scripts: dict[str, Script]
    teachers: dict[str, str]
    groups: dict[str, dict[str, Flag]]


BETA = {"pkd": 500.0, "tinybert": 0.01}
"""What the loss of layers weighs where --beta is not given."""


@cache
def load_table() -> Mapping[str, Script]:
    """Every script by its name (without `.py`), those with a teacher too, with all of its flags."""
    tree, places = read_yaml(TABLE)
    door = ConfigDecoder(places)
    table = door.build(FlagTable, tree)
    door.close()
    assert table is not None
    found: dict[str, Script] = {}
    for name, script in table.scripts.items():
        taught = table.teachers if {"questions", "retrieval"} & set(script.groups) else {}
        for ending, term in {"": "", **taught}.items():
            groups = [*script.groups, *(["distillation"] if term else []), *(["layers"] if term in BETA else [])]
            flags = {key: flag for group in groups for key, flag in table.groups[group].items()}
            found[name + ending] = replace(script, name=name, term=term, flags=flags)
    return found


TRAINING = ("do_train", "do_train_val")


@dataclass
class Draft:
    """A run file in the making, from one command of `script`: its tree, what is left out and why, mistakes."""

    script: Script
    given: Mapping[str, Any]
    where: str
    sections: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"model": {}, "args": {}, "run": {}, "distill": {}}
    )
    dataset: str = ""
    form: str = ""
    """The data set's type, "" for Oscar's own form."""
    build: dict[str, Any] = field(default_factory=dict)
    """Of the data set's `build_info`."""
    storage: str = ""
    notes: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    """Remarks on keys that are in the tree."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def trains(self) -> bool:
        """Whether the command trains."""
        return any(self.given.get(flag) for flag in TRAINING)

    @property
    def asks(self) -> bool:
        """Whether the script is one of questions and pairs, which validates whenever it trains."""
        return "questions" in self.script.groups

    def value(self, flag: str) -> Any:
        """The value of a flag, upstream's default where it is not given, None where the script has no such flag."""
        known = self.script.flags.get(flag)
        return self.given.get(flag, known.default_of(self.script.name) if known else None)

    def put(self, key: str, value: Any) -> None:
        """Set `section.name` of the tree."""
        section, _, name = key.partition(".")
        self.sections[section][name] = value

    def note(self, flag: str, reason: str) -> None:
        """Remember why a flag that was given is not in the tree."""
        self.notes.append((flag, reason))

    def refuse(self, flag: str, what: str, way_out: str) -> None:
        """Remember a mistake."""
        self.problems.append(Problem(f"{self.where} --{flag}", what, way_out))
