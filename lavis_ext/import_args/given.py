"""Words of a command → the values of its flags, typed; every mistake at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lavis_ext.errors import Problem, nearest
from lavis_ext.import_args.table import Flag, Script

SHORT = {"-j": "workers"}
NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
VARIABLE = re.compile(r"\$\{?\w+\}?|`|\$\(")
WANTED = {"int": "a whole number", "float": "a number"}


@dataclass
class Given:
    """The flags of a command with their values, and what is wrong with them."""

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_flags(words: Sequence[str], script: Script, where: str) -> Given:
    """The flags as argparse takes them: `--a b`, `--a=b`, `-j4`, beginnings of names; of a repeated one the last."""
    found = Given()
    for name, value in pairs(words, script.flags):
        if not name:
            found.problems.append(
                Problem(where, f"stray word '{value}'", "put it in quotes with its flag, or remove it")
            )
        elif (flag := find_flag(name, script.flags)) is None:
            way_out = nearest(f"--{name.lstrip('-')}", [f"--{known}" for known in script.flags])
            found.problems.append(Problem(where, f"unknown flag '{name}'", way_out))
        else:
            own, kind = flag
            problem, typed = fit(kind, value)
            if problem:
                found.problems.append(Problem(f"{where} --{own}", problem, told(kind, value)))
            else:
                found.values[own] = typed
    return found


def pairs(words: Sequence[str], flags: Mapping[str, Flag]) -> Iterator[tuple[str, str | None]]:
    """Each flag with the word that is its value (None: it has none); a word that is no flag's comes with no name."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-j") and re.fullmatch(r"-j=?\d+", word):
            yield "-j", word[2:].lstrip("=")
        elif not word.startswith("-") or NUMBER.fullmatch(word):
            yield "", word
        elif "=" in word:
            name, _, value = word.partition("=")
            yield name, value
        else:
            known = find_flag(word, flags)
            # an unknown flag takes the word after it along, so that this is not told as a second mistake
            takes = known is None or known[1].kind != "switch"
            follows = bool(rest) and (not rest[0].startswith("-") or bool(NUMBER.fullmatch(rest[0])))
            yield word, rest.pop(0) if takes and follows else None


def find_flag(word: str, flags: Mapping[str, Flag]) -> tuple[str, Flag] | None:
    """The flag that a word names, whole or by a beginning that no other flag has; None if there is none."""
    name = SHORT.get(word, word.removeprefix("--"))
    if not word.startswith("--") and word not in SHORT:
        return None
    close = [name] if name in flags else [known for known in flags if name and known.startswith(name)]
    return (close[0], flags[close[0]]) if len(close) == 1 and close[0] in flags else None


def fit(flag: Flag, value: str | None) -> tuple[str, Any]:
    """A problem, or "" and the typed value, translated where ours has another name."""
    if flag.kind == "switch":
        return ("", True) if value is None else (f"takes no value, and has '{value}'", None)
    if value is None:
        return "has no value", None
    if VARIABLE.search(value):
        return f"'{value}' is a variable of the shell", None
    if flag.kind in WANTED:
        try:
            number = float(value)
            whole = int(number) if flag.kind == "int" else number
        except (ValueError, OverflowError):
            return f"'{value}' is not {WANTED[flag.kind]}", None
        return (
            ("", whole)
            if whole == number and math.isfinite(number)
            else (f"'{value}' is not {WANTED[flag.kind]}", None)
        )
    choices = {**{name: name for name in flag.also}, **flag.values}
    if choices and value not in choices:
        return f"'{value}' is no choice", None
    return "", choices.get(value, value)


def told(flag: Flag, value: str | None) -> str:
    """The way out for a value that does not fit."""
    if value is not None and VARIABLE.search(value):
        return "write what it stands for"
    choices = [*flag.also, *flag.values]
    if flag.kind == "switch":
        return "leave the value out"
    if choices:
        return nearest(value or "", choices)
    return f"give it {WANTED.get(flag.kind, 'a value')}"
