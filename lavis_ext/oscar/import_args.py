"""`import-args`: a command of upstream's scripts → typed flags → the YAML of a run, with what was left out and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lavis_ext.common.errors import Problem, UsageError, nearest
from lavis_ext.oscar.import_rules import RULES
from lavis_ext.oscar.import_table import Draft, Flag, Script, load_table
from lavis_ext.oscar.import_words import STANDS_FOR, UpstreamCommand, find_command

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
                found.problems.append(Problem(f"{where} --{own}", problem, way_out_of(kind, value)))
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
            # an unknown flag takes the next word with it, which would else be reported as a second mistake
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
    if STANDS_FOR.fullmatch(value):
        return f"'{value}' stands for a value of your own", None
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


def way_out_of(flag: Flag, value: str | None) -> str:
    """What to do about a value that does not fit."""
    if value is not None and (VARIABLE.search(value) or STANDS_FOR.fullmatch(value)):
        return "write its value"
    choices = [*flag.also, *flag.values]
    if flag.kind == "switch":
        return "leave the value out"
    if choices:
        return nearest(value or "", choices)
    return f"give it {WANTED.get(flag.kind, 'a value')}"


WIDTH = 118
SHOWN = 60


@dataclass(frozen=True)
class ImportedRun:
    """A run file made of a command: its text and tree, and for each flag that is not in it the reason."""

    script: str
    text: str
    tree: dict[str, Any]
    notes: list[tuple[str, str]] = field(default_factory=list)


def import_command(words: Sequence[str]) -> ImportedRun:
    """The run file for the words of a command, or for one text that holds it; raises UsageError with every mistake."""
    command = find_command(words)
    script = load_table()[command.script]
    where = f"{command.script}.py"
    given = read_flags(command.words, script, where)
    draft = Draft(script, given.values, where, problems=list(given.problems))
    place_all(draft)
    if draft.problems:
        raise UsageError.of(draft.problems)
    tree = tree_of(draft)
    return ImportedRun(command.script, text_of(command, draft, tree), tree, draft.notes)


def place_all(draft: Draft) -> None:
    """Put every flag of the script into the tree, by the table (`flags.yaml`) or by its rule (`import_rules`)."""
    done: set[str] = set()
    for name, flag in draft.script.flags.items():
        if flag.refuse:
            if name in draft.given and draft.given[name] not in flag.but:
                draft.refuse(name, f"cannot be carried over: {flag.refuse}", "leave it out")
        elif flag.why:
            if name in draft.given:
                draft.note(name, flag.why)
        elif flag.train and not draft.trains:
            if name in draft.given:
                draft.note(name, "nothing is trained")
        elif flag.to:
            place(draft, name, flag)
        elif flag.via not in done:
            done.add(flag.via)
            RULES[flag.via](draft)


def place(draft: Draft, name: str, flag: Flag) -> None:
    """Put one flag under its key: as given, else upstream's default, except where a checkpoint is only tested."""
    value = draft.value(name)
    if name not in draft.given and flag.kept and not draft.trains and not draft.asks:
        draft.note(
            name, "upstream reads it from training_args.bin, a pickle, which is not read; ours is the data set's"
        )
        return
    if flag.least is not None and value is not None and value < flag.least:
        draft.note(name, f"{value} leaves {flag.to} as it is")
    elif value is not None:
        draft.put(flag.to, value)


def tree_of(draft: Draft) -> dict[str, Any]:
    """The run file as plain values."""
    parts, script = draft.sections, draft.script
    build = {**draft.build, **({"storage": draft.storage} if draft.storage else {})}
    dataset: dict[str, Any] = {"type": draft.form} if draft.form else {}
    dataset |= {"build_info": build} if build else {}
    run = {"task": "distill" if parts["distill"] else script.task, **parts["run"]}
    if parts["distill"]:
        run["distill"] = parts["distill"]
    return {"model": parts["model"], "datasets": {draft.dataset: {**dataset, "args": parts["args"]}}, "run": run}


def text_of(command: UpstreamCommand, draft: Draft, tree: dict[str, Any]) -> str:
    """The file: where it comes from, what is left out and why, then the tree."""
    lines = [f"Made by `lavis-ext import-args` from a command of {command.script}.py."]
    around = [*command.before, *command.after]
    if left := [word for word in around if word not in ("python", "python3")]:
        lines.append(f"The words around the command are left out: {shown(' '.join(left))}")
    lines += [f"{key}: {why}" for key, why in draft.remarks]
    lines += ["Of its flags these are not in it:"] if draft.notes else []
    lines += [f"  {line}" for line in reasons(draft.notes)]
    header = "".join(f"# {line}\n" for line in lines)
    return header + yaml.dump(tree, Dumper=RunFileDumper, sort_keys=False, allow_unicode=True, width=WIDTH)


def reasons(notes: Sequence[tuple[str, str]]) -> list[str]:
    """`--flag, --flag: why`, each reason once."""
    flags: dict[str, list[str]] = {}
    for name, why in notes:
        flags.setdefault(why, []).append(f"--{name}")
    return [f"{', '.join(names)}: {why}" for why, names in flags.items()]


class RunFileDumper(yaml.SafeDumper):
    """Mappings a line each, lists on one line."""


def flow_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    """A list as `[a, b]`."""
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


RunFileDumper.add_representer(list, flow_list)


def shown(text: str) -> str:
    """A text on one line of a comment."""
    plain = "".join(sign if sign.isprintable() else "?" for sign in text)
    return plain if len(plain) <= SHOWN else plain[: SHOWN - 1] + "…"
