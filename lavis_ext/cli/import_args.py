"""import-args: a command line of Oscar's scripts becomes a run file; nothing of it is executed."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from lavis_ext.commands.answer import Answer, Argument
from lavis_ext.errors import DiskError, UsageError

IMPORT_ARGS: list[Argument] = [
    (
        ("words",),
        {
            "nargs": "*",
            "metavar": "-- COMMAND",
            "help": "-- python oscar/run_vqa.py --do_train …, or one text in quotes",
        },
    ),
    (("--from",), {"dest": "source", "metavar": "FILE", "help": "a file with the command; - is standard input"}),
    (("--out",), {"metavar": "FILE", "help": "write the run file there, instead of on standard output"}),
]


def import_args(args: Namespace) -> Answer:
    """Turn a command into a run file, on standard output or in a file that is not there yet; exit 2 for a mistake."""
    from lavis_ext.files import disk_errors, write_atomic
    from lavis_ext.import_args import import_command, reasons

    if bool(args.words) == bool(args.source):
        way_out = "give the command after --, or --from FILE"
        raise UsageError("import-args", "wants one command", way_out)
    found = import_command(args.words or [read_source(args.source)])
    told = {"script": found.script, "config": found.tree, "left_out": dict(found.notes)}
    if not args.out:
        return Answer(found.text.splitlines(), [told])
    path = Path(args.out).expanduser()
    if path.exists():
        raise UsageError(str(path), "is there already", "name another file, or remove it")
    with disk_errors(path):
        write_atomic(path, found.text)
    lines = [f"run file: {path}", f"check it: lavis-ext check {path}", *reasons(found.notes)]
    return Answer(lines, [{**told, "file": str(path)}])


def read_source(name: str) -> str:
    """The text of a file, or of standard input; raises DiskError, UsageError."""
    try:
        return sys.stdin.read() if name == "-" else Path(name).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DiskError(name, f"cannot be read: {error.strerror or error}", "check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(name, "is no text in UTF-8", "name a text file with the command") from error
