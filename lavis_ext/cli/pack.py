"""The verb `pack`: a data set as tar shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lavis_ext.cli.verb import REQUIRED, Answer, Options, Quiet, cache_root_of, examples, fill, flag, to_stderr
from lavis_ext.common.errors import UsageError
from lavis_ext.common.wording import counted, human


@dataclass(frozen=True, kw_only=True)
class Pack(Quiet, Options):
    """Flags of `pack`; those that fill `PackOptions` have the names of its fields."""

    name: str = flag(REQUIRED, positional=True, metavar="NAME", help="a data set: coco_caption, or gqa[balanced]")
    out: str = flag(REQUIRED, positional=True, metavar="OUT", help="a folder, s3://BUCKET/FOLDER, gs://…, az://…")
    split: str = flag("train", metavar="S", help="default: train")
    samples_per_shard: int = flag(10_000, metavar="N", help="default: 10000")
    max_samples: int | None = flag(None, metavar="N", help="only the first N samples")
    encode: Literal["jpg", "png", "webp"] | None = flag(None, help="encode pictures anew; else they stay as they are")
    quality: int = flag(90, metavar="Q", help="of pictures that are encoded anew (default: 90)")
    shorter_side: int | None = flag(None, metavar="PIXELS", help="make larger pictures smaller")
    seed: int = flag(0, help="of a caption that is drawn out of several")
    jobs: int = flag(1, metavar="N", help="shards at a time")
    distributor: Literal["multiprocessing", "pyspark", "ray"] = flag(
        "multiprocessing", help="who makes them: this process, or a cluster"
    )
    deep: bool = flag(False, help="hash shards that are there already")


@examples(
    "pack coco_vqa shards/vqa",
    "pack coco_caption s3://bucket/coco --samples-per-shard 5000 --jobs 4",
    "pack vg_caption small --encode jpg --shorter-side 256",
)
def pack(args: Pack) -> Answer:
    """Write a data set as tar shards with manifests, which `image_text_shards` reads; go on where a run was stopped."""
    from lavis_ext.common.config.cards import load_cards
    from lavis_ext.datasets.pack import PackOptions
    from lavis_ext.datasets.pack import pack as run

    cards = load_cards()
    if args.name in cards.families and args.name not in cards.names():
        raise UsageError(
            args.name, "is a family", f"name one of {', '.join(sorted(cards.families[args.name].datasets))}"
        )
    found = cards.resolve(args.name)[1]
    config = next((one for one in found if one.type == "default"), found[0]) if found else None
    if config is None:
        raise UsageError(args.name, "is no data set", "name one of `lavis-ext list`")
    tell = (lambda _: None) if args.quiet else to_stderr
    report = run(config, args.out, cache_root_of(args), fill(PackOptions, args), tell)
    lines = [
        f"{report.dataset}/{report.split}: {counted(report.samples, 'sample')} in {counted(report.shards, 'shard')} "
        f"({human(report.bytes)}), {report.made} made now, each read back and hashed",
        *([f"left out: {counted(report.lost, 'sample')} whose picture or text cannot be used"] if report.lost else []),
        *(f"left out now: {count} × {why}" for why, count in report.faults.most_common()),
        "read them back:",
        "datasets:",
        f"  {report.dataset}_shards:",
        "    builder: image_text_shards",
        f"    build_info: {{storage: {report.out}/}}",
        "    args: {sample_key: sample}",
    ]
    return Answer(lines, [report.as_dict()])
