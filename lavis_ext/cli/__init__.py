"""The command line. `VERBS` names the function of each verb; its flags are the dataclass that the function takes.

A verb's module is imported when the verb is called or its help is shown; heavy imports are inside the functions.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lavis_ext.cli.verb import Verb, run

VERBS: dict[str, Verb] = {
    "list": Verb("data sets, and what of them lies on this disk", "lavis_ext.cli.data:list_datasets"),
    "show": Verb("one data set: files, licence, citation", "lavis_ext.cli.data:show"),
    "new": Verb("the YAMLs of a data set that you have", "lavis_ext.cli.new:new"),
    "check": Verb("every mistake of YAML files", "lavis_ext.cli.tools:check"),
    "config": Verb("what settings come to, and where each value comes from", "lavis_ext.cli.config:ACTIONS"),
    "prepare": Verb("fetch, verify and unpack data sets", "lavis_ext.cli.data:prepare"),
    "status": Verb("what is on this disk", "lavis_ext.cli.data:status"),
    "verify": Verb("check what is on this disk again", "lavis_ext.cli.data:verify"),
    "checksum": Verb("what sources offer now, and a lock file of it", "lavis_ext.cli.lock:checksum"),
    "pack": Verb("a data set as tar shards, on a disk or in a bucket", "lavis_ext.cli.pack:pack"),
    "bench": Verb("how fast your data loads here, and what to change", "lavis_ext.cli.bench:bench"),
    "doctor": Verb("what this machine offers, and what gets in the way", "lavis_ext.cli.tools:doctor"),
    "train": Verb("train as a run file says", "lavis_ext.cli.runs:train"),
    "evaluate": Verb("evaluate a run file's test splits", "lavis_ext.cli.runs:evaluate"),
    "import-args": Verb("a command line of Oscar's scripts as a run file", "lavis_ext.cli.tools:import_args"),
    "features": Verb("region features: convert, join, index, check", "lavis_ext.cli.features:ACTIONS"),
    "volta": Verb("volta's COCO pipeline: pictures to regions to LMDB", "lavis_ext.cli.volta:STEPS"),
    "browse": Verb("the HTML page of data sets, your own data or runs", "lavis_ext.cli.runs:browse"),
    "watch": Verb("a run that goes on, in the terminal", "lavis_ext.cli.watch:watch"),
    "runs": Verb("runs, their best metric, and in what they differ", "lavis_ext.cli.runs:runs"),
    "chat": Verb("captions a picture and answers questions about it", "lavis_ext.cli.chat:chat"),
    "export": Verb("weights for LAVIS, VPGTrans or transformers", "lavis_ext.cli.runs:export"),
    "cite": Verb("the citations of data sets", "lavis_ext.cli.data:cite"),
    "completion": Verb("completion for bash, zsh or fish", "lavis_ext.cli.tools:completion"),
    "demo": Verb("the whole way on a small drawn world", "lavis_ext.cli.tools:demo"),
}

__all__ = ["VERBS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and never raises."""
    if sys.getfilesystemencoding() != "utf-8":
        _restart_in_utf8(argv is None)
    _end_without_collecting()
    return run(VERBS, list(sys.argv[1:] if argv is None else argv))


@cache
def _end_without_collecting() -> None:
    """Let Python not look for cycles as the process ends, which takes a sixth of what `list` does.

    Where torch is loaded it does: what a training or its libraries hold is closed as ever.
    """
    atexit.register(lambda: None if "torch" in sys.modules else gc.freeze())


def _restart_in_utf8(alone: bool) -> None:
    """Start this program again so that names of files are UTF-8.

    In LANG=C, with Python's own remedies switched off, no name outside ASCII can be opened. Where a program of others'
    calls us nothing is done, and such a name is an error.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    ours = alone or (script is not None and Path(script).absolute().is_relative_to(Path(__file__).parents[2]))
    if ours and os.environ.get("PYTHONUTF8") != "1":
        words = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, words, {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606 - this very program
