"""NoCaps' 15,100 small images: the whole way of `prepare nocaps` against upstream's rate, over 40 ms of latency.

    python -m benchmarks.nocaps [--files 256] [--latency 0.04]

Upstream's script sleeps three seconds after each file in sixteen processes, so 16 / (3 + latency) files a second is the
best that it can do; one process of it is measured on a few files to show that. Ours is one `lavis-ext prepare nocaps`:
lists, images, verification and records, from a loopback server that answers each request after the latency.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from benchmarks.fetch_layer import server
from lavis_ext.common.config.cards import load_cards
from lavis_ext.demo.mirror import MirrorWriter

UPSTREAM_PROCESSES, UPSTREAM_SLEEP = 16, 3.0
HOST = "https://s3.amazonaws.com/open-images-dataset/validation"


def make_mirror(folder: Path, count: int) -> None:
    """A subset mirror: nocaps' two official lists and `count` images of about 90 kB."""
    noise, mirror = random.Random(1), MirrorWriter(folder)
    images = [{"id": i, "coco_url": f"{HOST}/{i:016x}.jpg", "file_name": f"{i:016x}.jpg"} for i in range(count)]
    for image in images:
        mirror.add(str(image["coco_url"]), b"\xff\xd8\xff\xe0" + noise.randbytes(90_000) + b"\xff\xd9")
    for artifact in load_cards().families["nocaps"].artifacts.values():
        if artifact.lists is not None:
            mirror.add_json(
                artifact.url, {"images": images if "val" in artifact.url else images[:1], "annotations": []}
            )
    mirror.finish()


def upstream_seconds(url: str) -> float:
    """What one process of upstream's script needs for a file: the request, then its sleep."""
    started = time.perf_counter()
    with urllib.request.urlopen(url) as reply:
        reply.read()
    time.sleep(UPSTREAM_SLEEP)
    return time.perf_counter() - started


def main() -> None:
    """Measure both and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.04)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        make_mirror(base / "mirror", args.files)
        with server(base / "mirror", args.latency) as url:
            one = upstream_seconds(f"{url}/{HOST.removeprefix('https://')}/{0:016x}.jpg")
            environment = {**os.environ, "LAVIS_EXT_MIRROR": url, "LAVIS_EXT_CACHE_ROOT": str(base / "data")}
            command = [sys.executable, "-m", "lavis_ext", "prepare", "nocaps", "--split", "val", "--quiet", "--json"]
            started = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - started
        there = len(list((base / "data").rglob("*.jpg")))
    if there != args.files:
        raise SystemExit(f"{there} of {args.files} images arrived: {done.stderr}")
    rate, best = there / seconds, UPSTREAM_PROCESSES / one
    print(f"ours {rate:.0f} files/s ({there} files in {seconds:.2f} s, start and records included)")
    print(f"upstream at best {best:.2f} files/s ({one:.2f} s a file in {UPSTREAM_PROCESSES} processes)")
    print(f"ratio {rate / best:.0f}")


if __name__ == "__main__":
    main()
