"""COCO at its real size, with thumbnails: what P10 and P12 of `python -m benchmarks` ask for again and unpack.

123,287 pictures in two zips and 566,435 captions to train on come from a folder mirror, as `prepare coco_caption` takes
them. Only `verify --deep` decodes them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.harness import LIMIT, output
from lavis_ext.common.config.cards import load_cards
from lavis_ext.demo.mirror import MirrorWriter

ROOT = Path(__file__).parents[1]
PICTURES, TRAIN2014, HELD_OUT = 123_287, 82_783, 5_000
LOAD = "import lavis_ext; print({k: len(v) for k, v in lavis_ext.load_dataset('coco_caption').items()})"
COMMANDS = {
    "prepare again": ["-m", "lavis_ext", "prepare", "coco_caption", "--quiet"],
    "status": ["-m", "lavis_ext", "status", "coco_caption"],
    "list": ["-m", "lavis_ext", "list"],
    "load_dataset": ["-c", LOAD],
}


def names(count: int) -> list[str]:
    """Pictures as COCO names them: two thirds of them are of train2014."""
    first = count * TRAIN2014 // PICTURES
    folders = ["train2014"] * first + ["val2014"] * (count - first)
    return [f"{folder}/COCO_{folder}_{n:012d}.jpg" for n, folder in enumerate(folders)]


def members(chosen: list[str]) -> Iterator[tuple[str, bytes]]:
    """Each picture with bytes of its own: a small grey JPEG that has its name in a comment."""
    import numpy as np
    from simplejpeg import encode_jpeg

    data = encode_jpeg(np.full((16, 16, 3), 128, np.uint8))
    texts = ((name, name.encode()) for name in chosen)
    return ((n, data[:2] + b"\xff\xfe" + (len(t) + 2).to_bytes(2, "big") + t + data[2:]) for n, t in texts)


def make_mirror(folder: Path, count: int) -> None:
    """A subset mirror of `count` pictures: five captions each to train on, the last of val2014 held out."""
    card, mirror, pictures = load_cards().families["coco"], MirrorWriter(folder), names(count)
    held = min(HELD_OUT, count // 8)
    for name in ("train2014", "val2014"):
        mirror.add_zip(card.artifacts[name].url, members([p for p in pictures if p.startswith(name)]))
    caption = "a small grey square of nothing in particular, number"
    rows = [
        {"caption": f"{caption} {k}", "image": name, "image_id": f"coco_{n}"}
        for n, name in enumerate(pictures[: -2 * held])
        for k in range(5)
    ]
    mirror.add_json(card.artifacts["karpathy_train"].url, rows)
    for split, part in (("val", pictures[-2 * held : -held]), ("test", pictures[-held:])):
        lists = [{"image": name, "caption": [f"{caption} {k}" for k in range(5)]} for name in part]
        mirror.add_json(card.artifacts[f"karpathy_{split}"].url, lists)
    mirror.finish()


SPAWN = """
import json, os, sys, time
begun = time.perf_counter()
quiet = os.open(os.devnull, os.O_WRONLY)
actions = [(os.POSIX_SPAWN_DUP2, quiet, 1), (os.POSIX_SPAWN_DUP2, quiet, 2)]
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=actions)
_, status, usage = os.wait4(child, 0)
wall, cpu = time.perf_counter() - begun, usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), wall, cpu, usage.ru_maxrss / 1024]))
"""


def measure(
    words: Sequence[str], environment: Mapping[str, str], program: str = sys.executable, expected: Sequence[int] = (0,)
) -> tuple[float, float, float]:
    """(seconds, those of the CPU, MB of resident memory) of one process; raises RuntimeError where it fails.

    A small process starts it: what a child has resident counts from what its parent had. It may write its bytecode,
    which peers have from their installation.
    """
    kept = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    starter = [sys.executable, "-I", "-S", "-c", SPAWN, program, *words]
    status, wall, cpu, memory = json.loads(output(starter, LIMIT, env=kept))
    if status not in expected:
        raise RuntimeError(f"{program} {' '.join(words)}: exit code {status}")
    return wall, cpu, memory


def prepared(base: Path, count: int) -> dict[str, str]:
    """The environment of a COCO that is finished below `base`; made where it is not there."""
    own = {"LAVIS_EXT_MIRROR": str(base / "mirror"), "LAVIS_EXT_CACHE_ROOT": str(base / "data")}
    if not (base / "mirror/manifest.json").exists():
        maker = multiprocessing.get_context("spawn").Process(target=make_mirror, args=(base / "mirror", count))
        maker.start()
        maker.join()
    for words in COMMANDS.values():
        measure(words, {**os.environ, **own})  # what is fetched, converted or counted once
    return own
