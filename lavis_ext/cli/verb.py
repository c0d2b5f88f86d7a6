"""What all verbs of the command line share.

A verb is a function that takes a dataclass and returns an `Answer`. Its flags are made from the dataclass, `run` parses
them, calls the function, prints the answer and returns the documented exit code.

Nothing heavy is imported here, nor by the modules that declare verbs: they are read to print help.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from lavis_ext import __version__
from lavis_ext.common.errors import ConfigError, DiskError, LavisExtError, Problem, UsageError, nearest
from lavis_ext.common.files import not_there
from lavis_ext.common.registry import load_plugin_file
from lavis_ext.common.secrets import printable, redact, redact_tree

PROGRAM = "lavis-ext"
OTHER_WORDS = {
    **dict.fromkeys(("download", "fetch", "get", "install", "pull"), "prepare"),
    **dict.fromkeys(("info", "describe"), "show"),
    **dict.fromkeys(("validate", "lint"), "check"),
    **dict.fromkeys(("test", "eval"), "evaluate"),
    **dict.fromkeys(("view", "open", "page", "report"), "browse"),
    **dict.fromkeys(("ls", "search"), "list"),
    **{"settings": "config", "finetune": "train", "version": "--version"},
}
"""What other programs call a verb → ours."""
OTHER_KEYS = {
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), "max_epoch"),
    **dict.fromkeys(("lr", "learning_rate"), "init_lr"),
    **dict.fromkeys(("batch_size", "bs"), "batch_size_train"),
    **dict.fromkeys(("gpu", "gpus", "cuda"), "device"),
    **dict.fromkeys(("out", "output", "save_dir"), "output_dir"),
    **{"resume": "job_id", "name": "job_id", "workers": "num_workers"},
}
"""Flags of other programs → keys of `run:`."""
INTERRUPTED, TERMINATED = 130, 143
EXIT_CODES = """\
exit codes: 0 done and verified · 1 internal error · 2 usage · 3 config · 4 network · 5 integrity · 6 disk · 7 access
8 partial · 9 owned by another process · 10 unsafe content · 11 training · 75 pre-empted · 130/143 interrupted"""
SHELLS = ("bash", "zsh", "fish")

Argument = tuple[tuple[str, ...], dict[str, Any]]
"""Names and settings, as `ArgumentParser.add_argument` takes them."""
REQUIRED: Any = MISSING
"""The default of a flag that has none."""
T = TypeVar("T")


def flag(default: Any, *names: str, positional: bool = False, **settings: Any) -> Any:
    """A dataclass field that the command line fills.

        @dataclass(frozen=True, kw_only=True)
        class Runs:
            folder: str = flag("output", positional=True, nargs="?", metavar="FOLDER", help="default: output")
            against: Literal["previous", "first"] = flag("previous", help="what to compare with")

    `names` replace `--field-name`; the field's type says how a value is read; `settings` go to argparse as they are.
    A field without `flag` is filled, by name, from a flag that every verb has (`json: bool = False`).
    """
    return field(default=default, metadata={"names": names, "positional": positional, "settings": settings})


def examples(*commands: str) -> Callable[[T], T]:
    """Commands, without the name of the program, that the help of a verb shows: `@examples("list coco_*")`."""

    def mark(function: T) -> T:
        function.examples = commands  # type: ignore[attr-defined]
        return function

    return mark


def arguments_of(kind: type) -> list[Argument]:
    """The flags of a dataclass, its own before those of its bases."""
    hints = get_type_hints(kind)
    declared = {one.name: one for base in reversed(kind.__mro__) if is_dataclass(base) for one in fields(base)}
    inherited = {one.name for base in kind.__mro__[1:] if is_dataclass(base) for one in fields(base)}
    order = sorted(declared, key=lambda name: name in inherited)
    return [_argument(declared[name], hints[name]) for name in order if declared[name].metadata]


def _argument(one: Field[Any], hint: Any) -> Argument:
    settings: dict[str, Any] = {}
    default, kinds = one.default, list(_kinds(hint))
    if default not in (MISSING, None) and bool not in kinds:
        settings["default"] = str(default) if isinstance(default, Path) else default
    if choices := [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]:
        settings["choices"] = choices
    if bool in kinds:
        settings["action"] = "store_true"
    elif number := next((kind for kind in kinds if kind in (int, float)), None):
        settings["type"] = number
    settings |= one.metadata["settings"]
    if one.metadata["positional"]:
        return (one.name,), settings
    if default is MISSING:
        settings["required"] = True
    return one.metadata["names"] or (f"--{one.name.replace('_', '-')}",), {"dest": one.name, **settings}


def _kinds(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, UnionType):
        yield from (kind for kind in get_args(hint) if kind is not NoneType)
    else:
        yield hint


def build(kind: type[T], args: Namespace) -> T:
    """The dataclass filled from argparse's namespace; an empty text for an optional Path is None."""
    hints = get_type_hints(kind)
    found = {}
    for one in fields(kind):  # type: ignore[arg-type]
        value = getattr(args, one.name)
        if isinstance(value, str) and Path in _kinds(hint := hints[one.name]):
            value = Path(value) if value or hint is Path else None
        found[one.name] = tuple(value) if isinstance(value, list) else value
    return kind(**found)


def fill(kind: type[T], flags: Any, **more: Any) -> T:
    """A dataclass of the library from the flags of the same names; a flag that is None keeps the field's default."""
    given = {one.name: getattr(flags, one.name, None) for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.items() if value is not None} | more)


@dataclass(frozen=True, kw_only=True)
class Options:
    """For verbs that read a configuration."""

    options: tuple[str, ...] = flag((), nargs="*", metavar="a.b=c", help="settings over those of the YAML")


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """For verbs that move bytes."""

    quiet: bool = flag(False, help="no progress")


@dataclass(frozen=True, kw_only=True)
class Names:
    """For verbs about some data sets."""

    names: tuple[str, ...] = flag(
        REQUIRED, positional=True, nargs="+", metavar="NAME", help="a family (coco) or a data set (coco_caption)"
    )


def env_option(args: Any) -> str | None:
    """The value of `env.cache_root` among `--options`, or None."""
    from lavis_ext.common.config.resolve import parse_options

    env = parse_options(args.options).get("env") or {}
    value = env.get("cache_root") if isinstance(env, dict) else None
    return str(value) if value else None


def cache_root_of(args: Any) -> Path:
    """The cache root of a verb: from `--options`, the environment, the user file or configs/default.yaml."""
    from lavis_ext.common.config.resolve import cache_root

    return cache_root(env_option(args))


def progress_of(args: Any) -> Any:
    """The progress display of a verb that moves bytes; with `--quiet`, one that shows nothing."""
    from lavis_ext.fetch import make_progress

    return make_progress(to_stderr, quiet=args.quiet)


def width_of_terminal() -> int | None:
    """Columns of the terminal that standard output is; None where it is a file or a pipe, whose lines are not cut."""
    try:
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    except (AttributeError, ValueError):  # closed
        return None


def to_stderr(line: str) -> None:
    """Write one line for a person while the verb runs; stdout is for its answer.

    A standard error that takes nothing more (closed, full) does not end the verb.
    """
    with suppress(OSError, ValueError):
        sys.stderr.write(_encodable(printable(line), sys.stderr) + "\n")
        sys.stderr.flush()


def confirm(question: str) -> bool | None:
    """Ask the person at the terminal; None where there is none to ask."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def to_stdout(line: str) -> None:
    """Write one line of the answer at once; raises DiskError where standard output takes nothing (closed, full)."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.write(_encodable(line, sys.stdout) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        _discard_stdout()
        raise DiskError(
            "standard output", f"cannot be written: {getattr(error, 'strerror', None) or error}", "send it elsewhere"
        ) from error


def _encodable(text: str, stream: Any) -> str:
    """The text with escapes for characters that the encoding of a stream lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _discard_stdout() -> None:
    """Let what is still buffered go nowhere: Python flushes it at exit, and would fail again."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass
class Answer:
    """What a verb returns: lines for a person, objects for `--json`, and the exit code."""

    lines: list[str] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    code: int = 0


class Parser(ArgumentParser):
    """An ArgumentParser that raises UsageError, with the nearest flag, instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of exiting."""
        raise UsageError(self.prog, message, f"see `{self.prog} --help`")

    def _check_value(self, action: Any, value: Any) -> None:
        """As argparse; a value that is no choice is named with the nearest one."""
        if action.choices is not None and value not in action.choices:
            what = "/".join(action.option_strings) or action.metavar or action.dest
            raise UsageError(
                f"{self.prog} {what} {value}", "is not known", nearest(str(value), map(str, action.choices))
            )

    def _print_message(self, message: str, file: Any = None) -> None:
        """The help and the version, which argparse lets fail without a word; raises DiskError."""
        to_stdout(message.rstrip("\n"))

    siblings: Mapping[str, Sequence[str]] = {}
    """Flag → the other actions of the same verb that take it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Namespace, list[str]]:  # type: ignore[override]
        """As argparse; an unknown flag is named with the nearest one, or with the action that it is for."""
        known, rest = super().parse_known_args(args, namespace)
        if unknown := [word for word in rest if word.startswith("-") and word.strip("-")]:
            raise UsageError.of(self._unknown(word.partition("=")[0]) for word in unknown)
        if rest:
            setting = "=" in rest[0] and "--options" in self._option_string_actions
            way_out = f"write --options {rest[0]}" if setting else f"see `{self.prog} --help`"
            raise UsageError(self.prog, f"takes no '{rest[0]}'", way_out)
        return known, rest

    def _unknown(self, word: str) -> Problem:
        if word in self.siblings:
            action = self.prog.rpartition(" ")[2]
            return Problem(word, f"is not for `{action}`", f"it is for {', '.join(self.siblings[word])}")
        flags = [flag for action in self._actions for flag in action.option_strings]
        key = word.strip("-").replace("-", "_")
        if "--cfg-path" in flags and ("." in key or key in OTHER_KEYS):
            named = key if "." in key else f"run.{OTHER_KEYS[key]}"
            return Problem(self.prog, f"unknown flag '{word}'", f"settings of a run: --options {named}=VALUE")
        return Problem(self.prog, f"unknown flag '{word}'", nearest(word, flags))


@dataclass(frozen=True)
class Verb:
    """One verb: `place` is `module:name`, imported when it is called or its flags are asked for.

    The name is a function's, whose one argument is the dataclass that the flags fill, or that of a mapping of verbs:
    the actions of this one.
    """

    help: str
    place: str

    def imported(self) -> Any:
        """The function, or the mapping."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)

    def actions(self) -> Mapping[str, Verb]:
        """The verbs below this one; none for most."""
        found = self.imported()
        return found if isinstance(found, Mapping) else {}

    def arguments(self) -> list[Argument]:
        """Its flags, for argparse; of all its actions, each flag once."""
        if actions := self.actions():
            every = [one for action in actions.values() for one in action.arguments()]
            return list({names: (names, settings) for names, settings in every}.values())
        return arguments_of(self._kind())

    def examples(self) -> tuple[str, ...]:
        """Commands for its help."""
        found = self.imported()
        if isinstance(found, Mapping):
            return tuple(one for action in found.values() for one in action.examples()[:1])
        return tuple(getattr(found, "examples", ()))

    def _kind(self) -> Any:
        return next(iter(get_type_hints(self.imported()).values()))

    def call(self, args: Namespace) -> Answer:
        """Call the function with what argparse found."""
        if actions := self.actions():
            return actions[args.action].call(args)
        function: Callable[[Any], Answer] = self.imported()
        return function(build(self._kind(), args))


def build_parser(verbs: Mapping[str, Verb], words: Sequence[str] | None = None) -> Parser:
    """The parser of all verbs.

    With `words`, the command's, only the verb among them gets its flags: the modules of the others are not imported.
    """
    parser = Parser(prog=PROGRAM, description="Vision-language data that fetches, checks and builds itself.")
    parser.formatter_class, parser.epilog = _help_formatter, EXIT_CODES
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    added = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for name, verb in verbs.items():
        one = added.add_parser(name, help=verb.help, description=verb.help)
        if words is not None and name not in words:
            continue
        one.formatter_class, one.epilog = _help_formatter, _shown_examples(verb)
        actions = verb.actions()
        if not actions:
            _add_flags(one, verb)
            continue
        below = one.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser, required=True)
        takers: dict[str, list[str]] = {}
        for label, action in actions.items():
            for flag_name in (word for words_, _ in action.arguments() for word in words_ if word.startswith("-")):
                takers.setdefault(flag_name, []).append(label)
        for label, action in actions.items():
            leaf = below.add_parser(label, help=action.help, description=action.help)
            leaf.formatter_class, leaf.epilog = _help_formatter, _shown_examples(action)
            leaf.siblings = takers
            _add_flags(leaf, action)
    return parser


def _help_formatter(prog: str) -> RawDescriptionHelpFormatter:
    return RawDescriptionHelpFormatter(prog, max_help_position=28)


def _add_flags(parser: Parser, verb: Verb) -> None:
    for flags, settings in verb.arguments():
        parser.add_argument(*flags, **settings)
    parser.add_argument("--configs", metavar="DIR", help="a folder of YAML before those of LAVIS_EXT_CONFIGS")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a Python file that registers more"
    )
    parser.add_argument("--json", action="store_true", help="objects on standard output, text on standard error")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _shown_examples(verb: Verb) -> str:
    lines = [f"  {PROGRAM} {command}" for command in verb.examples()]
    return "\n".join(["examples:", *lines]) if lines else ""


class StandardError(logging.Handler):
    """Writes records to what `sys.stderr` is at the time: a progress bar replaces that stream while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        to_stderr(self.format(record))


def run(verbs: Mapping[str, Verb], words: list[str]) -> int:
    """Run one command; returns its exit code and never raises."""
    with _standard_streams():
        return _run_guarded(verbs, words)


@contextmanager
def _standard_streams() -> Iterator[None]:
    """Give closed standard streams a place: the next file that is opened would take their number, and be written to.

    `sys.stdout` stays None, so that an answer that nobody gets is an error.
    """
    before = sys.stdin, sys.stderr
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            with suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                if opened != number:
                    os.dup2(opened, number)
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123 (for the whole command)
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    try:
        yield
    finally:
        sys.stdin, sys.stderr = before


def _run_guarded(verbs: Mapping[str, Verb], words: list[str]) -> int:
    as_json, debug = "--json" in words, "--debug" in words
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO, format="%(message)s", handlers=[StandardError()]
    )
    for noisy in ("urllib3", "transformers", "accelerate", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        with _terminable():
            return _run(verbs, words, as_json)
    except LavisExtError as error:
        return _report(error, as_json, debug)
    except KeyboardInterrupt as stop:
        to_stderr(f"interrupted; {stop.args[0] if stop.args else 'run the same command again to go on'}")
        return _end(as_json, TERMINATED if isinstance(stop, Terminated) else INTERRUPTED, "interrupted")
    except BrokenPipeError:  # `| head`
        _discard_stdout()
        return 0
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        if isinstance(error, OSError) and isinstance(error.filename, str):  # a file that nobody expected to fail
            disk = DiskError(error.filename, error.strerror or str(error), "check its permissions and the free space")
            return _report(disk, as_json, debug)
        if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
            where = f"the locale's encoding, {sys.getfilesystemencoding()},"
            name = ascii(error.object[error.start : error.end])
            way_out = "set PYTHONUTF8=1, or a locale with UTF-8 (LANG=C.UTF-8)"
            return _report(ConfigError(where, f"has no {name}, which is in a name", way_out), as_json, debug)
        return _report_internal(error, as_json, debug)


class Terminated(KeyboardInterrupt):
    """SIGTERM: what is done for Ctrl-C is done, then the command ends with 143."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, with partial files recorded and owner files gone.

    A training has a handler of its own while it runs. An error that others made of a stop, as the set-up of a C module
    does in the middle of an import, is that stop; so is one in an import after a stop that a library kept to itself,
    which leaves half a module.
    """
    stops: list[KeyboardInterrupt] = []

    def stop(number: int, _: object) -> NoReturn:
        stops.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise stops[-1]

    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    main = threading.current_thread() is threading.main_thread()
    ours = {number: default for number, default in defaults.items() if main and signal.getsignal(number) == default}
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    except Exception as error:
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, KeyboardInterrupt):
            behind = behind.__cause__ or behind.__context__
        importing = any(frame.f_code.co_name == "<module>" for frame, _ in traceback.walk_tb(error.__traceback__))
        if behind is None and stops and importing:
            behind = stops[-1]
        if behind is None:
            raise
        raise behind from None
    finally:
        for number, default in ours.items():
            signal.signal(number, default)


def _run(verbs: Mapping[str, Verb], words: list[str], as_json: bool) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    words = _verb_first(verbs, words)
    if words and not words[0].startswith("-") and words[0] not in verbs:
        other = OTHER_WORDS.get(words[0])
        raise UsageError(
            f"{PROGRAM} {words[0]}", "unknown verb", f"did you mean '{other}'?" if other else nearest(words[0], verbs)
        )
    parser = build_parser({words[0]: verbs[words[0]]} if words and words[0] in verbs else verbs, words)
    arguments = parser.parse_args(words)
    if arguments.verb is None:
        parser.print_help()
        return 0
    with configs_first(arguments.configs or folder_beside(arguments)):
        for file in arguments.plugin:
            load_plugin_file(Path(file), f"--plugin {file}")
        answer = verbs[arguments.verb].call(arguments)
    if os.environ.get("RANK", "0") == "0":  # of the processes of one run, only rank 0 prints
        _print(answer, as_json)
    return answer.code


def _verb_first(verbs: Mapping[str, Verb], words: list[str]) -> list[str]:
    """The command with the verb first and an action right behind it, where flags stand before them."""
    if words and words[0].startswith("-"):
        place = next((number for number, word in enumerate(words) if word in verbs), 0)
        words = [words[place], *words[:place], *words[place + 1 :]]
    verb = verbs.get(words[0]) if words else None
    if verb is None or not words[1:] or not words[1].startswith("-"):
        return words
    actions = verb.actions()
    found = next((number for number, word in enumerate(words) if word in actions), None)
    return words if found is None else [words[0], words[found], *words[1:found], *words[found + 1 :]]


def folder_beside(arguments: Any) -> str | None:
    """The folder of YAML in which a run file lies, or which is checked: it is searched without being named again."""
    named = (getattr(arguments, one, None) for one in ("cfg_path", "file"))
    for name in (*named, *(getattr(arguments, "paths", None) or ())):
        folder = None if name is None else Path(name) if os.path.isdir(name) else Path(name).parent  # noqa: PTH112
        if folder is not None and next(folder.glob("datasets/*/defaults.yaml"), None) is not None:
            return str(folder)
    return None


@contextmanager
def configs_first(folder: str | None) -> Iterator[None]:
    """Search a folder of YAML before all others, in this process and in those that it starts."""
    if folder and not os.path.isdir(folder):  # noqa: PTH112 - of any text, without an error
        way_out = "name one that holds datasets/, models/ or projects/"
        if Path(folder).is_file():
            way_out += f"; a run file is named alone, or by --cfg-path {folder}"
            raise UsageError(f"--configs {folder}", "is not a folder", way_out)
        raise UsageError(f"--configs {folder}", *not_there(folder, "folder", otherwise=way_out))
    before = os.environ.get("LAVIS_EXT_CONFIGS", "")
    if folder:
        os.environ["LAVIS_EXT_CONFIGS"] = os.pathsep.join(filter(None, [str(Path(folder).absolute()), before]))
    for root in filter(None, os.environ.get("LAVIS_EXT_CONFIGS", "").split(os.pathsep)):
        known, place = ("datasets", "models", "projects"), Path(root)
        with suppress(RuntimeError):  # of an unknown user
            place = place.expanduser()
        if place.is_dir() and not any((place / one).is_dir() for one in known) and not any(place.glob("*.y*ml")):
            to_stderr(f"LAVIS_EXT_CONFIGS: {root} holds no datasets/, models/ or projects/: nothing is read from it")
    try:
        yield
    finally:
        os.environ["LAVIS_EXT_CONFIGS"] = before


def _print(answer: Answer, as_json: bool) -> None:
    for line in answer.lines:
        if as_json:
            to_stderr(line)
        else:
            to_stdout(printable(line))
    if as_json:
        for item in answer.objects:
            to_stdout(json.dumps(redact_tree(item), default=lambda value: redact(str(value))))
        to_stdout(json.dumps({"exit_code": answer.code}))


def _report(error: LavisExtError, as_json: bool, debug: bool) -> int:
    if debug:
        to_stderr(traceback.format_exc())
    for problem in error.problems:
        to_stderr(f"{problem}" if problem.where.startswith(PROGRAM) else f"{PROGRAM}: {problem}")
    return _end(as_json, error.exit_code, *map(str, error.problems))


def _end(as_json: bool, code: int, *errors: str) -> int:
    if as_json:
        with suppress(DiskError, BrokenPipeError):
            to_stdout(json.dumps({"exit_code": code, "errors": errors}))
    return code


def _report_internal(error: Exception, as_json: bool, debug: bool) -> int:
    """Report a defect of the package: the traceback goes to a file, one line to the user."""
    import tempfile  # it imports random and hashlib, which no command needs that ends well

    log = Path(tempfile.gettempdir()) / f"lavis-ext-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    text = redact(traceback.format_exc())
    try:
        log.write_text(text, encoding="utf-8", errors="backslashreplace")
        place = f"the traceback is in {log}, please report it"
    except OSError:
        place = "its traceback could not be written; --debug shows it"
    if debug:
        to_stderr(text)
    text = redact(f"internal error: {type(error).__name__}: {error}; {place}")
    to_stderr(f"lavis-ext: {text}")
    return _end(as_json, 1, text)


_BASH = """\
_lavis_ext() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then words="{verbs}"; else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac; fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _lavis_ext lavis-ext
"""


def completion_script(
    shell: str, flags: Mapping[str, Sequence[str]], names: Sequence[str], named: Sequence[str]
) -> str:
    """The completion script of one shell; raises UsageError for an unknown shell.

    `flags` are those of each verb, `names` the data sets, `named` the verbs that take such names.
    """
    if shell not in SHELLS:
        raise UsageError(shell, "no such shell", nearest(shell, SHELLS))
    words = {verb: [*given, *(names if verb in named else [])] for verb, given in flags.items()}
    if shell == "fish":
        return _fish(words)
    cases = "\n".join(f'        {verb}) words="{" ".join(given)}" ;;' for verb, given in words.items())
    script = _BASH.format(verbs=" ".join(words), cases=cases)
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"


def _fish(words: Mapping[str, Sequence[str]]) -> str:
    lines = [f"complete -c lavis-ext -n __fish_use_subcommand -f -a '{' '.join(words)}'"]
    lines += [
        f"complete -c lavis-ext -n '__fish_seen_subcommand_from {verb}' -a '{' '.join(given)}'"
        for verb, given in words.items()
    ]
    return "\n".join(lines) + "\n"
