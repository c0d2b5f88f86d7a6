"""The verbs about data: list, show, prepare, status, verify, cite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from lavis_ext.cli.verb import (
    REQUIRED,
    Answer,
    Names,
    Options,
    Quiet,
    cache_root_of,
    confirm,
    env_option,
    examples,
    fill,
    flag,
    progress_of,
    to_stderr,
    width_of_terminal,
)
from lavis_ext.common.errors import DATASETS, Problem, UsageError, near, nearest
from lavis_ext.common.files import expanded
from lavis_ext.common.wording import columns, fitted, human, shorten

if TYPE_CHECKING:
    from pathlib import Path

    from lavis_ext.common.config.cards import Card, Cards
    from lavis_ext.common.config.schema import DatasetConfig
    from lavis_ext.prepare.records import OnDisk


@dataclass(frozen=True, kw_only=True)
class List(Options):
    """Flags of `list`."""

    patterns: tuple[str, ...] = flag(
        (), positional=True, nargs="*", metavar="PATTERN", help="only names or families that match, or hold it"
    )
    installed: bool = flag(False, help="only what is on this disk")


@dataclass(frozen=True, kw_only=True)
class Show(Options):
    """Flags of `show`."""

    name: str = flag(REQUIRED, positional=True, metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class Status(Options):
    """Flags of `status`; without names it is about all."""

    names: tuple[str, ...] = flag(REQUIRED, positional=True, nargs="*", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class Verify(Names, Quiet, Options):
    """Flags of `verify`."""

    deep: bool = flag(False, help="decode every image")
    repair: bool = flag(False, help="fetch again what fails")


@dataclass(frozen=True, kw_only=True)
class Prepare(Quiet, Options):
    """Flags of `prepare`; those that fill `PrepareOptions` have the names of its fields."""

    names: tuple[str, ...] = flag(
        REQUIRED, positional=True, nargs="*", metavar="NAME", help="coco, coco_caption, or an artifact: vinvl/coco_ir"
    )
    splits: tuple[str, ...] | None = flag(None, "--split", nargs="+", metavar="S", help="only these splits")
    max_samples: int | None = flag(
        None, metavar="N", help="only the first N samples of each split, out of the remote archive"
    )
    dry_run: bool = flag(False, help="print the plan; move nothing, write nothing")
    jobs: int | None = flag(None, metavar="N", help="files at a time")
    keep_archives: bool = flag(False, help="keep zips and tars after unpacking")
    no_unpack: bool = flag(False, help="leave archives as they are; images are read out of them")
    offline: bool = flag(False, help="open no connection; name what is missing")
    mirror: str | None = flag(None, metavar="U", help="a mirror's URL or folder, in place of LAVIS_EXT_MIRROR")
    source: str = flag(
        "", metavar="S", help="another place of a list's files: folder, URL, file of URLs, hf:datasets/…"
    )
    metadata_only: bool = flag(False, help="fetch lists of images, but not the images")
    distributor: Literal["multiprocessing", "pyspark", "ray"] = flag("multiprocessing", help="for lists of the web")
    processes: int = flag(0, metavar="N", help="that download such lists")
    family: str | None = flag(None, metavar="F", help="NAMEs are artifacts of this family: F/NAME")
    include: tuple[str, ...] = flag((), nargs="+", metavar="P", help="only files that match (`features.*`)")
    exclude: tuple[str, ...] = flag((), nargs="+", metavar="P", help="no files that match")
    locked: bool = flag(False, help="only what ./lavis-ext.lock pins (see `checksum`)")
    listing: bool = flag(False, "--list", help="ask the host what folders hold, and keep the answer")
    sas_file: str | None = flag(
        None, metavar="F", help="Azure tokens: a file that only you may read, or - for standard input"
    )
    accept_licence: bool = flag(False, help="accept licences that are gated or non-commercial; it is remembered")
    json: bool = False


@examples("list", "list --installed", "list 'coco_*' vqa", "list --json")
def list_datasets(args: List) -> Answer:
    """Every data set: what is here of it, its size, its splits, its licence; those that are here first."""
    from lavis_ext.common.config.cards import load_cards, split_names
    from lavis_ext.prepare import PrepareOptions, bytes_on_disk, own_bytes, status

    root = cache_root_of(args)
    cards = load_cards()
    names = matching(args.patterns, {name: cards.card_of(name).family for name in cards.names()})
    disks: dict[str, OnDisk] = {}
    found = status(names, PrepareOptions(cache_root=root), cards, lost=False, disks=disks) if names else []
    state_of = {(one.dataset, one.split): one.state for one in found}
    rows: list[dict[str, Any]] = []
    for name in names:
        card = cards.card_of(name)
        types = card.datasets[name]
        dataset = types.get("default") or next(iter(types.values()))
        artifacts = cards.artifacts_of(dataset)
        splits = {split: state_of.get((name, split), "missing") for split in split_names(dataset)}
        rows.append(
            {
                "name": name,
                "shape": dataset.builder,
                "types": sorted(types),
                "splits": splits,
                "state": state_of_all(splits),
                "subset": any("subset" in state for state in splits.values()),
                "bytes": sum(a.size or 0 for a in artifacts),
                "on_disk": bytes_on_disk(root, artifacts, disks) if artifacts else own_bytes(dataset, cards, root),
                "licence": card.licence,
                "terms": card.terms,
            }
        )
    here = [row for row in rows if row["state"] != "missing"]
    if args.installed:
        rows = here
    lines = list_lines(here, [row for row in rows if row not in here], width_of_terminal())
    if not rows:
        lines = ["none is here; `lavis-ext list` shows what there is, `lavis-ext prepare NAME` fetches it"]
    alone = [family for family, card in cards.families.items() if card.artifacts and not card.datasets]
    if alone and not args.patterns and not args.installed:
        lines += ["", f"files without a data set: {', '.join(sorted(alone))} (lavis-ext show {alone[0]})"]
    return Answer([*lines, "", f"data lies in {root}"], rows)


def matching(patterns: Sequence[str], families: Mapping[str, str]) -> list[str]:
    """The data sets (name → family) whose name or family a pattern matches, or holds; raises UsageError for none."""
    if not patterns:
        return list(families)

    def fits(pattern: str, name: str) -> bool:
        whole = any(letter in pattern for letter in "*?[")
        return any(fnmatchcase(one, pattern if whole else f"*{pattern}*") for one in (name, families[name]))

    if unknown := [one for one in patterns if not any(fits(one.lower(), name) for name in families)]:
        known = {*families, *families.values()}
        raise UsageError.of(
            Problem(f"list {one}", "matches no data set", near(one, known) or DATASETS) for one in unknown
        )
    return [name for name in families if any(fits(one.lower(), name) for one in patterns)]


def state_of_all(splits: Mapping[str, str]) -> str:
    """The state that all splits have, else `partial`; `missing` where nothing is there."""
    states = set(splits.values())
    if len(states) == 1:
        return states.pop()
    return "missing" if not states else "partial (subset)" if any("subset" in state for state in states) else "partial"


def list_lines(here: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    """Two tables in the width of the terminal: what is here, and what is not."""
    lines = []
    if here:
        table = [["here", "on disk", "state", "splits", "licence", "shape"]]
        for row in here:
            there = [split for split, state in row["splits"].items() if state != "missing"]
            lacking = [f"(no {split})" for split, state in row["splits"].items() if state == "missing"]
            shown = " ".join([*there, *lacking])
            table.append(
                [row["name"], _size(row["on_disk"]), row["state"], shown, shorten(row["licence"], 40), row["shape"]]
            )
        lines += fitted(table, width)
    if other:
        table = [["not here", "download", "splits", "licence", "shape"]]
        for row in other:
            table.append(
                [row["name"], _size(row["bytes"]), " ".join(row["splits"]), shorten(row["licence"], 40), row["shape"]]
            )
        lines += [*([""] if lines else []), *fitted(table, width)]
    return lines


@examples("show coco_caption", "show coco")
def show(args: Show) -> Answer:
    """A data set or family: its card, files, processors, licence, citation, and the command that prepares it."""
    from lavis_ext.common.config.cards import load_cards
    from lavis_ext.common.config.resolve import cache_root_origin

    cards = load_cards()
    card, datasets = cards.resolve(args.name)
    root, origin = cache_root_origin(env_option(args))
    lines = [card.title or card.family, *filter(None, [card.homepage]), f"licence: {card.licence or 'not stated'}"]
    lines += [f"terms: {card.terms}; `prepare` wants them accepted"] if card.terms != "open" else []
    lines.append("")
    for dataset in datasets:
        files = cards.artifacts_of(dataset)
        lines += [f"{dataset.name} (type {dataset.type}, shape {dataset.builder})", f"  from {card.path}"]
        figures = {k: {"samples": c.samples, "images": c.images} for k, c in dataset.counts.items()}
        lines += [f"  {k}: {', '.join(f'{n} {what}' for what, n in f.items() if n)}" for k, f in figures.items()]
        for split, side in (("train", dataset.vis_processor.train), ("eval", dataset.vis_processor.eval)):
            lines += [f"  vis_processor.{split}: {side.name} {side.args}"] if side else []
        if words := cards.words_of_own(dataset.name):
            lines += [*own_lines(dataset, cards, cache_root_of(args), words), ""]
            continue
        lines += columns(
            [["  file", "size", "hash", "from"], *([f"  {a.file}", _size(a.size), _hash(a), a.url] for a in files)]
        )
        asked = dataset.name if dataset.type == "default" else f"'{dataset.name}[{dataset.type}]'"
        lines += [f"  prepare it: lavis-ext prepare {asked}", *([dataset.manual] if dataset.manual else []), ""]
    used = {artifact.file for dataset in datasets for artifact in cards.artifacts_of(dataset)}
    others = card.artifacts.values() if args.name in cards.families else cards.named_artifacts(args.name)
    lines += _artifact_lines([artifact for artifact in others if artifact.file not in used])
    if card.sources:
        rows = [[s.url, s.now.replace("_", " "), s.since, s.why, s.instead] for s in card.sources]
        lines += [*columns([["where it was offered", "now", "since", "", "use instead"], *rows]), ""]
    lines += [f"cache root: {root} (from {origin})", "", card.citation.strip()]
    return Answer(lines, [{"card": {**asdict(card), "datasets": None}, "datasets": [asdict(d) for d in datasets]}])


def own_lines(dataset: DatasetConfig, cards: Cards, root: Path, words: str) -> list[str]:
    """What a data set of one's own is: rows and pictures of each split, where they lie, and what can be done."""
    from lavis_ext.prepare import PrepareOptions, own_bytes, status

    info = dataset.build_info
    states = status([dataset.name], PrepareOptions(cache_root=root), cards, lost=False)
    places = {f"rows of {split}": cards.annotation_paths(dataset, split) for split in info.annotations}
    places |= {"shards": info.storage}
    places |= {"pictures below": [info.images.storage] if info.images.storage else []}
    return [
        *dict.fromkeys(f"  {state.line()}" for state in states),
        *(f"  {what}: {', '.join(str(root / expanded(one)) for one in some)}" for what, some in places.items() if some),
        f"  your own data, which no command fetches: {human(own_bytes(dataset, cards, root))} on the disk",
        f"  look at it: lavis-ext browse {words}",
        f"  decode every picture: lavis-ext verify {words} --deep",
    ]


def _artifact_lines(artifacts: Sequence[Any]) -> list[str]:
    """A table of artifacts that no data set uses, and how to prepare them."""
    if not artifacts:
        return []
    rows = [[f"{a.family}/{a.name}", _size(a.size or a.about), a.storage, a.url] for a in artifacts]
    return [
        *columns([["artifact", "size", "lies at", "from"], *rows]),
        f"prepare: lavis-ext prepare {rows[0][0]} …",
        "",
    ]


@examples(
    "prepare coco_caption --dry-run",
    "prepare coco_caption --split val --max-samples 100",
    "prepare coco nocaps --mirror /mnt/mirror",
    "prepare vinvl/coco_ir",
)
def prepare(args: Prepare) -> Answer:
    """Fetch, verify, unpack and record data sets; nothing moves before the plan fits the disk."""
    from lavis_ext.fetch.azure import TOKENS
    from lavis_ext.prepare import PrepareOptions, execute_plan, plan

    names = names_of(args)
    options = fill(PrepareOptions, args, cache_root=cache_root_of(args), offline=args.offline or None)
    if args.sas_file:
        TOKENS.load(args.sas_file)
    made = plan(names, options)
    if args.dry_run:
        report = execute_plan(made)
        asked = [f"{card.family}, {card.terms}: {card.licence}" for card in made.restricted]
        errors = [str(error) for error in report.errors]
        return Answer(
            [*made.table().splitlines(), *asked, *errors, report.line()], [report.as_dict()], report.exit_code
        )
    if not args.quiet:
        to_stderr(made.table())
    if made.restricted:
        accept_licences(made.restricted, args.accept_licence, asking=not args.json)
    with progress_of(args) as progress:
        report = execute_plan(made, progress)
    return Answer(report.lines(), [report.as_dict()], report.exit_code)


def accept_licences(restricted: Sequence[Card], given: bool, asking: bool) -> None:
    """Have the licences of some cards accepted: by flag, or by the person at the terminal; raises AccessError."""
    from lavis_ext.prepare.licences import file_of_accepted, refused, remember, waiting

    if not (cards := waiting(restricted)):
        return
    for card in cards:
        to_stderr(f"{card.title or card.family} ({card.terms}): {card.licence}; {card.homepage}")
    if not (given or (asking and confirm("do you accept?"))):
        raise refused(cards)
    remember(cards)
    to_stderr(f"accepted: {', '.join(card.family for card in cards)}; remembered in {file_of_accepted()}")


@examples("status", "status coco_caption nocaps")
def status(args: Status) -> Answer:
    """Per split: what is expected, present and verified, and whether it is a subset.

    Without names the lines are about the data sets of which something is here; --json has all.
    """
    from lavis_ext.common.config.cards import load_cards
    from lavis_ext.prepare import PrepareOptions
    from lavis_ext.prepare import status as look

    cards = load_cards()
    states = look(args.names or cards.names(), PrepareOptions(cache_root=cache_root_of(args)), cards, lost=False)
    here = {state.dataset for state in states if args.names or state.state != "missing" or state.present}
    lines = [state.line() for state in states if state.dataset in here]
    if rest := len({state.dataset for state in states} - here):
        lines.append(f"{rest} {'more' if here else 'data sets'} are not here; `lavis-ext list` shows them")
    return Answer(lines, [state.as_dict() for state in states])


@examples("verify coco_caption", "verify coco --deep --repair")
def verify(args: Verify) -> Answer:
    """Hash again what has hashes and check every member; --deep decodes every image, --repair fetches what fails."""
    from lavis_ext.prepare import PrepareOptions
    from lavis_ext.prepare import verify as run

    options = PrepareOptions(cache_root=cache_root_of(args))
    with progress_of(args) as progress:
        report = run(args.names, args.deep, args.repair, options, progress)
    return Answer(report.lines(), [report.as_dict()], report.exit_code)


@examples("cite coco nocaps")
def cite(args: Names) -> Answer:
    """The citations of data sets, as BibTeX, each once."""
    from lavis_ext.common.config.cards import load_cards

    cards = load_cards()
    found = {card.family: card for card in (cards.resolve(name)[0] for name in args.names)}
    objects = [{"family": card.family, "citation": card.citation, "licence": card.licence} for card in found.values()]
    return Answer(
        [card.citation.strip() or f"{card.family}: no citation is declared" for card in found.values()], objects
    )


def _size(size: int | None) -> str:
    return human(size) if size else "?"


def _hash(artifact: Any) -> str:
    return "sha256" if artifact.sha256 else "md5" if artifact.md5 else "–"


def names_of(args: Prepare) -> list[str]:
    """The NAMEs, as `family/NAME` with `--family`; without any, raises UsageError that lists the known ones."""
    from lavis_ext.common.config.cards import load_cards, split_names

    if args.names and args.splits is None and not args.family:
        cards = load_cards()
        known = {*cards.families, *cards.names()}
        named = [one for name in args.names if name in known for one in cards.resolve(name)[1]]
        splits = {split for one in named for split in split_names(one)}
        if wrong := [name for name in args.names if name not in known and name in splits]:
            raise UsageError(wrong[0], "is a split, not a data set", f"write --split {' '.join(wrong)}")
    if args.names:
        return [f"{args.family}/{name}" for name in args.names] if args.family else list(args.names)
    cards = load_cards()
    if card := cards.families.get(args.family or ""):
        raise UsageError(f"prepare --family {card.family}", "names no artifact", nearest("", card.artifacts))
    if args.family:
        raise UsageError(
            f"--family {args.family}", "there is no such family", near(args.family, cards.families) or DATASETS
        )
    for several, flag_name in ((args.splits, "--split"), (args.include, "--include"), (args.exclude, "--exclude")):
        if taken := [one for one in several or () if one in {*cards.families, *cards.names()}]:
            what = f"names no data set: {flag_name} takes all that follows, {taken[0]} too"
            raise UsageError("prepare", what, f"name it first: `lavis-ext prepare {taken[0]} {flag_name} …`")
    way_out = f"e.g. `lavis-ext prepare coco_caption`; families: {', '.join(sorted(cards.families))}; "
    raise UsageError("prepare", "names no data set", f"{way_out}`lavis-ext list` shows all data sets")
