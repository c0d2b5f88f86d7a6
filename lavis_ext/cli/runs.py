"""The verbs about runs: train, evaluate, browse, export, and the table of `runs`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lavis_ext.browse.run_report import AGGREGATE, Record, RunRecords, duration, finite, headline, number, read_run
from lavis_ext.cli.chat import find_weights, read_setup
from lavis_ext.cli.verb import REQUIRED, Answer, Options, cache_root_of, examples, flag, to_stderr, to_stdout
from lavis_ext.common.config.yamlio import read_value
from lavis_ext.common.errors import ConfigError, UsageError
from lavis_ext.common.files import expanded
from lavis_ext.common.wording import columns, shorten

if TYPE_CHECKING:
    from lavis_ext.common.config.schema import Config, ModelConfig

RUN_FILES = ("log.jsonl", "run.json")
"""A folder that holds one of these is the folder of a run."""
ALWAYS_DIFFERENT = ("run.job_id", "run.output_dir", "cache_root")
"""Settings that differ between any two runs, and are left out of the comparison."""
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
    from lavis_ext.runners.display import Stream, display_for

    start = run_evaluation if evaluate_only or config.run.evaluate else run_training
    display = Stream(write_record) if args.json else display_for()
    job = start(config, _known_of(config), display=display)
    report = job / "report.html"
    lines = [f"run: {job}", f"report: {report}"] if report.is_file() else [f"run: {job}"]
    return Answer(lines, [{"job": str(job), "report": str(report)}])


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

    target: str = flag(
        REQUIRED,
        positional=True,
        metavar="NAME|RUN_DIR|STORE",
        help="a data set, a family, the folder of a run, or a feature store",
    )
    out: Path | None = flag(None, metavar="FILE.html", help="default: NAME.html here, or report.html of the run")
    seed: int | None = flag(
        None, metavar="N", help="draw the samples shown by this number, instead of taking them evenly"
    )
    images: Path | None = flag(None, metavar="DIR", help="where the pictures of a feature store are (default: COCO's)")
    serve: bool = flag(False, help="show it at an address of this machine until Ctrl-C")


@examples("browse coco_caption", "browse output/my-run --serve", "browse oscar.store --out regions.html")
def browse(args: Browse) -> Answer:
    """Write the HTML page of a run, a data set or a feature store; --serve shows it on loopback until Ctrl-C."""
    from lavis_ext.browse import serve_page, write_page

    page = write_page(args.target, args.out, cache_root_of(args), args.seed, args.images)
    if args.serve:
        serve_page(page, to_stderr)
    return Answer([f"report: {page}"], [{"report": str(page)}])


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
        raise UsageError(str(out.parent), "no such folder", "make it first")
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
    """The runs below a folder: the state of each, its best metric, and the settings in which it differs."""
    found = list_runs(args.folder, args.against)
    return Answer(run_lines(found, args.against), [run.as_dict() for run in found])


@dataclass(frozen=True)
class RunSummary:
    """One run: `best` is the headline metric of its best evaluation; `differs` maps a setting to (before, here)."""

    folder: str
    state: str
    metric: str = ""
    best: float | None = None
    split: str = ""
    step: int = 0
    loss: float | None = None
    seconds: float | None = None
    started: str = ""
    error: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    differs: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For a program: all of it but the full configuration."""
        return {key: value for key, value in asdict(self).items() if key != "settings"}


def find_runs(root: Path) -> list[Path]:
    """The folders of runs at or below `root`, sorted; raises UsageError if it is no folder."""
    if not root.is_dir():
        raise UsageError(str(root), "is not a folder", "name the output folder of runs (run.output_dir)")
    return sorted({file.parent for name in RUN_FILES for file in root.rglob(name)})


def list_runs(root: Path, against: str = "previous") -> list[RunSummary]:
    """The runs by their start, each with its difference to the `previous` or the `first` one."""
    found = sorted((summarise(folder, root) for folder in find_runs(root)), key=lambda run: (run.started, run.folder))
    runs: list[RunSummary] = []
    for run in found:
        base = (runs[0] if against == "first" else runs[-1]).settings if runs else run.settings
        runs.append(RunSummary(**{**vars(run), "differs": difference(base, run.settings)}))
    return runs


def summarise(folder: Path, root: Path) -> RunSummary:
    """One run from the files of its folder; torn or missing files leave blanks."""
    records = read_run(folder)
    facts = records.facts
    best = best_of(records)
    metric, value = headline(best["metrics"]) if best else ("", math.nan)
    last: Record = records.steps[-1] if records.steps else {}
    steps = [record.get("step") for record in (*records.steps, *records.evaluations)]
    return RunSummary(
        folder=folder.relative_to(root).as_posix(),
        state=str(facts.get("status", "unknown")),
        metric=metric,
        best=finite(value),
        split=str(best.get("split", "")),
        step=max((step for step in steps if isinstance(step, int)), default=0),
        loss=finite(last.get("loss")),
        seconds=finite(facts.get("seconds")),
        started=str(facts.get("started", "")),
        error=str(facts.get("error") or ""),
        settings=flat(parsed(records.config)),
    )


def best_of(records: RunRecords) -> Record:
    """The evaluation that the run recorded as best, else that with the highest aggregate, else the last; {} if none."""
    wanted = records.best.get("split"), records.best.get("step")
    evaluations = records.evaluations
    chosen = [r for r in evaluations if records.best and (r.get("split"), r.get("step")) == wanted]
    if chosen:
        return chosen[0]
    if scored := [r for r in evaluations if finite(r["metrics"].get(AGGREGATE)) is not None]:
        return max(scored, key=lambda r: number(r["metrics"][AGGREGATE]))
    return evaluations[-1] if evaluations else {}


def parsed(text: str) -> Mapping[str, Any]:
    """A configuration; {} where it is torn."""
    try:
        tree = read_value(text, "config.yaml")
    except ConfigError:
        return {}
    return tree if isinstance(tree, Mapping) else {}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"run": {"seed": 1}}` → `{"run.seed": 1}`; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that are not the same, by name; None for a setting that is not there."""
    names = sorted(name for name in {*before, *after} if name not in ALWAYS_DIFFERENT)
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def run_lines(runs: Sequence[RunSummary], against: str = "previous") -> list[str]:
    """A table of the runs, and below it what each changed against the `previous` or the `first`."""
    if not runs:
        return ["no runs here"]
    head = ["run", "state", "best", "split", "step", "loss", "time", "started"]
    lines = columns([head, *map(_cells, runs)])
    for run in runs:
        more = [f"  {shorten(run.error, 2 * WIDTH)}"] if run.error else []
        more += [f"  {name}: {_short(a)} → {_short(b)}" for name, (a, b) in run.differs.items()]
        if more:
            lines += ["", f"{run.folder}, against the {against}" if run.differs else run.folder, *more]
    return lines


def _cells(run: RunSummary) -> list[str]:
    best = f"{run.metric} {run.best:.4g}" if run.best is not None else "–"
    loss = f"{run.loss:.4g}" if run.loss is not None else "–"
    took = duration(run.seconds) if run.seconds is not None else "–"
    return [run.folder, run.state, best, run.split or "–", str(run.step), loss, took, run.started or "–"]


def _short(value: Any) -> str:
    return "(not set)" if value is None else shorten(str(value), WIDTH)
