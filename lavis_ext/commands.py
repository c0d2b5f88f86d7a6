"""What each verb does: a function from parsed arguments to an Answer; heavy parts are imported where needed."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext import prepare_arguments
from lavis_ext.chat import CHAT
from lavis_ext.errors import Problem, UsageError
from lavis_ext.features.arguments import FEATURES
from lavis_ext.wording import columns, human, shorten

if TYPE_CHECKING:
    from lavis_ext.schema import Config

Argument = tuple[tuple[str, ...], dict[str, Any]]


@dataclass
class Answer:
    """What a verb has to say: lines for a person, objects for a program, and the exit code."""

    lines: list[str] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    code: int = 0


@dataclass(frozen=True)
class Verb:
    """One verb of the command line: its help, its arguments, and what it calls."""

    help: str
    call: Callable[[Namespace], Answer]
    arguments: Sequence[Argument] = ()


def list_datasets(args: Namespace) -> Answer:
    """Every data set: name, shape, splits, size to fetch, state on this disk, licence."""
    from lavis_ext.cards import load_cards, split_names
    from lavis_ext.prepare import PrepareOptions, status

    root = _cache_root(args)
    cards = load_cards()
    states = {(s.dataset, s.split): s.state for s in status(cards.names(), PrepareOptions(cache_root=root), cards)}
    rows: list[dict[str, Any]] = []
    for name in cards.names():
        card = cards.card_of(name)
        types = card.datasets[name]
        dataset = types.get("default") or next(iter(types.values()))
        splits = {split: states.get((name, split), "missing") for split in split_names(dataset)}
        sizes = [a.size or 0 for a in cards.artifacts_of(dataset)]
        rows.append(
            {
                "name": name,
                "shape": dataset.builder,
                "types": sorted(types),
                "splits": splits,
                "bytes": sum(sizes),
                "licence": card.licence,
            }
        )
    table = [["name", "shape", "splits on this disk", "download", "licence"]]
    for row in rows:
        told = " ".join(split if state == "missing" else f"{split}:{state}" for split, state in row["splits"].items())
        table.append([row["name"], row["shape"], told, _size(row["bytes"]), shorten(row["licence"], 40)])
    alone = [family for family, card in cards.families.items() if card.artifacts and not card.datasets]
    more = [f"files without a data set: {', '.join(sorted(alone))} (lavis-ext show {alone[0]})"] if alone else []
    return Answer([*columns(table), "", *more, f"data lies in {root}"], rows)


def show(args: Namespace) -> Answer:
    """A data set whole: its card, files, processors, licence, citation, and the command that prepares it."""
    from lavis_ext.cards import load_cards
    from lavis_ext.config import cache_root_origin

    cards = load_cards()
    card, datasets = cards.resolve(args.name)
    root, origin = cache_root_origin(_env_option(args))
    lines = [card.title or card.family, card.homepage, f"licence: {card.licence or 'not stated'}", ""]
    for dataset in datasets:
        files = cards.artifacts_of(dataset)
        lines += [f"{dataset.name} (type {dataset.type}, shape {dataset.builder})", f"  from {card.path}"]
        lines += [f"  {split}: {c.samples} samples, {c.images} images" for split, c in dataset.counts.items()]
        for split, side in (("train", dataset.vis_processor.train), ("eval", dataset.vis_processor.eval)):
            lines += [f"  vis_processor.{split}: {side.name} {side.args}"] if side else []
        lines += columns(
            [["  file", "size", "hash", "from"], *([f"  {a.file}", _size(a.size), _hash(a), a.url] for a in files)]
        )
        asked = f"'{dataset.name}[{dataset.type}]'" if dataset.on_request else dataset.name
        lines += [f"  prepare it: lavis-ext prepare {asked}", *([dataset.manual] if dataset.manual else []), ""]
    used = {artifact.file for dataset in datasets for artifact in cards.artifacts_of(dataset)}
    others = card.artifacts.values() if args.name in cards.families else cards.named_artifacts(args.name)
    lines += _artifact_lines([artifact for artifact in others if artifact.file not in used])
    lines += [f"cache root: {root} (from {origin})", "", card.citation.strip()]
    return Answer(lines, [{"card": {**asdict(card), "datasets": None}, "datasets": [asdict(d) for d in datasets]}])


def _artifact_lines(artifacts: Sequence[Any]) -> list[str]:
    """A table of artifacts that stand for themselves, and how to prepare them."""
    if not artifacts:
        return []
    rows = [[f"{a.family}/{a.name}", _size(a.size or a.about), a.storage, a.url] for a in artifacts]
    return [
        *columns([["artifact", "size", "lies at", "from"], *rows]),
        f"prepare: lavis-ext prepare {rows[0][0]} …",
        "",
    ]


def check(args: Namespace) -> Answer:
    """Every mistake of YAML files, or of all below folders, at once; exit code 3 if there is any."""
    from lavis_ext.check import check_file

    files: list[Path] = []
    for path in map(Path, args.paths):
        if not path.exists():
            raise UsageError(str(path), "no such file or folder", "name YAML files, or folders that hold some")
        files += sorted(path.rglob("*.y*ml")) if path.is_dir() else [path]
    if not files:
        raise UsageError(" ".join(args.paths), "holds no YAML", "name YAML files, or folders that hold some")
    found: list[Problem] = [problem for file in files for problem in check_file(file)]
    lines = [*map(str, found), f"{len(files)} files, {len(found)} problems"]
    return Answer(lines, [asdict(p) for p in found], 3 if found else 0)


def prepare(args: Namespace) -> Answer:
    """Fetch, verify, unpack and stamp data sets; nothing moves before the plan fits the disk."""
    from lavis_ext.prepare import plan
    from lavis_ext.prepare import prepare as run

    options, names = prepare_arguments.options_of(args, _cache_root(args)), prepare_arguments.names_of(args)
    prepare_arguments.load_tokens(args)
    if args.dry_run:
        report = run(names, options)
        return Answer([*report.plan.table().splitlines(), report.line()], [report.as_dict()], report.exit_code)
    if not args.quiet:
        _to_stderr(plan(names, options).table())
    with _progress(args) as progress:
        report = run(names, options, progress=progress)
    return Answer(report.lines(), [report.as_dict()], report.exit_code)


def _progress(args: Namespace) -> Any:
    from lavis_ext.fetch import make_progress

    return make_progress(_to_stderr, quiet=args.quiet)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def status(args: Namespace) -> Answer:
    """Per split: what is expected, present and verified, and whether it is a subset."""
    from lavis_ext.cards import load_cards
    from lavis_ext.prepare import PrepareOptions
    from lavis_ext.prepare import status as look

    names = args.names or load_cards().names()
    states = look(names, PrepareOptions(cache_root=_cache_root(args)))
    return Answer([state.line() for state in states], [state.as_dict() for state in states])


def verify(args: Namespace) -> Answer:
    """Hash again what has hashes and check every member; --deep decodes every image, --repair fetches what fails."""
    from lavis_ext.prepare import PrepareOptions
    from lavis_ext.prepare import verify as run

    options = PrepareOptions(cache_root=_cache_root(args))
    with _progress(args) as progress:
        report = run(args.names, args.deep, args.repair, options, progress)
    return Answer(report.lines(), [report.as_dict()], report.exit_code)


def doctor(args: Namespace) -> Answer:
    """What this machine offers and what would get in the way; secrets are told as set or unset."""
    from lavis_ext.doctor import examine

    findings = examine(_cache_root(args))
    lines = columns([[f.name, f.state, f.text] for f in findings])
    return Answer(lines, [asdict(f) for f in findings], 0 if all(f.state != "bad" for f in findings) else 1)


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

    page = write_page(args.target, Path(args.out) if args.out else None, _cache_root(args), args.seed)
    if args.serve:
        serve_page(page, _to_stderr)
    return Answer([f"report: {page}"], [{"report": str(page)}])


def chat(args: Namespace) -> Answer:
    """Caption a picture and answer questions about it."""
    from lavis_ext.chat import run_chat

    return Answer(*run_chat(args))


def runs(args: Namespace) -> Answer:
    """The runs below a folder: how each stands, its best metric, and in what its configuration differs."""
    from lavis_ext.runs import list_runs, run_lines

    found = list_runs(Path(args.folder), args.against)
    return Answer(run_lines(found, args.against), [run.as_dict() for run in found])


def features(args: Namespace) -> Answer:
    """Convert, join, index and check region features."""
    from lavis_ext.features.verbs import run_action

    with _progress(args) as progress:
        return Answer(*run_action(args, progress))


def demo(args: Namespace) -> Answer:
    """Draw a small world, fetch it as COCO, train a tiny BLIP-2 on it, score its captions and write the report."""
    from lavis_ext.demo.tour import run_demo

    result = run_demo(Path(args.out), seed=args.seed, all_families=args.all)
    return Answer(result.lines(), [result.summary()], result.exit_code)


def cite(args: Namespace) -> Answer:
    """The citations of data sets, as BibTeX, each once."""
    from lavis_ext.cards import load_cards

    cards = load_cards()
    found = {card.family: card for card in (cards.resolve(name)[0] for name in args.names)}
    objects = [{"family": card.family, "citation": card.citation, "licence": card.licence} for card in found.values()]
    return Answer(
        [card.citation.strip() or f"{card.family}: no citation is declared" for card in found.values()], objects
    )


def completion(args: Namespace) -> Answer:
    """The completion script of a shell."""
    from lavis_ext.cards import load_cards
    from lavis_ext.completion import completion_script

    cards = load_cards()
    flags = {verb: [f for words, _ in VERBS[verb].arguments for f in words if f.startswith("--")] for verb in VERBS}
    naming = {"names", "name", "target"}
    named = [name for name, verb in VERBS.items() if any(words[0] in naming for words, _ in verb.arguments)]
    script = completion_script(args.shell, flags, sorted({*cards.families, *cards.names()}), named)
    return Answer(script.splitlines(), [{"script": script}])


def _size(size: int | None) -> str:
    return human(size) if size else "?"


def _hash(artifact: Any) -> str:
    return "sha256" if artifact.sha256 else "md5" if artifact.md5 else "–"


def _env_option(args: Namespace) -> str | None:
    from lavis_ext.config import parse_options

    env = parse_options(args.options).get("env") or {}
    value = env.get("cache_root") if isinstance(env, dict) else None
    return str(value) if value else None


def _cache_root(args: Namespace) -> Path:
    from lavis_ext.config import cache_root

    return cache_root(_env_option(args))


OPTIONS: Argument = (
    ("--options",),
    {"nargs": "*", "default": [], "metavar": "a.b=c", "help": "settings over those of the YAML"},
)
QUIET: Argument = (("--quiet",), {"action": "store_true", "help": "no progress"})
NAMES: Argument = (
    ("names",),
    {"nargs": "+", "metavar": "NAME", "help": "a family (coco) or a data set (coco_caption)"},
)
RUN_FILE: Argument = (("--cfg-path",), {"required": True, "metavar": "F", "help": "the run file"})
BROWSE: list[Argument] = [
    (("target",), {"metavar": "NAME|RUN_DIR", "help": "a data set, a family, or the folder of a run"}),
    (("--out",), {"metavar": "FILE.html", "help": "default: NAME.html here, or report.html of the run"}),
    (
        ("--seed",),
        {"type": int, "metavar": "N", "help": "draw the samples shown by this number, instead of taking them evenly"},
    ),
    (("--serve",), {"action": "store_true", "help": "show it at an address of this machine until Ctrl-C"}),
]
VERBS: dict[str, Verb] = {
    "list": Verb("data sets, and what of them lies on this disk", list_datasets, [OPTIONS]),
    "show": Verb("one data set: files, licence, citation", show, [(("name",), {"metavar": "NAME"}), OPTIONS]),
    "check": Verb("every mistake of YAML files", check, [(("paths",), {"nargs": "+", "metavar": "PATH"})]),
    "prepare": Verb("fetch, verify and unpack data sets", prepare, [*prepare_arguments.ARGUMENTS, QUIET, OPTIONS]),
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
    "features": Verb("region features: convert, join, index, check", features, [*FEATURES, QUIET]),
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
            (("--all",), {"action": "store_true", "help": "prepare every other family of data sets too"}),
        ],
    ),
}
