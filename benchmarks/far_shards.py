"""Shards that lie 30 ms away behind a line of 200 MB/s, read and decoded, beside the disk and beside peers.

    python benchmarks/far_shards.py write FOLDER SHARDS SAMPLES [mds]
    python benchmarks/far_shards.py measure FOLDER BASE-URL SHARDS NAME

A loopback server in a process of its own waits before each answer, and all its connections share the line. The rate is
of samples after the first shard, each read whole and its picture decoded, in one thread; memory is the process's own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.harness import Contender, Scene, child
from benchmarks.loader import jpegs
from benchmarks.machine import peak_memory
from benchmarks.peers import MissingPeer, peer_python

LATENCY, RATE, PIECE = 0.03, 200e6, 1 << 17
SCRIPT = "benchmarks/far_shards.py"


def main(words: Sequence[str]) -> None:
    """One of the two commands."""
    what, folder, *rest = words
    if what == "write":
        write(Path(folder), int(rest[0]), int(rest[1]), mds="mds" in rest)
        print("{}")
        return
    base, shards, name = rest
    samples = json.loads((Path(folder) / "told.json").read_text())["samples"]
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        found = READERS[name](Path(folder), base, int(shards), Path(cache))
        print(json.dumps(rated(found, samples)))


def write(folder: Path, shards: int, samples: int, mds: bool) -> None:
    """Shards of photographs drawn once and repeated, with a JSON each and manifests; the same in mosaicml's form."""
    pictures = list(jpegs(64, None, (640, 480)))
    (folder / "shards").mkdir(parents=True)
    (folder / "told.json").write_text(json.dumps({"samples": samples}))
    for number in range(shards):
        path = folder / f"shards/{number:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for index in range(samples):
                key = f"{number:05d}{index:04d}"
                members = {"jpg": pictures[index % 64], "json": json.dumps({"caption": key}).encode()}
                for kind, data in members.items():
                    info = tarfile.TarInfo(f"{key}.{kind}")
                    info.size = len(data)
                    with tempfile.SpooledTemporaryFile(1 << 24) as file:
                        file.write(data)
                        file.seek(0)
                        archive.addfile(info, file)
        told = {"samples": samples, "bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
        path.with_name(f"{number:05d}.manifest.json").write_text(json.dumps(told))
    if mds:
        columns = {"jpg": "bytes", "json": "json"}
        size = sum(map(len, pictures)) // 64 * samples
        with mosaicml().MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=size) as out:
            for number in range(shards * samples):
                out.write({"jpg": pictures[number % 64], "json": {"caption": f"{number:09d}"}})


# --- the ways to read, each an iterator of encoded pictures -----------------------------------------------------------


def ours(storage: str, root: Path) -> Iterator[bytes]:
    """Our stream of a pattern, with a cache of a few shards."""
    from lavis_ext.common.config.schema import BuildInfo, DatasetConfig
    from lavis_ext.datasets.builders import BuildContext, build_datasets
    from lavis_ext.datasets.readers.shards import RawSample

    def opened() -> Iterator[bytes]:  # imports are not what is measured, of nobody
        stream: Any = build_datasets(config, BuildContext(root))["train"]
        for item in stream.iterate(0, 1):
            if isinstance(item, RawSample):
                item.record()
                yield item.read("image")

    args = {"shuffle_buffer": 0, "cache_gb": 0.5, "shards_ahead": 2}
    config = DatasetConfig(
        name="bench", builder="image_text_shards", build_info=BuildInfo(storage=[storage]), args=args
    )
    return opened()


def names_of(shards: int) -> str:
    """The pattern of the shards."""
    return f"{{00000..{shards - 1:05d}}}.tar"


def piped(folder: Path, base: str, shards: int, cache: Path) -> Iterator[bytes]:
    """webdataset through a pipe of curl, which fetches while one decodes, as far as a pipe holds."""
    import webdataset

    names = f"pipe:curl -s -f {base}/shards/{names_of(shards)}"
    return (sample["jpg"] for sample in webdataset.WebDataset(names, shardshuffle=False) if sample["json"])


def mosaicml() -> Any:
    """mosaicml-streaming; it imports torchvision, which wants two operators beside a torch for the CPU."""
    import torch

    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import streaming

    return streaming


def mosaic(folder: Path, base: str, shards: int, cache: Path) -> Iterator[bytes]:
    """mosaicml-streaming, in order, which fetches ahead what eight batches need."""
    # it reads no https: the line answers boto3 as a bucket does
    os.environ.update(S3_ENDPOINT_URL=base, AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_REGION="us-east-1")
    data = mosaicml().StreamingDataset(remote="s3://mds", local=str(cache / "mds"), shuffle=False, batch_size=64)
    return (sample["jpg"] for sample in data if sample["json"])


READERS: dict[str, Any] = {
    "ours": lambda folder, base, shards, cache: ours(f"{base}/shards/{names_of(shards)}", cache),
    "ours, the disk": lambda folder, base, shards, cache: ours(f"shards/{names_of(shards)}", folder),
    "webdataset, curl": piped,
    "mosaicml-streaming": mosaic,
}


def rated(pictures: Iterator[bytes], samples: int) -> dict[str, float]:
    """Samples a second after the first shard, each decoded; seconds until the first, and this process's figures."""
    from lavis_ext.datasets.readers.decode import decode_rgb

    begun = since = time.perf_counter()
    first, count, before = 0.0, 0, cpu_seconds()
    for count, data in enumerate(pictures, 1):
        decode_rgb(data)
        if count == 1:
            first = time.perf_counter() - begun
        if count == samples:
            since, before = time.perf_counter(), cpu_seconds()
    wall, cpu = time.perf_counter() - since, cpu_seconds() - before
    return {"rate": (count - samples) / wall, "wall": wall, "first": first, "cpu": cpu, "memory": peak_memory()}


def cpu_seconds() -> float:
    """Of this process, and of children that have ended (curl)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


# --- the line ---------------------------------------------------------------------------------------------------------


@contextmanager
def line(folder: Path) -> Iterator[tuple[str, Any]]:
    """A server of a folder behind the line: its address, and how many bytes of bodies it has sent (`.value`)."""
    context = multiprocessing.get_context("spawn")
    addresses, sent = context.Queue(), context.Value("q", 0)
    process = context.Process(target=serve, args=(folder, addresses, sent), daemon=True)
    process.start()
    try:
        yield addresses.get(timeout=60), sent
    finally:
        process.kill()
        process.join()


def serve(folder: Path, addresses: Any, sent: Any) -> None:
    """Serve a folder for ever: `LATENCY` before each answer, `RATE` bytes a second over all connections."""
    from lavis_ext.demo.mirror import FileHandler, MirrorServer

    lock, free = Lock(), [0.0]

    class Far(FileHandler):
        def _answer(self, with_body: bool) -> None:
            time.sleep(LATENCY)
            super()._answer(with_body)

        def _send(self, path: Path, part: range) -> None:
            for start in range(part.start, part.stop, PIECE):
                piece = range(start, min(part.stop, start + PIECE))
                with lock:  # this piece's turn on the line
                    free[0] = max(free[0], time.monotonic()) + len(piece) / RATE
                    turn = free[0]
                    sent.value += len(piece)
                time.sleep(max(0.0, turn - time.monotonic()))
                super()._send(path, piece)

    server = MirrorServer(folder, 0)
    server.RequestHandlerClass = Far
    addresses.put(f"http://127.0.0.1:{server.server_address[1]}")
    server.serve_forever()


@contextmanager
def far(scene: Scene, shards: int, samples: int, names: Sequence[str], more: int = 0) -> Iterator[Sequence[Contender]]:
    """Contenders over shards of that many samples; with `more`, ours over that many shards instead of all too."""
    folder = scene.folder / "far"
    if scene.quick:
        shards, samples = max(2, shards // 4), 40
    words = [SCRIPT, "write", str(folder), str(shards), str(samples)]
    try:
        child([*words, "mds"], peer_python("mosaicml")) if "mosaicml-streaming" in names else child(words)
    except MissingPeer:  # it is named when its turn comes
        shutil.rmtree(folder, ignore_errors=True)
        child(words)
    with line(folder) as (base, _):

        def run(name: str, count: int) -> dict[str, float]:
            way = name.partition(", ten")[0]
            words = [SCRIPT, "measure", str(folder), base, str(count), way]
            return child(words, peer_python("mosaicml") if way == "mosaicml-streaming" else sys.executable)

        few = max(2, shards // more) if more else shards
        yield [Contender(name, partial(run, name, shards if "ten" in name else few)) for name in names]
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
