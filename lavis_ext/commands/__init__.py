"""The verbs of the command line: one function each, from parsed arguments to an Answer; heavy parts load at need."""

from __future__ import annotations

from argparse import Namespace

from lavis_ext.commands.answer import NAMES, OPTIONS, QUIET, RUN_FILE, Answer, Argument, Verb
from lavis_ext.commands.chat import CHAT
from lavis_ext.commands.data import ARGUMENTS, cite, list_datasets, prepare, show, status, verify
from lavis_ext.commands.export import EXPORT, export
from lavis_ext.commands.import_args import IMPORT_ARGS, import_args
from lavis_ext.commands.running import BROWSE, browse, chat, evaluate, runs, train
from lavis_ext.commands.tools import check, demo, doctor, features, volta
from lavis_ext.features.arguments import FEATURES
from lavis_ext.features.volta.arguments import VOLTA


def completion(args: Namespace) -> Answer:
    """The completion script of a shell."""
    from lavis_ext.cards import load_cards
    from lavis_ext.commands.completion import completion_script

    cards = load_cards()
    flags = {verb: [f for words, _ in VERBS[verb].arguments for f in words if f.startswith("--")] for verb in VERBS}
    naming = {"names", "name", "target"}
    named = [name for name, verb in VERBS.items() if any(words[0] in naming for words, _ in verb.arguments)]
    script = completion_script(args.shell, flags, sorted({*cards.families, *cards.names()}), named)
    return Answer(script.splitlines(), [{"script": script}])


VERBS: dict[str, Verb] = {
    "list": Verb("data sets, and what of them lies on this disk", list_datasets, [OPTIONS]),
    "show": Verb("one data set: files, licence, citation", show, [(("name",), {"metavar": "NAME"}), OPTIONS]),
    "check": Verb("every mistake of YAML files", check, [(("paths",), {"nargs": "+", "metavar": "PATH"})]),
    "prepare": Verb("fetch, verify and unpack data sets", prepare, [*ARGUMENTS, QUIET, OPTIONS]),
    "status": Verb("what is on this disk", status, [(("names",), {"nargs": "*", "metavar": "NAME"}), OPTIONS]),
    "verify": Verb(
        "check what is on this disk again",
        verify,
        [
            NAMES,
            (("--deep",), {"action": "store_true", "help": "decode every image"}),
            (("--repair",), {"action": "store_true", "help": "fetch again what fails"}),
            QUIET,
            OPTIONS,
        ],
    ),
    "doctor": Verb("what this machine offers, and what gets in the way", doctor, [OPTIONS]),
    "train": Verb("train as a run file says", train, [RUN_FILE, OPTIONS]),
    "evaluate": Verb("evaluate a run file's test splits", evaluate, [RUN_FILE, OPTIONS]),
    "import-args": Verb("a command line of Oscar's scripts as a run file", import_args, IMPORT_ARGS),
    "features": Verb("region features: convert, join, index, check", features, [*FEATURES, QUIET]),
    "volta": Verb("volta's COCO pipeline: pictures to regions to LMDB", volta, [*VOLTA, QUIET, OPTIONS]),
    "browse": Verb("the HTML page of a data set or a run", browse, [*BROWSE, OPTIONS]),
    "runs": Verb(
        "runs, their best metric, and in what they differ",
        runs,
        [
            (("folder",), {"nargs": "?", "default": "output", "metavar": "FOLDER", "help": "default: output"}),
            (("--against",), {"choices": ("previous", "first"), "default": "previous", "help": "what to compare with"}),
        ],
    ),
    "chat": Verb("captions a picture and answers questions about it", chat, [*CHAT, OPTIONS]),
    "export": Verb("weights for LAVIS, VPGTrans or transformers", export, EXPORT),
    "cite": Verb("the citations of data sets", cite, [NAMES]),
    "completion": Verb("completion for bash, zsh or fish", completion, [(("shell",), {"metavar": "SHELL"})]),
    "demo": Verb(
        "the whole way on a small drawn world",
        demo,
        [
            (
                ("--out",),
                {"default": "demo", "metavar": "DIR", "help": "where the world and the run go (default: demo)"},
            ),
            (("--seed",), {"type": int, "default": 7, "help": "another world (default: 7)"}),
            (("--all",), {"action": "store_true", "help": "prepare every other family too, and run every study"}),
            (
                ("--study",),
                {"metavar": "NAME", "help": "only this study: what models learn, as a table (blip2, …)"},
            ),
            (("--seeds",), {"type": int, "default": 3, "help": "how often a study trains each model (default: 3)"}),
            (("--jobs",), {"type": int, "default": 2, "help": "seeds of a study at a time, a core each (default: 2)"}),
        ],
    ),
}

__all__ = ["VERBS", "Answer", "Argument", "Verb"]
