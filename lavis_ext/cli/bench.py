"""The verb `bench`: how fast a data set is loaded here, and what would make it faster."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lavis_ext.cli.verb import REQUIRED, Answer, Options, cache_root_of, examples, flag, to_stderr
from lavis_ext.common.errors import UsageError

if TYPE_CHECKING:
    from lavis_ext.datasets.bench import LoaderReport

SHAPES = (
    *("image_caption", "image_text_retrieval", "image_text_shards", "image_text_label", "paired_images", "vqa"),
    "conversation",
)
IMAGE, TEXT = "blip2_image_train", "blip_caption"
"""What is done to pictures and texts where nothing else is declared: what LAVIS' first stage does."""


@dataclass(frozen=True, kw_only=True)
class Bench(Options):
    """Flags of `bench`."""

    dataset: str = flag(
        REQUIRED, positional=True, metavar="DATASET", help="a data set, a file or folder of your own, or a run's YAML"
    )
    split: str | None = flag(None, metavar="S", help="default: train, or the first that there is")
    batch_size: int | None = flag(None, metavar="N", help="default: the run's, or 64")
    workers: tuple[int, ...] = flag(
        (), nargs="+", type=int, metavar="N", help="numbers of threads to try (default: 1 to twice the cores)"
    )
    seconds: float = flag(5.0, metavar="S", help="for each of them (default: 5)")
    json: bool = False


@examples("bench coco_caption", "bench ~/photos --workers 2 4 8", "bench configs/projects/demo/train/caption.yaml")
def bench(args: Bench) -> Answer:
    """Load batches as a training would, and say how many samples a second come, where the time goes and what to change.

    Nothing is trained and nothing written. Figures of a busy machine mean little.
    """
    if args.seconds <= 0 or (args.batch_size is not None and args.batch_size < 1) or any(n < 0 for n in args.workers):
        raise UsageError("bench", "needs seconds and a batch size above 0, and no workers below 0", "see --help")
    datasets, batch_size, now = opened(args)
    from lavis_ext.datasets.bench import bench as run

    cores = os.cpu_count() or 1
    tried = args.workers or tuple(n for n in dict.fromkeys((1, cores // 2, cores, 2 * cores)) if n)
    now = now if not args.workers or now in args.workers else args.workers[0]
    report = run(datasets, args.batch_size or batch_size, now, tried, args.seconds)
    named = {name: one.split for name, one in datasets.items()}
    return Answer(lines_of(report), [{"datasets": named, **report.as_dict()}])


def opened(args: Bench) -> tuple[dict[str, Any], int, int]:
    """Data sets by name, batch size and number of workers; what was guessed or added goes to standard error."""
    from lavis_ext.datasets.builders import BuildContext, build_datasets

    if args.dataset.endswith((".yaml", ".yml")):
        from lavis_ext.common.config.check import load_checked
        from lavis_ext.runners.data import of_split, open_datasets

        config = load_checked(args.dataset, list(args.options))
        split = args.split or next(iter(config.run.train_splits), "train")
        return (
            dict(of_split(open_datasets(config, [split]), split)),
            config.run.batch_size_train,
            config.run.num_workers,
        )
    one = declared(args.dataset)
    for kind, name in (("vis_processor", IMAGE), ("text_processor", TEXT)):
        one = with_processor(one, kind, name)
    built = build_datasets(one, BuildContext(cache_root_of(args), (args.split,) if args.split else None))
    split = args.split or ("train" if "train" in built else next(iter(built)))
    if split not in built:
        raise UsageError(f"{args.dataset}/{split}", "is no split", f"there is {', '.join(built)}: --split")
    return {one.name: built[split]}, 64, 2


def declared(name: str) -> Any:
    """The declaration of a data set by name, or what a path of one's own is taken for."""
    from lavis_ext.common.config.cards import load_cards
    from lavis_ext.datasets.own import guess, place_of

    cards = load_cards()
    if name in cards.families and name not in cards.names():
        raise UsageError(name, "is a family", f"name one of {', '.join(sorted(cards.families[name].datasets))}")
    if name.partition("[")[0] not in cards.names() and ("/" in name or place_of(name)):
        guessed = guess(name)
        for sentence in (*guessed.sentences, guessed.otherwise):
            to_stderr(f"{name}: {sentence}")
        return guessed.config
    found = cards.resolve(name)[1]
    if not found:
        raise UsageError(name, "is no data set", "name one of `lavis-ext list`")
    return next((one for one in found if one.type == "default"), found[0])


def with_processor(config: Any, kind: str, name: str) -> Any:
    """A declaration that has processors of this kind, where its shape takes them and none is declared."""
    from lavis_ext.common.config.schema import ProcessorConfig

    pair = getattr(config, kind)
    if pair.train is not None or pair.eval is not None or config.builder not in SHAPES:
        return config
    to_stderr(f"{kind}: {name}, since none is declared")
    both = {side: ProcessorConfig(name=name) for side in ("train", "eval")}
    return replace(config, **{kind: replace(pair, **both)})


def lines_of(report: LoaderReport) -> list[str]:
    """The report for a person."""
    from lavis_ext.datasets.bench import SHOWN, by_workers

    lines = [f"batches of {report.batch_size}, {report.cores} cores"]
    if report.load > report.cores / 2:
        lines.append(
            f"a load of {report.load:.1f} before the start: others work on this machine, and figures mean little"
        )
    for run in by_workers(report.runs):
        mark = " ← best" if run is report.best else " (now)" if run.workers == report.now else ""
        rate = f"{run.samples_per_second:8,.1f} samples/s, first batch {run.first_batch_s:.2f} s"
        cost = f"{run.cpu_ms:.2f} ms of the processor a sample, {run.cores:.1f} cores busy"
        lines.append(f"  {run.workers:3} workers: {rate}, {cost}{mark}")
    shares = report.best.shares
    lines.append(
        "where the threads are: " + ", ".join(f"{stage} {shares[stage]:.0%}" for stage in SHOWN if shares[stage])
    )
    lines += [f"to change: {one.what} ({one.why})" for one in report.changes] or ["nothing to change was found"]
    if failed := sum(run.failed for run in report.runs):
        lines.append(f"{failed:,} times a sample could not be loaded: `lavis-ext verify` finds damaged files")
    return lines
