"""A run file in the making: its tree, what is left out and why, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from lavis_ext.errors import Problem
from lavis_ext.import_args.table import Script

TRAINING = ("do_train", "do_train_val")
OURS = ("datasets", "pretrained_models", "exp")
"""Folders of a checkout of Oscar that `lavis-ext prepare oscar` lays out below cache_root/oscar."""


@dataclass
class Draft:
    """What becomes of the flags of one command of `script`."""

    script: Script
    given: Mapping[str, Any]
    where: str
    sections: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"model": {}, "args": {}, "run": {}, "distill": {}}
    )
    dataset: str = ""
    storage: str = ""
    notes: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    """What is to be known about keys that are in the tree."""
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


def moved(path: str) -> str:
    """A path of a checkout of Oscar as it lies below cache_root: `datasets/vqa/…` → `oscar/datasets/vqa/…`."""
    plain = PurePosixPath(path)
    return str(PurePosixPath("oscar", plain)) if plain.parts[:1] and plain.parts[0] in OURS else path
