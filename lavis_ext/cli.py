"""The command line: calls one function a verb, prints its answer, and ends with the documented exit code."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lavis_ext import __version__
from lavis_ext.commands import VERBS, Answer
from lavis_ext.errors import LavisExtError, Problem, UsageError, nearest
from lavis_ext.fetch.safety import redact
from lavis_ext.registry import load_plugin_file

INTERRUPTED = 130
EXIT_CODES = """\
exit codes: 0 done and verified · 1 internal error · 2 usage · 3 config · 4 network · 5 integrity · 6 disk · 7 access
8 partial · 9 owned by another process · 10 unsafe content · 11 training · 75 pre-empted · 130/143 interrupted"""


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are UsageErrors in the house's words."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of exiting."""
        raise UsageError(self.prog, message, f"see `{self.prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        """As argparse; an unknown flag is told with the nearest one."""
        known, rest = super().parse_known_args(args, namespace)
        flags = [flag for action in self._actions for flag in action.option_strings]
        if unknown := [word for word in rest if word.startswith("-")]:
            raise UsageError.of(
                [Problem(self.prog, f"unknown flag '{word}'", nearest(word.split("=")[0], flags)) for word in unknown]
            )
        return known, rest


class StandardError(logging.Handler):
    """Writes records to whatever `sys.stderr` is at the time: progress bars put themselves in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


def build_parser() -> Parser:
    """The parser of all verbs, from the table of commands."""
    parser = Parser(prog="lavis-ext", description=__doc__.split(":")[0] if __doc__ else None, epilog=EXIT_CODES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Vision-language data that fetches, checks and builds itself."
    parser.add_argument("--version", action="version", version=f"lavis-ext {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for name, verb in VERBS.items():
        one = verbs.add_parser(name, help=verb.help, description=verb.help)
        for flags, settings in verb.arguments:
            one.add_argument(*flags, **settings)
        one.add_argument("--configs", metavar="DIR", help="a folder of YAML before those of LAVIS_EXT_CONFIGS")
        told = "a Python file that registers more"
        one.add_argument("--plugin", action="append", default=[], metavar="FILE", help=told)
        one.add_argument("--json", action="store_true", help="objects on standard output, text on standard error")
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and never raises."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = "--json" in words, "--debug" in words
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO, format="%(message)s", handlers=[StandardError()]
    )
    for noisy in ("urllib3", "transformers", "accelerate", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return _run(words, as_json)
    except LavisExtError as error:
        return _fail(error, as_json, debug)
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on", sys.stderr)
        return _end(as_json, INTERRUPTED, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        return _internal(error, as_json, debug)


def _run(words: list[str], as_json: bool) -> int:
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        raise UsageError(f"lavis-ext {words[0]}", "unknown verb", nearest(words[0], VERBS))
    parser = build_parser()
    arguments = parser.parse_args(words)
    if arguments.verb is None:
        parser.print_help()
        return 0
    with _searching(arguments.configs):
        for file in arguments.plugin:
            load_plugin_file(Path(file), f"--plugin {file}")
        answer: Answer = VERBS[arguments.verb].call(arguments)
    if os.environ.get("RANK", "0") == "0":  # of several processes of one run, the first speaks
        _print(answer, as_json)
    return answer.code


@contextmanager
def _searching(folder: str | None) -> Iterator[None]:
    """Let a folder of YAML go before all others, for this command and the processes that it starts."""
    if folder and not Path(folder).is_dir():
        raise UsageError(
            f"--configs {folder}", "is not a folder", "name one that holds datasets/, models/ or projects/"
        )
    before = os.environ.get("LAVIS_EXT_CONFIGS", "")
    if folder:
        os.environ["LAVIS_EXT_CONFIGS"] = os.pathsep.join(filter(None, [str(Path(folder).absolute()), before]))
    try:
        yield
    finally:
        os.environ["LAVIS_EXT_CONFIGS"] = before


def _print(answer: Answer, as_json: bool) -> None:
    for line in answer.lines:
        _say(line, sys.stderr if as_json else sys.stdout)
    if as_json:
        for item in answer.objects:
            print(json.dumps(item, default=str))
        print(json.dumps({"exit_code": answer.code}))
    sys.stdout.flush()


def _say(text: str, stream: Any) -> None:
    """Print what a terminal can show: characters that its encoding lacks are written as escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _fail(error: LavisExtError, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    for problem in error.problems:
        _say(f"lavis-ext: {problem}", sys.stderr)
    return _end(as_json, error.exit_code, *map(str, error.problems))


def _end(as_json: bool, code: int, *errors: str) -> int:
    if as_json:
        print(json.dumps({"exit_code": code, "errors": errors}), flush=True)
    return code


def _internal(error: Exception, as_json: bool, debug: bool) -> int:
    """An error of ours: the traceback goes to a file, one line to the user."""
    log = Path(tempfile.gettempdir()) / f"lavis-ext-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    log.write_text(redact(traceback.format_exc()), encoding="utf-8")
    if debug:
        traceback.print_exc()
    told = redact(f"{type(error).__name__}: {error}")
    text = f"internal error: {told}; the traceback is in {log}, please report it"
    _say(f"lavis-ext: {text}", sys.stderr)
    return _end(as_json, 1, text)
