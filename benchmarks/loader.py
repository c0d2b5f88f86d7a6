"""Pictures and captions from disk to batches: our mixture beside LAVIS' loader and webdataset, ratios in one table.

    python benchmarks/loader.py [--images FOLDER] [--pictures 1024] [--rounds 3] [--workers 2]

Every contender reads the same 640 x 480 JPEGs of quality 90, crops and flips at random to 224 pixels and gives batches
of 64 with captions. Each runs in a process of its own; rounds are interleaved and medians compared. Writes `loader.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

SIZE, BATCH, CAPTIONS = 224, 64, 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
REPORT = Path(__file__).with_suffix(".md")


# --- what is read --------------------------------------------------------------------------------------------------


def write_world(root: Path, pictures: int, source: Path | None) -> None:
    """The same pictures as a folder, a zip and a tar, and their annotations as LAVIS writes them."""
    folder = root / "coco" / "images" / "val2014"
    folder.mkdir(parents=True)
    (root / "coco" / "annotations").mkdir()
    rows: list[dict[str, str]] = []
    (root / "zipped").mkdir()
    with (
        zipfile.ZipFile(root / "zipped" / "val2014.zip", "w") as packed,
        tarfile.open(root / "00000.tar", "w") as shard,
    ):
        for number, data in enumerate(jpegs(pictures, source)):
            name = f"val2014/COCO_val2014_{number:012d}.jpg"
            (folder.parent / name).write_bytes(data)
            packed.writestr(name, data)
            captions = [f"A picture of number {number}, told for the {k}th time." for k in range(CAPTIONS)]
            rows += [{"caption": c, "image": name, "image_id": f"coco_{number}"} for c in captions]
            for k, caption in enumerate(captions):
                add_member(shard, f"{number:06d}-{k}.jpg", data)
                add_member(shard, f"{number:06d}-{k}.txt", caption.encode())
    (root / "coco" / "annotations" / "train.json").write_text(json.dumps(rows))


def jpegs(count: int, source: Path | None) -> Iterator[bytes]:
    """640 x 480 JPEGs of quality 90: parts of the pictures in `source`, else drawn."""
    files = sorted(source.glob("*.jpg")) if source else []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = part_of(Image.open(files[number % len(files)]).convert("RGB"), rng) if files else drawn(rng)
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def part_of(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random window of at least three quarters of the picture."""
    width, height = (int(side * rng.uniform(0.75, 1)) for side in image.size)
    left, top = (
        int(rng.integers(0, whole - part + 1)) for whole, part in zip(image.size, (width, height), strict=True)
    )
    return image.crop((left, top, left + width, top + height)).resize((640, 480), Image.BICUBIC)


def drawn(rng: np.random.Generator) -> Image.Image:
    """Smooth colours, edges and fine texture in about the amounts of a photograph."""
    layers = [rng.integers(0, 256, (2**k + 1, 2**k + 1, 3), dtype=np.uint8) for k in (2, 4, 6, 8)]
    smooth = [np.asarray(Image.fromarray(layer).resize((640, 480), Image.BICUBIC), dtype=float) for layer in layers]
    mixed = sum(w * s for w, s in zip((0.6, 0.25, 0.1, 0.05), smooth, strict=True))
    return Image.fromarray(np.clip((mixed - 128) * 1.7 + 128, 0, 255).astype(np.uint8))


def add_member(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    """One file into a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, BytesIO(data))


# --- contenders ----------------------------------------------------------------------------------------------------


def lavis_picture(image: Image.Image) -> torch.Tensor:
    """LAVIS' `blip2_image_train` by Pillow: RandomResizedCrop, flip, ToTensor, Normalize as torchvision does them."""
    for _ in range(10):
        area = image.width * image.height * random.uniform(0.5, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= image.width and h <= image.height:
            break
    else:
        w = h = min(image.size)
    left, top = random.randint(0, image.width - w), random.randint(0, image.height - h)
    image = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.BICUBIC)
    if random.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return tensor.sub_(mean).div_(std)


def lavis_caption(text: str) -> str:
    """LAVIS' `blip_caption`."""
    from lavis_ext.processors import load_processor

    return str(load_processor("blip_caption")(text))


class LavisDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """LAVIS' caption data set: a list of dicts, pictures opened by Pillow."""

    def __init__(self, root: Path) -> None:
        self.root = root / "coco" / "images"
        self.rows = json.loads((root / "coco" / "annotations" / "train.json").read_text())
        self.ids: dict[str, int] = {}
        for number, row in enumerate(self.rows):
            row["instance_id"] = str(number)
            self.ids.setdefault(row["image_id"], len(self.ids))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        image = Image.open(self.root / row["image"]).convert("RGB")
        caption = lavis_caption(row["caption"])
        return {"image": lavis_picture(image), "text_input": caption, "image_id": self.ids[row["image_id"]]}


def lavis(root: Path, workers: int) -> Iterable[Any]:
    """LAVIS' map-style loader: DataLoader with worker processes, default collate."""
    data = LavisDataset(root)
    return torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True)


def web_sample(sample: tuple[Image.Image, str]) -> tuple[torch.Tensor, str]:
    """A webdataset sample through LAVIS' processors."""
    return lavis_picture(sample[0]), lavis_caption(sample[1])


def web(root: Path, workers: int) -> Iterable[Any]:
    """webdataset as LAVIS uses it for Laion: tar, shuffle buffer, Pillow, DataLoader."""
    import webdataset as wds

    data = wds.WebDataset([str(root / "00000.tar")] * workers, shardshuffle=False).shuffle(1000).decode("pilrgb")
    samples = data.to_tuple("jpg", "txt").map(web_sample).with_epoch(len_of(root) // workers)
    return torch.utils.data.DataLoader(samples, BATCH, num_workers=workers, drop_last=True)


def ours(root: Path, workers: int, images: str = "coco/images", normalise: bool = False) -> Any:
    """Our mixture over one captioning data set."""
    from lavis_ext.common.config import schema
    from lavis_ext.datasets.builders import BuildContext, build_datasets
    from lavis_ext.datasets.collate import to_device
    from lavis_ext.datasets.mixture import Mixture

    picture = schema.ProcessorConfig(name="blip2_image_train", args={"image_size": SIZE})
    files = {"train": schema.AnnotationConfig(storage=["coco/annotations/train.json"])}
    config = schema.DatasetConfig(
        name="coco",
        builder="image_caption",
        build_info=schema.BuildInfo(annotations=files, images=schema.ImagesConfig(storage=images)),
        vis_processor=schema.ProcessorPair(train=picture),
        text_processor=schema.ProcessorPair(train=schema.ProcessorConfig(name="blip_caption")),
    )
    built = build_datasets(config, BuildContext(root))
    mix = Mixture({"coco": built["train"]}, batch_size=BATCH, num_workers=workers, drop_last=True)
    return (to_device(batch, "cpu", mix.normalizer) for batch in mix) if normalise else mix


def len_of(root: Path) -> int:
    """Samples in the world."""
    return len(json.loads((root / "coco" / "annotations" / "train.json").read_text()))


CONTENDERS = {
    "LAVIS' loader (Pillow, worker processes, float32)": lavis,
    "webdataset (Pillow, worker processes, float32)": web,
    "ours: threads, uint8 batches": ours,
    "ours: threads, uint8, from a kept zip": lambda root, n: ours(root, n, images="zipped"),
    "ours: threads, normalised to float32 in the main thread": lambda root, n: ours(root, n, normalise=True),
}


# --- measuring -----------------------------------------------------------------------------------------------------


def measure(name: str, root: Path, workers: int) -> dict[str, float]:
    """One epoch of a contender: samples a second after the first batch, seconds to it, CPU seconds, private memory."""
    import lavis_ext.datasets.builders  # imports are not what is measured

    assert lavis_ext.datasets.builders
    torch.set_num_threads(1)
    before = cpu_seconds()
    start = time.perf_counter()
    batches = iter(CONTENDERS[name](root, workers))
    next(batches)
    first = time.perf_counter()
    count = sum(BATCH for _ in batches)
    seconds = time.perf_counter() - first
    del batches
    cpu = cpu_seconds() - before
    return {"rate": count / seconds, "first": first - start, "cpu_ms": 1000 * cpu / (count + BATCH)}


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def annotations(kind: str, path: Path) -> dict[str, float]:
    """Seconds until 566,747 rows can be read, rows a second, and private memory once all were read."""
    from lavis_ext.datasets.readers.annotations import Annotations

    before = private_mb()
    start = time.perf_counter()
    if kind == "json":
        rows: Any = json.loads(path.read_text())
        for number, row in enumerate(rows):
            row["instance_id"] = str(number)
    else:
        rows = Annotations([path])
    ready = time.perf_counter()
    letters = sum(len(rows[i]["caption"]) for i in range(len(rows)))
    assert letters
    return {"ready": ready - start, "rate": len(rows) / (time.perf_counter() - ready), "private": private_mb() - before}


def private_mb() -> float:
    """Memory of this process that no other can share."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def write_rows(path: Path) -> None:
    """Rows in the number and shape of the Karpathy training file."""
    names = [f"val2014/COCO_val2014_{n:012d}.jpg" for n in range(113_350)]
    rows = [
        {"caption": f"A man number {n} rides a horse.", "image": names[n // 5], "image_id": f"coco_{n // 5}"}
        for n in range(566_747)
    ]
    path.write_text(json.dumps(rows))


def child(*words: str) -> dict[str, float]:
    """Run this file as a process of its own and take its JSON."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: median(run[key] for run in runs) for key in runs[0]}


def ratios(runs: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, float]:
    """How much faster, and cheaper in CPU time, than the base of the same round: medians over the rounds."""
    pairs = list(zip(runs, base, strict=True))
    faster = median(run["rate"] / other["rate"] for run, other in pairs)
    return {"faster": faster, "cheaper": median(other["cpu_ms"] / run["cpu_ms"] for run, other in pairs)}


def loader_table(root: Path, rounds: int, workers: int) -> list[str]:
    """Every contender in turn, `rounds` times; a Markdown table of medians."""
    names = [name for name in CONTENDERS if "webdataset" not in name or has_webdataset()]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            runs[name].append(child("--measure", name, "--root", str(root), "--workers", str(workers)))
            print(f"round {number + 1}: {name}: {runs[name][-1]['rate']:.0f} samples/s", file=sys.stderr)
    results = {name: medians(found) | ratios(found, runs[names[0]]) for name, found in runs.items()}
    lines = ["| loader | samples/s | ratio | CPU ms a sample | ratio | first batch s |", "|---|---|---|---|---|---|"]
    for name, r in results.items():
        speed = f"{r['rate']:.0f} | {r['faster']:.2f}"
        cpu = f"{r['cpu_ms']:.2f} | {r['cheaper']:.2f}"
        lines.append(f"| {name} | {speed} | {cpu} | {r['first']:.2f} |")
    return lines


def annotation_table(folder: Path, rounds: int) -> list[str]:
    """json.load beside the mapped copy, interleaved; a Markdown table of medians."""
    path = folder / "rows.json"
    write_rows(path)
    once = child("--annotations", "arrow", "--root", str(path))
    runs: dict[str, list[dict[str, float]]] = {"json": [], "arrow": []}
    for _ in range(rounds):
        for kind, found in runs.items():
            found.append(child("--annotations", kind, "--root", str(path)))
    lines = ["| 566,747 rows | ready s | rows/s, one process | private MB after reading all |", "|---|---|---|---|"]
    named = {"json.load, list of dicts (LAVIS)": medians(runs["json"]), "mapped copy": medians(runs["arrow"])}
    for name, r in {**named, "mapped copy, first time (written then)": once}.items():
        lines.append(f"| {name} | {r['ready']:.4f} | {r['rate']:,.0f} | {r['private']:.0f} |")
    return lines


def has_webdataset() -> bool:
    """Whether webdataset is installed."""
    from importlib.util import find_spec

    return find_spec("webdataset") is not None


def main() -> None:
    """Measure all and write the report, or be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of JPEGs to take parts of; default: drawn pictures")
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    for hidden in ("--measure", "--annotations", "--root"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, Path(args.root), args.workers)))
    elif args.annotations:
        print(json.dumps(annotations(args.annotations, Path(args.root))))
    else:
        report(args)


def report(args: argparse.Namespace) -> None:
    """Write `loader.md`."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        write_world(root, args.pictures, args.images)
        loaders = loader_table(root, args.rounds, args.workers)
        rows = annotation_table(Path(folder), args.rounds)
    what = f"{args.pictures} {'photographs' if args.images else 'drawn pictures'}, 640 x 480, quality 90"
    load = f"load of the machine {os.getloadavg()[1]:.1f}"
    where = f"{os.cpu_count()} cores ({platform.machine()}), {load}, torch {torch.__version__}"
    text = [
        "# Loader",
        "",
        f"`python benchmarks/loader.py`: {what}, {CAPTIONS} captions each, batches of {BATCH}, {args.workers} workers,",
        f"medians of {args.rounds} interleaved runs; {where}.",
        "Ratios are to LAVIS' way in the same round: times the samples a second, and times less CPU a sample.",
        "",
        *loaders,
        "",
        *rows,
        "",
    ]
    REPORT.write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
