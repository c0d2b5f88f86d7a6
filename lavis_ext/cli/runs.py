"""The verbs about runs: train, evaluate, browse, export, and the table of `runs`."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lavis_ext.browse.run_report import (
    Record,
    best_record,
    curve_records,
    duration,
    headline,
    label,
    number,
    read_run,
    result_file,
    sized,
)
from lavis_ext.browse.runs_page import RunSummary, change_lines, list_runs
from lavis_ext.cli.chat import find_weights, read_setup
from lavis_ext.cli.verb import (
    REQUIRED,
    Answer,
    Options,
    cache_root_of,
    examples,
    flag,
    folder_beside,
    to_stderr,
    to_stdout,
)
from lavis_ext.common.config.decode import read_sections
from lavis_ext.common.config.resolve import find_config, option_items
from lavis_ext.common.config.schema import OpenModelConfig
from lavis_ext.common.errors import PartialError, UsageError
from lavis_ext.common.files import expanded, not_there
from lavis_ext.common.secrets import printable
from lavis_ext.common.wording import columns, displayed, measured, shorten

if TYPE_CHECKING:
    from lavis_ext.common.config.schema import Config, ModelConfig

WIDTH = 60


@dataclass(frozen=True, kw_only=True)
class Run(Options):
    """Flags of `train` and `evaluate`."""

    file: str | None = flag(None, positional=True, nargs="?", metavar="FILE", help="the run file")
    cfg_path: str | None = flag(None, metavar="F", help="the run file, in LAVIS' manner")
    json: bool = False

    @property
    def path(self) -> str:
        """The run file; raises UsageError where none is named, or two."""
        if self.file and self.cfg_path:
            raise UsageError(self.file, f"and --cfg-path {self.cfg_path} are two run files", "name one")
        if not (found := self.file or self.cfg_path):
            raise UsageError("the run file", "is not named", "lavis-ext train FILE, or --cfg-path FILE")
        return found


@examples(
    "train run.yaml",
    "train run.yaml --options run.max_epoch=5 run.batch_size_train=8",
    "train run.yaml --json",
)
def train(args: Run) -> Answer:
    """Train as the run file says, then evaluate its test splits."""
    return _start(args, evaluate_only=False)


@examples("evaluate run.yaml", "evaluate run.yaml --options model.finetuned=output/my-run run.test_splits=[test]")
def evaluate(args: Run) -> Answer:
    """Evaluate the test splits of a run file, without training."""
    return _start(args, evaluate_only=True)


def _start(args: Run, evaluate_only: bool) -> Answer:
    from lavis_ext.common.config.check import load_checked

    options = list(args.options)
    alternating = bool(options) and "=" not in options[0]  # LAVIS' `a.b c`, which nothing can be added to
    more = ["run.evaluate=true"] if evaluate_only and not alternating else []
    config = load_checked(args.path, [*options, *more])
    if config.model is not None and os.environ.get("RANK", "0") == "0":  # importing torch takes seconds
        what = f"{config.run.task} with {config.model.arch}/{config.model.model_type} on {', '.join(config.datasets)}"
        to_stderr(f"{config.path}: {what}; loading")
    from lavis_ext.runners import evaluate as run_evaluation
    from lavis_ext.runners import train as run_training
    from lavis_ext.runners.display import Stream, closing_lines, display_for

    start = run_evaluation if evaluate_only or config.run.evaluate else run_training
    display = Stream(write_record) if args.json else display_for()
    job = start(config, _known_of(config), display=display)
    lines = closing_lines(job)
    if start is run_training and not args.json and os.environ.get("RANK", "0") == "0":
        lines += [*best_lines(job), *next_commands(args, config, job)]
    return Answer(lines, [{"job": str(job), "report": str(job / "report.html")}])


def best_lines(job: Path) -> list[str]:
    """`best: val CIDEr 0.61 in epoch 6 of 12 (result/val_epoch5.json)`, and the samples of a small split."""
    run = read_run(job)
    record = best_record(run)
    if not record:
        return []
    name, value = headline(record["metrics"])
    last = max((int(number(one.get("epoch", 0))) + 1 for one in curve_records(run)), default=1)
    file = result_file(run, record)
    found = f"{record.get('split')}{sized(run, record)} {name} {measured(value)} in {label(record)} of {last}"
    return [printable(f"best: {found}{f', {file}' if file else ''}", kept="")]


def next_commands(args: Run, config: Config, job: Path) -> list[str]:
    """The commands that evaluate what a training has learnt and talk to it, where they can be given."""
    from lavis_ext.common.registry import models
    from lavis_ext.models.weights import own_checkpoint

    model, run = config.model, read_run(job)
    if model is None or isinstance(model, OpenModelConfig) or own_checkpoint(job) is None:
        return []
    given, shown, found = list(args.options), str(shown_path(job)), []
    file, first = ["--cfg-path", args.path], os.environ.get("LAVIS_EXT_CONFIGS", "").split(os.pathsep)[0]
    if first and Path(first) != Path(folder_beside(args) or "").absolute():
        file += ["--configs", first]  # as --configs named it, which nothing else would find
    written = read_sections(find_config(args.path))[0].get("model")
    named = {"model.finetuned": shown}
    if isinstance(written, Mapping) and "load_finetuned" in written:
        named = {"model.load_finetuned": "true", **named}
    alternating = bool(given) and "=" not in given[0]  # LAVIS' `a.b c`
    kept = [one for one in option_items(given) if one[0] not in (*named, "run.job_id", "run.resume_ckpt_path")]
    options = [*kept, *named.items()]
    words = [word for pair in options for word in (pair if alternating else ["=".join(pair)])]
    if run.evaluations and (config.run.test_splits or config.run.valid_splits):
        found.append(f"evaluate it: {shlex.join(['lavis-ext', 'evaluate', *file, '--options', *words])}")
    if all(hasattr(models.get(model.arch), name) for name in ("generate", "predict_answers")):
        words = [word for pair in kept for word in (pair if alternating else ["=".join(pair)])]
        said = [*file, "--checkpoint", shown, "--image", "PICTURE", *(["--options", *words] if words else [])]
        found.append(f"talk to it: {shlex.join(['lavis-ext', 'chat', *said])}")
    return [printable(line, kept="") for line in found]


def shown_path(folder: Path) -> Path:
    """A folder as it is named from here."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def write_record(record: Record) -> None:
    """One object of a run on standard output, at once."""
    to_stdout(json.dumps(record, ensure_ascii=False, default=str))


def _known_of(config: Config) -> dict[str, Any]:
    """What `prepare` knows of the data of a run: whether any of it is a subset, and the state of each split."""
    from lavis_ext.common.config.cards import load_cards
    from lavis_ext.prepare import PrepareOptions, status

    cards = load_cards()
    names = [name for name in config.datasets if name in cards.names()]
    states = status(names, PrepareOptions(cache_root=config.cache_root), cards) if names else []
    return {"subset": any(state.subset for state in states), "splits": [state.as_dict() for state in states]}


@dataclass(frozen=True, kw_only=True)
class Browse(Options):
    """Flags of `browse`."""

    target: tuple[str, ...] = flag(
        REQUIRED,
        positional=True,
        nargs="+",
        metavar="NAME|PATH|RUN_DIR|STORE",
        help="data sets, families, your own data (a file or folder); runs, or a folder of runs; a feature store",
    )
    out: Path | None = flag(
        None, metavar="FILE.html", help="default: NAME.html or runs.html here, or report.html of the run"
    )
    seed: int | None = flag(
        None, metavar="N", help="draw the samples shown by this number, instead of taking them evenly"
    )
    images: Path | None = flag(None, metavar="DIR", help="where the pictures of a feature store are (default: COCO's)")
    serve: bool = flag(False, help="show all of it at an address of this machine until Ctrl-C; runs as they go on")
    port: int | None = flag(None, metavar="N", help="the port of --serve (default: any free one)")


@examples("browse coco_caption --serve", "browse output/run-1 output/run-2", "browse oscar.store --out regions.html")
def browse(args: Browse) -> Answer:
    """Write the HTML page of data sets, runs or a feature store; --serve shows all of it on loopback until Ctrl-C.

    With exit code 8 where a split that is declared is not on the page.
    """
    from lavis_ext.browse import find_pages
    from lavis_ext.browse.serve import PageApp, serve

    if args.port is not None and not args.serve:
        raise UsageError("--port", "is the port of --serve", "give both, or none")
    pages = find_pages(args.target, cache_root_of(args), args.seed, args.images)
    app = pages.app() if args.serve and args.out is None else None
    if app is not None:
        serve(app, to_stderr, args.port or 0)
    page, absent = pages.write(args.out)
    if args.serve:
        serve(PageApp(page), to_stderr, args.port or 0)
    lines = [*(f"not on the page: {line}" for line in absent), f"report: {page}"]
    row = {"report": str(page), **({"absent": absent} if absent else {})}
    return Answer(lines, [row], PartialError.exit_code if absent else 0)


@dataclass(frozen=True, kw_only=True)
class Export(Options):
    """Flags of `export`."""

    checkpoint: str = flag(
        REQUIRED, positional=True, metavar="CHECKPOINT", help="a checkpoint, or the folder of a run (its best)"
    )
    out: str = flag(
        REQUIRED, positional=True, metavar="OUT", help="OUT.pth, or a folder for --form transformers and oscar"
    )
    form: Literal["lavis", "vpgtrans", "transformers", "oscar"] = flag("lavis", help="whose form (default: lavis)")
    cfg_path: str | None = flag(
        None, metavar="F", help="the run file or the YAML of the model; default: that of the run"
    )


@examples("export output/my-run weights.pth", "export output/my-run folder --form transformers")
def export(args: Export) -> Answer:
    """Write the weights of a checkpoint under others' names, and list what was written."""
    checkpoint, out = find_weights(args.checkpoint), expanded(args.out)
    if out.exists():
        raise UsageError(str(out), "is there already", "name another place, or remove it")
    if not out.parent.is_dir():
        raise UsageError(str(out.parent), *not_there(out.parent, "folder", otherwise="make it first"))
    config = model_of(checkpoint, args.cfg_path, list(args.options))
    if args.form == "transformers":
        from lavis_ext.models.export import export_transformers

        done = export_transformers(config, out)
    elif args.form == "oscar":
        from lavis_ext.oscar.convert import export_oscar

        done = export_oscar(config, out)
    else:
        from lavis_ext.models.export import export_upstream

        done = export_upstream(str(checkpoint), out, config.arch, args.form)
    rows = [[name, f"{tensors:,}", f"{numbers:,}"] for name, (tensors, numbers) in sorted(done.parts.items())]
    lines = columns([["part", "tensors", "numbers"], *rows])
    lines += [f"left out, {done.form} has no place for them: {', '.join(done.left)}"] if done.left else []
    row = {"out": str(out), "form": done.form, "arch": config.arch, "tensors": done.shapes, "left": done.left}
    return Answer([*lines, f"{done.form}: {out}"], [row])


def model_of(checkpoint: Path, path: str | None, options: list[str]) -> ModelConfig:
    """The model section that goes with a checkpoint, with the checkpoint as its weights; raises UsageError."""
    beside = checkpoint.parent / "config.yaml"
    if path is None and not beside.is_file():
        what = "there is no config.yaml of its run beside it"
        raise UsageError(str(checkpoint), what, "name the run file or the YAML of the model with --cfg-path")
    return read_setup(path or str(beside), options, str(checkpoint)).model


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Flags of `runs`."""

    folder: Path = flag(Path("output"), positional=True, nargs="?", metavar="FOLDER", help="default: output")
    against: Literal["previous", "first"] = flag("previous", help="what to compare with")


@examples("runs", "runs output --against first")
def runs(args: Runs) -> Answer:
    """The runs below a folder: the settings in which each differs from one of its kind and data, and a table of all."""
    found = list_runs(args.folder, args.against)
    return Answer(run_lines(found), [run.as_dict() for run in found])


def run_lines(runs: Sequence[RunSummary]) -> list[str]:
    """What each run changed against the one that it is compared with, and below it, where one looks, their table."""
    if not runs:
        return ["no runs here"]
    head = ["run", "state", "best", "split", "step", "loss", "time", "started"]
    lines = []
    for run in runs:
        more = [f"  {shorten(run.error, 2 * WIDTH)}"] if run.error else []
        shown = change_lines(run)
        more += [f"  {line}" for line in shown]
        more += [f"  and {rest} more (--json)"] if (rest := len(run.differs) - len(shown)) else []
        if more:
            lines += [f"{run.folder}, against {run.base}" if run.differs else run.folder, *more, ""]
    return [*lines, *columns([head, *map(_cells, runs)])]


def _cells(run: RunSummary) -> list[str]:
    best = f"{run.metric} {measured(displayed(run.metric, run.best))}" if run.best is not None else run.unscored
    loss = measured(run.loss) if run.loss is not None else "–"
    took = duration(run.seconds) if run.seconds is not None else "–"
    return [run.folder, run.state, best, run.split or "–", str(run.step), loss, took, run.started or "–"]
