"""The fenced blocks of README and docs, and a small shell that runs their commands in this process."""

from __future__ import annotations

import configparser
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lavis_ext.cli import VERBS, main
from lavis_ext.cli.verb import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "prepare_data" / "README.md",
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not run|run by|exit \d+): (?P<reason>[^\n]*?) -->\n)?"
    r"```(?P<language>[^\n]*)\n(?P<text>.*?)^```[ ]*$",
    flags=re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"bash", "python", "yaml", "ini", "text"}
SHELL_WORDS = {"cp", "rm", "mkdir", "cat", "cd", "git"}
"""Ordinary commands that a page may show between ours."""
SIZES = ["run.max_epoch=null", "run.max_iters=2", "run.iters_per_inner_epoch=2"]
SIZES += ["run.batch_size_train=4", "run.batch_size_eval=8", "run.num_workers=0", "run.device=cpu"]
SIZES += ["run.tensorboard=False", "run.warmup_steps=0", "run.save_steps=null"]
"""What the tests add to a run: sizes only."""


@dataclass(frozen=True)
class Block:
    """One fenced block, with what the comment above it says."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    reason: str = ""

    @property
    def place(self) -> str:
        """`docs/start.md:12`."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether it is code, and runs here."""
        return self.language != "text" and self.mark in ("", "exit")


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        mark = (match["mark"] or "").partition(" ")[0] if "exit" in (match["mark"] or "") else match["mark"] or ""
        reason = match["mark"] if mark == "exit" else match["reason"] or ""
        found.append(Block(page, line, match["language"].strip(), match["text"], mark, reason))
    return found


def commands_of(text: str) -> Iterator[list[str]]:
    """The commands of a shell block as words: comments left out, continued lines joined, `;`, `&&` and `|` divide."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in lexer:
            if word in (";", "&&", "|", "&"):
                yield words
                words = []
            else:
                words.append(word)
        yield words


class Shell:
    """Runs commands in the current folder, which is like a checkout; ours in this process."""

    def __init__(self) -> None:
        self.ran = 0

    def run(self, block: Block) -> None:
        """Run a block; fails at the first command with another exit code than its mark names."""
        wanted = int(block.reason.split()[1]) if block.mark == "exit" else 0
        for words in commands_of(block.text):
            if not words:
                continue
            found = [os.path.expandvars(word) for word in words]
            code = self.command(found)
            assert code == wanted, f"{block.place}: `{shlex.join(found)}` ended with {code}"
            self.ran += 1

    def command(self, words: Sequence[str]) -> int:
        """Run one command; returns its exit code."""
        words = list(words)
        if words[0] == "export":
            words.pop(0)
        before = dict(os.environ)
        while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0], flags=re.DOTALL):
            name, _, value = words.pop(0).partition("=")
            os.environ[name] = value
        if not words:
            return 0
        try:
            return self.program(words)
        finally:
            if words[0] != "cd":  # what stands before a command is for that command
                os.environ.clear()
                os.environ.update(before)

    def program(self, words: list[str]) -> int:
        """Run one command, without what is set before it."""
        target = None
        if ">" in words:
            target, words = words[words.index(">") + 1], words[: words.index(">")]
        if words[0] in ("python", "python3"):
            return self.python(words[1:])
        if words[0] == "lavis-ext":
            return ours(words[1:], target)
        if words[0] == "pip":
            return require_extras(words[1:])
        if words[0] == "cd":
            os.chdir(words[1])
            os.environ["PWD"] = str(Path.cwd())
            return 0
        assert words[0] in SHELL_WORDS, f"`{words[0]}` is not ours: mark the block with `<!-- not run: why -->`"
        return subprocess.run(words, check=False).returncode

    def python(self, words: list[str]) -> int:
        """`python -m lavis_ext …`, `python -m pip …`, or a script of the checkout."""
        if words[:2] == ["-m", "pip"]:
            return require_extras(words[2:])
        if words[:2] == ["-m", "lavis_ext"]:
            return ours(words[2:])
        assert words[0].endswith(".py"), f"`python {words[0]}`: mark the block with `<!-- not run: why -->`"
        before = sys.argv, list(sys.path)
        sys.argv = [words[0], *sized(words[0], words[1:])]
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0
        finally:
            sys.argv, sys.path[:] = before
        return 0


def ours(words: list[str], target: str | None = None) -> int:
    """Run a verb."""
    if target is None:
        return main(sized(words[0] if words else "", words))
    with Path(target).open("w", encoding="utf-8") as file:
        before, sys.stdout = sys.stdout, file
        try:
            return main(words)
        finally:
            sys.stdout = before


def sized(verb: str, words: list[str]) -> list[str]:
    """The words of a run, made small."""
    if Path(verb).stem not in ("train", "evaluate"):
        return words
    return [*words, *SIZES] if "--options" in words else [*words, "--options", *SIZES]


def require_extras(words: list[str]) -> int:
    """Fail unless every extra of ours that a `pip install` names is in setup.cfg. Nothing is installed."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    known = set(setup["options.extras_require"])
    for word in words:
        if match := re.fullmatch(r"(?:\.|lavis_ext)\[(.*)\]", word):
            assert set(match[1].split(",")) <= known, f"no extra {match[1]}; known: {', '.join(sorted(known))}"
    return 0


def require_parsed(block: Block) -> int:
    """Fail unless our commands in a block that is not run have verbs and flags that exist, and files that are there."""
    count = 0
    for words in commands_of(re.sub(r"\$[({][^)}]*[)}]", "VALUE", block.text)):
        if "lavis-ext" in words:
            build_parser(VERBS).parse_args(words[words.index("lavis-ext") + 1 :])
            count += 1
        if "pip" in words:
            count += 1
            require_extras(words)
        for word in words:
            if re.match(r"(configs|prepare_data|tests|docs|benchmarks)/[\w./-]+\.(yaml|py|sh|md)$", word):
                count += 1
                assert (ROOT / word).is_file(), f"{block.place}: no {word}"
    return count


def lay_out(folder: Path) -> None:
    """Make a folder look like a checkout."""
    folder.mkdir()
    for name in ("configs", "prepare_data", "docs", "train.py", "evaluate.py", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
