"""The command in what a user pastes: lines joined as documents break them, the script, its words, what is around."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from lavis_ext.common.errors import UsageError, nearest
from lavis_ext.oscar.import_table import load_table

WHERE = "import-args"
SCRIPT = re.compile(r"(run_\w+)\.py$")
MISREAD = re.compile("\u00c2(?=[\u00a0\\s])|[\u00a0\ufeff\u200b]")
"""No-break spaces, also those that were read in the wrong encoding."""
COMMENT = re.compile(r"(?:^|\s)#[^'\"]*$")
FLAG = re.compile(r"\s*--?[A-Za-z]")
STANDS_FOR = re.compile(r"(?<!['\"])<[A-Za-z][^<>\n]*[^<>\s]>")
"""`<your output folder>`, which is for the reader to fill in and no redirection."""
OPERATOR = re.compile(r"[();<>|&]+")


@dataclass(frozen=True)
class UpstreamCommand:
    """A script of upstream's, its words, and the words before and after them, which are left out."""

    script: str
    words: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def find_command(words: Sequence[str]) -> UpstreamCommand:
    """The command in words of a shell, or in one text; raises UsageError for none, several, and other scripts."""
    given = list(words)
    if len(given) == 1 and re.search(r"\s", given[0]):
        return find_in_text(given[0])
    return split_command([MISREAD.sub(" ", word).strip() for word in given if word.strip()])


def find_in_text(text: str) -> UpstreamCommand:
    """The command in a text, such as a page of commands with one of them that is upstream's; raises UsageError."""
    lines = joined_lines(STANDS_FOR.sub(lambda found: f"'{found[0]}'", MISREAD.sub(" ", text)))
    found = [words for line in lines if (words := split_line(line)) and any(map(SCRIPT.search, words))]
    if len(found) > 1:
        raise UsageError(WHERE, f"the text holds {len(found)} commands", "give one at a time")
    return split_command(found[0] if found else split_line(" ".join(lines)))


def joined_lines(text: str) -> list[str]:
    """The lines of a text, those of one command joined: the documents also break between a flag and its value."""
    found: list[str] = []
    indent = 0  # of the first line of the command at the end of `found`
    for line in text.splitlines():
        plain = COMMENT.sub("", line).rstrip()
        margin = len(plain) - len(plain.lstrip())
        while found and not found[-1] and re.match(FLAG, plain):
            found.pop()  # a gap in a command, as pages have it
        before = found[-1] if found else ""
        backslash = before.endswith("\\")
        if found and (backslash or (plain.strip() and goes_on(before, plain, margin > indent))):
            found[-1] = f"{before.removesuffix(chr(92))} {plain.lstrip()}"
        else:
            found.append(plain)
            indent = margin
    return [line.removesuffix("\\") for line in found]


def goes_on(before: str, line: str, deeper: bool) -> bool:
    """Whether a line belongs to the command of the line `before`, without a backslash there.

    It begins with a flag, or `before` ends with one that has no value yet, or it stands deeper than the command began.
    """
    if re.match(FLAG, line):
        return True
    if not SCRIPT.search(before.split(" -")[0]) or any(SCRIPT.search(word) for word in line.split()):
        return False
    last = before.split()[-1]
    flags = [
        script.flags[last[2:]] for script in load_table().values() if last[:2] == "--" and last[2:] in script.flags
    ]
    return deeper or any(flag.kind != "switch" for flag in flags)


def split_line(line: str) -> list[str]:
    """The words of a line as a shell sees them, operators by themselves; raises UsageError for a quote left open."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split, reader.commenters = True, "#"
    try:
        return list(reader)
    except ValueError as error:
        raise UsageError(WHERE, f"cannot be read: {str(error).lower()}", "close the quotes") from error


def split_command(words: Sequence[str]) -> UpstreamCommand:
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
    return UpstreamCommand(script, tuple(rest[:end]), tuple(words[:at]), tuple(rest[end:]))
