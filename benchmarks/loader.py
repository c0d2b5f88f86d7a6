"""Pictures and captions from disk to batches, as files and as shards: P1 and P2 of `python -m benchmarks`.

    python benchmarks/loader.py write raw|shards PLACE COUNT [PICTURES]
    python benchmarks/loader.py measure raw|shards PLACE WORKERS CONTENDER

Every contender reads the same JPEGs of quality 90, of 640 x 480 or with a shorter side of 256, crops and flips at
random to 224 pixels and gives batches of 64 with captions. Each runs in a process of its own, whose last line is its
figures.
"""

from __future__ import annotations

import json
import math
import random
import resource
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

SIZE, BATCH, CAPTIONS = 224, 64, 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PER_SHARD = 512


# --- what is read --------------------------------------------------------------------------------------------------


def write_world(root: Path, pictures: int, source: Path | None, small: bool) -> None:
    """The same pictures as a flat folder, COCO's folder, a zip and tars, and their captions as each form has them."""
    folder = root / "coco" / "images" / "val2014"
    for made in (folder, root / "coco" / "annotations", root / "zipped", root / "flat", root / "tars"):
        made.mkdir(parents=True)
    rows: list[dict[str, str]] = []
    lines: list[str] = []
    shard: tarfile.TarFile | None = None
    with zipfile.ZipFile(root / "zipped" / "val2014.zip", "w") as packed:
        for number, data in enumerate(jpegs(pictures, source, (341, 256) if small else (640, 480))):
            name = f"val2014/COCO_val2014_{number:012d}.jpg"
            (folder.parent / name).write_bytes(data)
            packed.writestr(name, data)
            if number % PER_SHARD == 0:
                if shard is not None:
                    shard.close()
                shard = tarfile.open(root / "tars" / f"{number // PER_SHARD:05d}.tar", "w")  # noqa: SIM115
            for k in range(1 if small else CAPTIONS):
                caption = f"A picture of number {number}, told for the {k}th time."
                rows.append({"caption": caption, "image": name, "image_id": f"coco_{number}"})
                flat = f"{number:06d}-{k}"
                (root / "flat" / f"{flat}.jpg").hardlink_to(folder.parent / name)
                lines.append(json.dumps({"file_name": f"{flat}.jpg", "text": caption}))
                assert shard is not None
                add_member(shard, f"{flat}.jpg", data)
                add_member(shard, f"{flat}.txt", caption.encode())
                add_member(shard, f"{flat}.json", json.dumps({"caption": caption, "key": flat}).encode())
    assert shard is not None
    shard.close()
    (root / "flat" / "metadata.jsonl").write_text("\n".join(lines))
    (root / "coco" / "annotations" / "train.json").write_text(json.dumps(rows))


def jpegs(count: int, source: Path | None, size: tuple[int, int]) -> Iterator[bytes]:
    """JPEGs of quality 90 and one size: parts of the pictures in `source`, else drawn."""
    files = sorted(source.glob("*.jpg")) if source else []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = part_of(Image.open(files[number % len(files)]).convert("RGB"), rng) if files else drawn(rng)
        buffer = BytesIO()
        image = image if image.size == size else image.resize(size, Image.BICUBIC)
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
    """webdataset as LAVIS uses it for Laion: tars, shuffle buffer, Pillow, DataLoader."""
    import webdataset as wds

    shards = [str(path) for path in sorted(root.glob("tars/*.tar"))]
    shards = shards if len(shards) >= workers else shards * workers
    data = wds.WebDataset(shards, shardshuffle=False).shuffle(1000).decode("pilrgb")
    samples = data.to_tuple("jpg", "txt").map(web_sample).with_epoch(len_of(root) // workers)
    return torch.utils.data.DataLoader(samples, BATCH, num_workers=workers, drop_last=True)


def collated(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples of a peer's format, decoded by it or encoded still, as a batch."""
    pictures = [one["image"] for one in samples]
    opened = [one if isinstance(one, Image.Image) else Image.open(BytesIO(one)) for one in pictures]
    stacked = torch.stack([lavis_picture(one.convert("RGB")) for one in opened])
    return {"image": stacked, "text_input": [lavis_caption(one["text"]) for one in samples]}


def hugging_face(root: Path, workers: int, form: str) -> Iterable[Any]:
    """HF datasets: a folder of pictures with `metadata.jsonl`, or the same as Arrow."""
    from datasets import load_dataset, load_from_disk

    data: Any
    if form == "folder":
        data = load_dataset("imagefolder", data_dir=str(root / "flat"), split="train", cache_dir=str(root / "hf"))
    else:
        if not (root / "hf-arrow").is_dir():
            hugging_face(root, workers, "folder").dataset.save_to_disk(str(root / "hf-arrow"))  # type: ignore[attr-defined]
        data = load_from_disk(str(root / "hf-arrow"))
    return torch.utils.data.DataLoader(
        data, BATCH, shuffle=True, num_workers=workers, drop_last=True, collate_fn=collated
    )


def mosaic(root: Path, workers: int) -> Iterable[Any]:
    """mosaicml-streaming over shards of its own form, on the disk.

    It imports torchvision, whose build of the registry stops beside a torch for the CPU until these two operators,
    which nobody calls here, are declared.
    """
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from streaming import MDSWriter, StreamingDataset

    if not (root / "mds").is_dir():
        with MDSWriter(out=str(root / "mds"), columns={"image": "bytes", "text": "str"}) as out:
            for data, text in samples_of(root):
                out.write({"image": data, "text": text})
    data = StreamingDataset(local=str(root / "mds"), shuffle=True, batch_size=BATCH)
    return torch.utils.data.DataLoader(data, BATCH, num_workers=workers, drop_last=True, collate_fn=collated)


def lit(root: Path, workers: int) -> Iterable[Any]:
    """litdata over chunks of its own form, on the disk."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.cache import Cache

    if not (root / "lit").is_dir():
        cache = Cache(str(root / "lit"), chunk_bytes="64MB")
        for number, (data, text) in enumerate(samples_of(root)):
            cache[number] = {"image": data, "text": text}
        cache.done()
        cache.merge()
    data = StreamingDataset(str(root / "lit"), shuffle=True, drop_last=True)
    loaded: Iterable[Any] = StreamingDataLoader(
        data, batch_size=BATCH, num_workers=workers, drop_last=True, collate_fn=collated
    )
    return loaded


def nodes(root: Path, workers: int) -> Iterable[Any]:
    """torchdata's nodes: the same rows and Pillow as LAVIS' way, in threads."""
    import torchdata.nodes as tn
    from torch.utils.data import RandomSampler, default_collate

    data = LavisDataset(root)
    samples = tn.ParallelMapper(
        tn.SamplerWrapper(RandomSampler(data)), data.__getitem__, num_workers=workers, method="thread"
    )
    batched = tn.Mapper(tn.Batcher(samples, BATCH, drop_last=True), default_collate)
    loaded: Iterable[Any] = tn.Loader(tn.Prefetcher(batched, prefetch_factor=4))
    return loaded


def energon(root: Path, workers: int) -> Iterable[Any]:
    """megatron-energon over the tars, through LAVIS' processors."""
    import subprocess

    from megatron.energon import (
        CaptioningSample,
        DefaultTaskEncoder,
        SampleDecoder,
        WorkerConfig,
        get_loader,
        get_train_dataset,
    )

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        decoder = SampleDecoder(image_decode="pilrgb")

        def encode_sample(self, sample: Any) -> Any:
            picture = lavis_picture(sample.image)
            return CaptioningSample.derive_from(sample, image=picture, caption=lavis_caption(sample.caption))

    if not (root / "tars" / ".nv-meta").is_dir():
        words = ["prepare", "--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CaptioningSample"]
        words += ["--field-map", '{"image": "jpg", "caption": "txt"}', "--no-progress", str(root / "tars")]
        program = Path(sys.executable).parent / "energon"
        subprocess.run([str(program), *words], check=True, stdout=subprocess.DEVNULL)
    config = WorkerConfig(rank=0, world_size=1, num_workers=workers)
    data = get_train_dataset(
        root / "tars",
        worker_config=config,
        batch_size=BATCH,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
    )
    return islice(get_loader(data), len_of(root) // BATCH)


def samples_of(root: Path) -> Iterator[tuple[bytes, str]]:
    """Each caption with the bytes of its picture."""
    for line in (root / "flat/metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        yield (root / "flat" / row["file_name"]).read_bytes(), row["text"]


def bare(root: Path, workers: int) -> Iterator[None]:
    """libjpeg-turbo alone: every picture decoded whole, in as many threads, and thrown away."""
    import simplejpeg

    held = [data for data, _ in samples_of(root)]
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(held) - BATCH + 1, BATCH):
            for _ in pool.map(simplejpeg.decode_jpeg, held[start : start + BATCH]):
                pass
            yield


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


def our_shards(root: Path, workers: int) -> Any:
    """Our mixture over shards."""
    from lavis_ext.common.config import schema
    from lavis_ext.datasets.builders import BuildContext, build_datasets
    from lavis_ext.datasets.mixture import Mixture

    config = schema.DatasetConfig(
        name="shards",
        builder="image_text_shards",
        build_info=schema.BuildInfo(storage=[str(root / "tars" / "*.tar")]),
        vis_processor=schema.ProcessorPair(
            train=schema.ProcessorConfig(name="blip2_image_train", args={"image_size": SIZE})
        ),
        text_processor=schema.ProcessorPair(train=schema.ProcessorConfig(name="blip_caption")),
    )
    built = build_datasets(config, BuildContext(root))
    mix = Mixture({"shards": built["train"]}, batch_size=BATCH, num_workers=workers)
    return islice(mix, len_of(root) // BATCH)


def len_of(root: Path) -> int:
    """Samples in the world."""
    return sum(1 for _ in (root / "flat/metadata.jsonl").open())


CONTENDERS: dict[str, Callable[[Path, int], Iterable[Any]]] = {
    "ours": ours,
    "ours, from a kept zip": lambda root, n: ours(root, n, images="zipped"),
    "LAVIS": lavis,
    "LAVIS' Laion pipeline, webdataset 0.2": web,
    "webdataset 0.2": web,
    "webdataset 1.0": web,
    "HF datasets, folder": lambda root, n: hugging_face(root, n, "folder"),
    "HF datasets, arrow": lambda root, n: hugging_face(root, n, "arrow"),
    "mosaicml-streaming": mosaic,
    "litdata": lit,
    "torchdata": nodes,
    "megatron-energon": energon,
    "libjpeg-turbo, decoding alone": bare,
}


# --- measuring -----------------------------------------------------------------------------------------------------


def measure(kind: str, name: str, root: Path, workers: int) -> dict[str, float]:
    """One epoch of a contender: samples a second after the first batch, seconds to it, CPU seconds a sample."""
    import lavis_ext.datasets.builders  # imports are not what is measured

    assert lavis_ext.datasets.builders
    torch.set_num_threads(1)
    contender = our_shards if (kind, name) == ("shards", "ours") else CONTENDERS[name]
    made = contender(root, workers)  # a peer's own form is written here, once
    before, start = cpu_seconds(), time.perf_counter()
    if name.startswith("ours"):
        made = contender(root, workers)  # ours opens its files anew, as a peer's loader does with its iterator
    batches = iter(made)
    next(batches)
    first = time.perf_counter()
    count = sum(BATCH for _ in batches)
    seconds = time.perf_counter() - first
    del batches
    return {"rate": count / seconds, "first": first - start, "cpu": (cpu_seconds() - before) / (count + BATCH)}


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main(action: str, kind: str, place: str, number: str, last: str = "") -> None:
    """Write a world, or measure one contender and print its figures."""
    found: dict[str, float] = {}
    if action == "measure":
        found = measure(kind, last, Path(place), int(number))
    else:
        write_world(Path(place), int(number), Path(last) if last else None, kind == "shards")
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
