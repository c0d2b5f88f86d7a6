"""The other verbs: check, doctor, import-args, completion, demo."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lavis_ext.cli.verb import REQUIRED, Answer, Options, cache_root_of, examples, flag
from lavis_ext.common.errors import Problem, UsageError
from lavis_ext.common.files import disk_errors, expanded, not_there, read_errors, write_atomic
from lavis_ext.common.secrets import redact
from lavis_ext.common.wording import columns, counted

LONGEST = 1 << 20
"""Characters of a command at which reading stops."""
MOST_ENTRIES, MOST_FILES = 200_000, 2000
"""Of a folder that `check` looks through: a second."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Flags of `check`."""

    paths: tuple[str, ...] = flag(REQUIRED, positional=True, nargs="+", metavar="PATH")


@examples("check my.yaml", "check configs/")
def check(args: Check) -> Answer:
    """Every mistake of YAML files, or of all below folders, at once; exit code 3 if there is any."""
    from lavis_ext.common.config.check import check_file
    from lavis_ext.datasets.own import data_problems

    files: list[Path] = []
    for path in map(Path, args.paths):
        with read_errors(path):
            if not path.exists():
                raise UsageError(str(path), *not_there(path, otherwise="name YAML files, or folders that hold some"))
        files += yaml_files(path) if path.is_dir() else [path]
    if not files:
        raise UsageError(" ".join(args.paths), "holds no YAML", "name YAML files, or folders that hold some")
    found: list[Problem] = []
    own: dict[str, str] = {}
    for file in files:
        problems = check_file(file)
        if not problems:  # the data is looked at once the YAML can be read
            problems, names = data_problems(file)
            own |= {name: own.get(name) or words_of(name, file) for name in names}
        found += [problem for problem in problems if problem not in found]
    verbs = ", ".join(f"`lavis-ext verify {words} --deep`" for words in own.values() if words)
    looked = f"; own pictures: existence only{verbs and f'; {verbs} decodes them'}" if own else ""
    lines = [*map(str, found), f"{counted(len(files), 'file')}, {counted(len(found), 'problem')}{looked}"]
    return Answer(lines, [asdict(p) for p in found], 3 if found else 0)


def words_of(name: str, file: Path) -> str:
    """How verbs are asked about a data set of one's own: by its card, else by the folder of settings that has it."""
    from lavis_ext.common.config.cards import load_cards, settings_of

    inside = any(one.name == "datasets" for one in file.parents)
    return load_cards().words_of_own(name) or (f"{name} --configs {settings_of(file)}" if inside else "")


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files below a folder, sorted; links and other file systems (`/proc` in `/`) are left out.

    Raises UsageError where so much is below it that it is no folder of settings: `/`, a home, a disk of pictures.
    """
    found: list[Path] = []
    todo, seen, disk = [folder], 0, folder.stat().st_dev
    while todo:
        with suppress(OSError), os.scandir(todo.pop()) as entries:  # one that may not be read holds nothing for us
            for entry in entries:
                seen += 1
                if seen > MOST_ENTRIES or len(found) > MOST_FILES:
                    what = f"holds more than {MOST_ENTRIES:,} files, or {MOST_FILES:,} of YAML"
                    raise UsageError(str(folder), what, "name the folders that hold your settings")
                if fnmatchcase(entry.name, "*.y*ml") and entry.is_file():
                    found.append(Path(entry.path))
                elif entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_dev == disk:
                    todo.append(Path(entry.path))
    return sorted(found)


@examples("doctor")
def doctor(args: Options) -> Answer:
    """What this machine offers and what would get in the way; secrets are shown as set or unset."""
    from lavis_ext.common.config.doctor import examine

    findings = examine(cache_root_of(args))
    lines = columns([[f.name, f.state, f.text] for f in findings])
    return Answer(lines, [asdict(f) for f in findings], 0 if all(f.state != "bad" for f in findings) else 1)


@dataclass(frozen=True, kw_only=True)
class ImportArgs:
    """Flags of `import-args`."""

    words: tuple[str, ...] = flag(
        REQUIRED,
        positional=True,
        nargs="*",
        metavar="-- COMMAND",
        help="-- python oscar/run_vqa.py --do_train …, or one text in quotes",
    )
    source: str | None = flag(None, "--from", metavar="FILE", help="a file with the command; - is standard input")
    out: str | None = flag(None, metavar="FILE", help="write the run file there, instead of on standard output")


@examples(
    "import-args --out run.yaml -- python oscar/run_vqa.py --do_train --data_dir vqa",
    "import-args --from command.txt",
)
def import_args(args: ImportArgs) -> Answer:
    """Turn a command of Oscar's scripts into a run file, on standard output or in a new file; exit 2 for a mistake."""
    from lavis_ext.oscar.import_args import import_command, reasons

    if bool(args.words) == bool(args.source):
        raise UsageError("import-args", "wants one command", "give the command after --, or --from FILE")
    found = import_command([read_source(args.source)] if args.source else list(args.words))
    if redact(found.text) != found.text:
        what = "holds an address with a query, or a password, which a run file keeps for all to read"
        raise UsageError("import-args", what, "fetch it first, and name the file")
    row = {"script": found.script, "config": found.tree, "left_out": dict(found.notes)}
    if not args.out:
        return Answer(found.text.splitlines(), [row])
    path = expanded(args.out)
    if path.exists():
        raise UsageError(str(path), "is there already", "name another file, or remove it")
    with disk_errors(path):
        write_atomic(path, found.text)
    lines = [f"run file: {path}", f"check it: lavis-ext check {path}", *reasons(found.notes)]
    return Answer(lines, [{**row, "file": str(path)}])


def read_source(name: str) -> str:
    """The text of a file, or of standard input; raises DiskError, UsageError."""
    from lavis_ext.common.config.resolve import home_of
    from lavis_ext.common.config.yamlio import shown

    try:
        with read_errors(Path(name)):
            if name == "-":
                text = sys.stdin.read(LONGEST)
            else:
                with home_of(name).open(encoding="utf-8-sig") as file:  # of a device, which has no end, the beginning
                    text = file.read(LONGEST)
    except ValueError as error:
        raise UsageError(shown(name), "is no text in UTF-8", "name a text file with the command") from error
    if len(text) == LONGEST or "\0" in text:
        raise UsageError(name, "is no command", "name a text file with the command")
    return text


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Flags of `completion`."""

    shell: str = flag(REQUIRED, positional=True, metavar="SHELL")


@examples("completion bash > ~/.local/share/bash-completion/completions/lavis-ext", "completion fish | source")
def completion(args: Completion) -> Answer:
    """The completion script of a shell."""
    from lavis_ext.cli import VERBS
    from lavis_ext.cli.verb import completion_script
    from lavis_ext.common.config.cards import load_cards

    cards = load_cards()
    words = {name: [word for flags, _ in verb.arguments() for word in flags] for name, verb in VERBS.items()}
    flags = {name: [word for word in some if word.startswith("--")] for name, some in words.items()}
    flags = {name: [*VERBS[name].actions(), *some] for name, some in flags.items()}
    named = [name for name, some in words.items() if {"names", "name", "target", "patterns"} & set(some)]
    script = completion_script(args.shell, flags, sorted({*cards.families, *cards.names()}), named)
    return Answer(script.splitlines(), [{"script": script}])


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Flags of `demo`."""

    out: Path = flag(Path("demo"), metavar="DIR", help="where the world and the run go (default: demo)")
    seed: int = flag(7, help="another world (default: 7)")
    all: bool = flag(False, help="from a checkout: every other family too, and every study")
    study: str | None = flag(None, metavar="NAME", help="from a checkout: only this study, as a table (blip2, …)")
    seeds: int = flag(3, help="how often a study trains each model (default: 3)")
    jobs: int = flag(2, help="seeds of a study at a time, a core each (default: 2)")


@examples("demo", "demo --out world --seed 3", "demo --study blip2")
def demo(args: Demo) -> Answer:
    """Draw a small world, fetch it, train a tiny BLIP-2 on it, score its captions; or only a study.

    Studies, and the families beyond COCO's form, are a checkout's: UsageError where there is none.
    """
    from lavis_ext.common.config.resolve import from_checkout
    from lavis_ext.demo.tour import run_demo

    how = (args.seeds, args.jobs, args.seed)
    if args.study:
        return Answer(*from_checkout("studies", "--study").run_studies([args.study], args.out, *how))
    studies = from_checkout("studies", "--all") if args.all else None
    result = run_demo(args.out, seed=args.seed)
    answer = Answer(result.lines(), [result.summary()])
    if studies is not None:
        lines, objects, answer.code = studies.run_all(args.out, *how)
        answer.lines += lines
        answer.objects += objects
    return answer
