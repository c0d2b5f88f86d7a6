"""Text or words of a shell → the one command of upstream's that they hold, however it was copied."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from lavis_ext.errors import UsageError, nearest
from lavis_ext.import_args.table import load_table

WHERE = "import-args"
SCRIPT = re.compile(r"(run_\w+)\.py$")
MISREAD = re.compile("\u00c2(?=[\u00a0\\s])|[\u00a0\ufeff\u200b]")
"""No-break spaces, also those that were read in the wrong encoding."""
CONTINUED = re.compile(r"\\[ \t]*(?:\r?\n|$)|\r?\n(?=[ \t]*-)")
"""The end of a line that goes on: with a backslash, or before a line of flags."""
OPERATOR = re.compile(r"[();<>|&]+")


@dataclass(frozen=True)
class Command:
    """A script of upstream's, its words, and what stood around them and is left out."""

    script: str
    words: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def find_command(words: Sequence[str]) -> Command:
    """The command in words of a shell, or in one text; raises UsageError for none, several, and other scripts."""
    given = list(words)
    if len(given) == 1 and re.search(r"\s", given[0]):
        return find_in_text(given[0])
    return split_command([MISREAD.sub(" ", word).strip() for word in given if word.strip()])


def find_in_text(text: str) -> Command:
    """The command in a text, such as a page of commands with one of them that is upstream's; raises UsageError."""
    lines = CONTINUED.sub(" ", MISREAD.sub(" ", text)).splitlines()
    found = [words for line in lines if (words := split_line(line)) and any(map(SCRIPT.search, words))]
    if len(found) > 1:
        raise UsageError(WHERE, f"the text holds {len(found)} commands", "give one at a time")
    return split_command(found[0] if found else split_line(" ".join(lines)))


def split_line(line: str) -> list[str]:
    """The words of a line as a shell sees them, operators by themselves; raises UsageError for a quote left open."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split, reader.commenters = True, "#"
    try:
        return list(reader)
    except ValueError as error:
        raise UsageError(WHERE, f"cannot be read: {str(error).lower()}", "close the quotes") from error


def split_command(words: Sequence[str]) -> Command:
    """Words → script, its words and what is around them; raises UsageError where no script is among them."""
    at = next((number for number, word in enumerate(words) if SCRIPT.search(word)), None)
    if at is None:
        way_out = "e.g. lavis-ext import-args -- python oscar/run_vqa.py --do_train …"
        raise UsageError(WHERE, "names no script run_….py", way_out)
    match = SCRIPT.search(words[at])
    script = match[1] if match else ""
    if script not in load_table():
        raise UsageError(
            f"{WHERE} {PurePosixPath(words[at])}", "is no script that is known", nearest(script, load_table())
        )
    rest = list(words[at + 1 :])
    end = next((number for number, word in enumerate(rest) if OPERATOR.fullmatch(word)), len(rest))
    if end < len(rest) and ">" in rest[end] and end and rest[end - 1] in ("1", "2", "&"):
        end -= 1  # the number of a stream, as in 2>&1
    return Command(script, tuple(rest[:end]), tuple(words[:at]), tuple(rest[end:]))
