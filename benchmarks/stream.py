"""Reading shards over http, beside the disk, the warm cache, webdataset through curl, and mosaicml-streaming.

    python benchmarks/stream.py [--shards N] [--megabytes M] [--latency S] [--rate BYTES]

A loopback server in a process of its own answers each request after `latency` seconds and sends at most `rate` bytes a
second a connection. Prints samples a second after the first shard, and the largest resident memory of this process so
far, for a quarter of the shards and for all. curl and mosaicml-streaming (its own MDS shards of the same samples) are
left out where they are not installed.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from lavis_ext.common.config.schema import BuildInfo, DatasetConfig
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.readers.shards import RawSample
from tests.support.server import Fault, Server

PER_SHARD = 500


def write_shards(folder: Path, count: int, megabytes: int) -> None:
    """Shards of `PER_SHARD` samples with a JSON each and bytes in the place of pictures: nothing is decoded here."""
    folder.mkdir(parents=True)
    size = megabytes * 1_000_000 // PER_SHARD
    for number in range(count):
        with tarfile.open(folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for index in range(PER_SHARD):
                key = f"{number:05d}{index:04d}"
                members = {f"{key}.jpg": os.urandom(size), f"{key}.json": json.dumps({"caption": key}).encode()}
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        told = {"samples": PER_SHARD, "bytes": (folder / f"{number:05d}.tar").stat().st_size}
        (folder / f"{number:05d}.manifest.json").write_text(json.dumps(told))


def read(storage: str, root: Path, work: float) -> float:
    """Samples a second after the first shard; `work` seconds are spent on each sample, as a training would."""
    config = DatasetConfig(
        name="bench",
        builder="image_text_shards",
        build_info=BuildInfo(storage=[storage]),
        args={"shuffle_buffer": 0, "cache_gb": 5.0, "shards_ahead": 2},
    )
    stream: Any = build_datasets(config, BuildContext(root))["train"]
    return rate_of((item.read("image") for item in stream.iterate(0, 1) if isinstance(item, RawSample)), work)


def read_webdataset(pattern: str, work: float) -> float:
    """The same through webdataset's pipe and curl."""
    import webdataset

    names = f"pipe:curl -s -f {pattern}"
    return rate_of((sample["jpg"] for sample in webdataset.WebDataset(names, shardshuffle=False)), work)


def write_mds(folder: Path, count: int, megabytes: int) -> None:
    """The same samples in mosaicml-streaming's form, as many a shard."""
    from streaming import MDSWriter

    size = megabytes * 1_000_000 // PER_SHARD
    columns = {"jpg": "bytes", "json": "json"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=megabytes * 1_000_000) as out:
        for number in range(count * PER_SHARD):
            out.write({"jpg": os.urandom(size), "json": {"caption": f"{number:09d}"}})


def read_mds(remote: str, local: Path, work: float) -> float:
    """The same through mosaicml-streaming, in order."""
    from streaming import StreamingDataset

    data = StreamingDataset(remote=remote, local=str(local), shuffle=False, batch_size=1)
    return rate_of((sample["jpg"] for sample in data), work)


def rate_of(items: Iterator[bytes], work: float) -> float:
    """Samples a second from the second shard on."""
    begun, count = 0.0, 0
    for number, _ in enumerate(items):
        if number == PER_SHARD:
            begun = time.perf_counter()
        if number >= PER_SHARD:
            count += 1
        if work:
            time.sleep(work)
    return count / (time.perf_counter() - begun)


def _serve(folder: Path, latency: float, rate: float, addresses: Any, stop: Any) -> None:
    with Server(folder) as server:
        for path in (one for one in folder.rglob("*") if one.is_file()):
            server.script(f"/{path.relative_to(folder)}", Fault(latency=latency, rate=rate))
        addresses.put(server.base)
        stop.wait()


@contextmanager
def serving(folder: Path, latency: float, rate: float) -> Iterator[str]:
    """The address of a server of a folder, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    addresses, stop = context.Queue(), context.Event()
    process = context.Process(target=_serve, args=(folder, latency, rate, addresses, stop))
    process.start()
    try:
        yield addresses.get(timeout=60)
    finally:
        stop.set()
        process.join()


def main() -> None:
    """Run, and print a line a way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=50, help="a shard")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds a request")
    parser.add_argument("--rate", type=float, default=200e6, help="bytes a second a connection")
    parser.add_argument("--work", type=float, default=0.004, help="seconds that are spent on each sample")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stream-"))
    try:
        write_shards(folder / "disk/shards", args.shards, args.megabytes)
        counts = (max(2, args.shards // 4), args.shards)
        mosaic = find_spec("streaming") is not None
        for count in counts if mosaic else ():
            write_mds(folder / f"disk/mds{count}", count, args.megabytes)
        with serving(folder / "disk", args.latency, args.rate) as base:
            for shards in counts:
                names = f"{{00000..{shards - 1:05d}}}.tar"
                rates = {
                    "disk": read(f"shards/{names}", folder / "disk", args.work),
                    "https": read(f"{base}/shards/{names}", folder / f"cache{shards}", args.work),
                }
                rates["https, cached"] = read(f"{base}/shards/{names}", folder / f"cache{shards}", args.work)
                if shutil.which("curl"):
                    rates["webdataset, curl"] = read_webdataset(f"{base}/shards/{names}", args.work)
                if mosaic:
                    local = folder / f"mosaic{shards}"
                    rates["mosaicml-streaming"] = read_mds(f"{base}/mds{shards}", local, args.work)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                for name, rate in rates.items():
                    share = rate / rates["disk"]
                    print(f"{shards} shards  {name:18} {rate:8.0f} samples/s  {share:5.2f} of disk  {memory} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
