"""A data set packed into shards, beside tarfile and GNU tar over the same members: P14 of `python -m benchmarks`.

    python benchmarks/packing.py write FOLDER SAMPLES [PICTURES]
    python benchmarks/packing.py measure FOLDER NAME

Ours finds each picture by its annotation, writes its JSON, hashes each shard and each sample, flushes the shards to the
disk and writes manifests. The others find files of pictures and JSON side by side, and flush theirs too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.far_shards import cpu_seconds
from benchmarks.harness import Contender, Scene, child
from benchmarks.loader import jpegs
from benchmarks.machine import peak_memory

SCRIPT, DRAWN, PER_SHARD = "benchmarks/packing.py", 64, 2000


def write(root: Path, samples: int, source: Path | None) -> None:
    """COCO's form, and the same pictures by number beside a JSON each; 64 pictures repeat, each a file of its own."""
    pictures, rows = list(jpegs(DRAWN, source, (640, 480))), []
    for folder in ("coco/images/val2014", "coco/annotations", "flat"):
        (root / folder).mkdir(parents=True)
    for number in range(samples):
        name, key = f"val2014/COCO_val2014_{number:012d}.jpg", f"{number:09d}"
        rows.append({"caption": f"A man number {number}.", "image": name, "image_id": f"coco_{number}"})
        (root / "coco/images" / name).write_bytes(pictures[number % DRAWN])
        (root / f"flat/{key}.jpg").hardlink_to(root / "coco/images" / name)
        record = {"caption": rows[-1]["caption"], "image": name, "key": key, "sample": rows[-1]}
        (root / f"flat/{key}.json").write_text(json.dumps(record))
    (root / "coco/annotations/train.json").write_text(json.dumps(rows))


def ours(root: Path, out: Path, most: int | None = None) -> None:
    """`pack`, without the start of the command."""
    from lavis_ext.common.config import schema
    from lavis_ext.datasets.pack import PackOptions, pack

    files = {"train": schema.AnnotationConfig(storage=["coco/annotations/train.json"])}
    info = schema.BuildInfo(annotations=files, images=schema.ImagesConfig(storage="coco/images"))
    config = schema.DatasetConfig(name="coco", builder="image_caption", build_info=info)
    pack(config, str(out), root, PackOptions(samples_per_shard=PER_SHARD, max_samples=most), lambda _: None)


def tarfile_way(root: Path, out: Path) -> None:
    """Python's tarfile, then the hash of what it wrote."""
    with (out / "a.tar").open("w+b") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path in sorted((root / "flat").iterdir()):
                archive.add(path, path.name)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        hashlib.file_digest(file, "sha256").hexdigest()


def gnu_tar(root: Path, out: Path, hashed: bool) -> None:
    """GNU tar, then sha256sum where it is asked for."""
    words = ["tar", "cf", str(out / "a.tar"), "--format=ustar", "--sort=name", "-C", str(root / "flat"), "."]
    subprocess.run(words, check=True)
    subprocess.run(["sync", str(out / "a.tar")], check=True)
    if hashed:
        subprocess.run(["sha256sum", str(out / "a.tar")], check=True, stdout=subprocess.DEVNULL)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "ours": ours,
    "tarfile and hashlib": tarfile_way,
    "GNU tar and sha256sum": partial(gnu_tar, hashed=True),
    "GNU tar alone": partial(gnu_tar, hashed=False),
}


def measure(root: Path, name: str) -> dict[str, float]:
    """Samples a second, the flush to the disk included; files are in the page cache."""
    count, out = sum(1 for _ in (root / "coco/images/val2014").iterdir()), root / "out"
    if name == "ours":  # imports, and the first conversion of annotations, are not what is measured
        ours(root, out, most=1)
        shutil.rmtree(out)
    out.mkdir()
    os.sync()  # what earlier turns left to be written
    begun, before = time.perf_counter(), cpu_seconds()
    WAYS[name](root, out)
    wall, cpu = time.perf_counter() - begun, cpu_seconds() - before
    shutil.rmtree(out)
    return {"rate": count / wall, "wall": wall, "cpu": cpu, "memory": peak_memory()}


@contextmanager
def packing(scene: Scene, samples: int) -> Iterator[Sequence[Contender]]:
    """All ways over one folder."""
    root = scene.folder / "packing"
    words = [SCRIPT, "write", str(root), str(200 if scene.quick else samples)]
    child([*words, *([str(scene.images)] if scene.images else [])])
    yield [Contender(name, partial(child, [SCRIPT, "measure", str(root), name])) for name in WAYS]
    shutil.rmtree(root)


def main(action: str, place: str, what: str, source: str = "") -> None:
    """One of the two commands."""
    if action == "write":
        write(Path(place), int(what), Path(source) if source else None)
        print("{}")
    else:
        print(json.dumps(measure(Path(place), what)))


if __name__ == "__main__":
    main(*sys.argv[1:])
