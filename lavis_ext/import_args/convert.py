"""The whole way: words → command → flags → tree → the text of a run file with what was left out, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lavis_ext.errors import UsageError
from lavis_ext.import_args.draft import Draft
from lavis_ext.import_args.given import read_flags
from lavis_ext.import_args.rules import RULES
from lavis_ext.import_args.table import Flag, load_table
from lavis_ext.import_args.words import Command, find_command

WIDTH = 118
SHOWN = 60


@dataclass(frozen=True)
class Imported:
    """A run file made of a command: its text and tree, and per flag why it is not in it."""

    script: str
    text: str
    tree: dict[str, Any]
    notes: list[tuple[str, str]] = field(default_factory=list)


def import_command(words: Sequence[str]) -> Imported:
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
    return Imported(command.script, text_of(command, draft, tree), tree, draft.notes)


def place_all(draft: Draft) -> None:
    """Every flag of the script to its place, by the table and by its rules."""
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
    """One flag to its key: as given, else by upstream's default, unless that is in a checkpoint that is only tested."""
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
    dataset: dict[str, Any] = {"build_info": {"storage": draft.storage}} if draft.storage else {}
    run = {"task": "distill" if parts["distill"] else script.task, **parts["run"]}
    if parts["distill"]:
        run["distill"] = parts["distill"]
    return {"model": parts["model"], "datasets": {draft.dataset: {**dataset, "args": parts["args"]}}, "run": run}


def text_of(command: Command, draft: Draft, tree: dict[str, Any]) -> str:
    """The file: where it comes from, what is left out and why, then the tree."""
    lines = [f"Made by `lavis-ext import-args` from a command of {command.script}.py."]
    around = [*command.before, *command.after]
    if left := [word for word in around if word not in ("python", "python3")]:
        lines.append(f"What stood around the command is left out: {shown(' '.join(left))}")
    lines += [f"{key}: {why}" for key, why in draft.remarks]
    lines += ["Of its flags these are not in it:"] if draft.notes else []
    lines += [f"  {line}" for line in reasons(draft.notes)]
    header = "".join(f"# {line}\n" for line in lines)
    return header + yaml.dump(tree, Dumper=Layout, sort_keys=False, allow_unicode=True, width=WIDTH)


def reasons(notes: Sequence[tuple[str, str]]) -> list[str]:
    """`--flag, --flag: why`, each reason once."""
    flags: dict[str, list[str]] = {}
    for name, why in notes:
        flags.setdefault(why, []).append(f"--{name}")
    return [f"{', '.join(names)}: {why}" for why, names in flags.items()]


class Layout(yaml.SafeDumper):
    """Mappings a line each, lists on one line."""


def flow_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    """A list as `[a, b]`."""
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


Layout.add_representer(list, flow_list)


def shown(text: str) -> str:
    """A text on one line of a comment."""
    plain = "".join(sign if sign.isprintable() else "?" for sign in text)
    return plain if len(plain) <= SHOWN else plain[: SHOWN - 1] + "…"
