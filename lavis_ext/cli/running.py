"""The verbs about runs: train, evaluate, browse, runs, chat."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.commands.answer import Answer, Argument, cache_root_of, to_stderr

if TYPE_CHECKING:
    from lavis_ext.schema import Config


def train(args: Namespace) -> Answer:
    """Train as the run file says, then evaluate its test splits."""
    return _run(args, evaluate_only=False)


def evaluate(args: Namespace) -> Answer:
    """Evaluate the test splits of a run file, without training."""
    return _run(args, evaluate_only=True)


def _run(args: Namespace, evaluate_only: bool) -> Answer:
    from lavis_ext.check import check as refuse_mistakes
    from lavis_ext.config import load_config

    options = list(args.options)
    config = load_config(
        args.cfg_path, [*options, "run.evaluate=true"] if evaluate_only and not _alternating(options) else options
    )
    refuse_mistakes(config)
    from lavis_ext.runner import evaluate as run_evaluation
    from lavis_ext.runner import train as run_training

    start = run_evaluation if evaluate_only or config.run.evaluate else run_training
    job = start(config, _known_of(config))
    report = job / "report.html"
    lines = [f"run: {job}", f"report: {report}"] if report.is_file() else [f"run: {job}"]
    return Answer(lines, [{"job": str(job), "report": str(report)}])


def _known_of(config: Config) -> dict[str, Any]:
    """What `prepare` knows of the data of a run: whether any of it is a subset, and the state of each split."""
    from lavis_ext.cards import load_cards
    from lavis_ext.prepare import PrepareOptions, status

    cards = load_cards()
    names = [name for name in config.datasets if name in cards.names()]
    states = status(names, PrepareOptions(cache_root=config.cache_root), cards) if names else []
    return {"subset": any(state.subset for state in states), "splits": [state.as_dict() for state in states]}


def _alternating(options: list[str]) -> bool:
    return bool(options) and "=" not in options[0]


def browse(args: Namespace) -> Answer:
    """Write the HTML page of a run or of a data set; --serve shows it on loopback until it is interrupted."""
    from lavis_ext.browse import serve_page, write_page

    page = write_page(args.target, Path(args.out) if args.out else None, cache_root_of(args), args.seed)
    if args.serve:
        serve_page(page, to_stderr)
    return Answer([f"report: {page}"], [{"report": str(page)}])


def chat(args: Namespace) -> Answer:
    """Caption a picture and answer questions about it."""
    from lavis_ext.cli.chat import run_chat

    return Answer(*run_chat(args))


def runs(args: Namespace) -> Answer:
    """The runs below a folder: how each stands, its best metric, and in what its configuration differs."""
    from lavis_ext.cli.runs import list_runs, run_lines

    found = list_runs(Path(args.folder), args.against)
    return Answer(run_lines(found, args.against), [run.as_dict() for run in found])


BROWSE: list[Argument] = [
    (("target",), {"metavar": "NAME|RUN_DIR", "help": "a data set, a family, or the folder of a run"}),
    (("--out",), {"metavar": "FILE.html", "help": "default: NAME.html here, or report.html of the run"}),
    (
        ("--seed",),
        {"type": int, "metavar": "N", "help": "draw the samples shown by this number, instead of taking them evenly"},
    ),
    (("--serve",), {"action": "store_true", "help": "show it at an address of this machine until Ctrl-C"}),
]
