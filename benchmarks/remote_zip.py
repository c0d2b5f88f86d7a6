"""A hundred samples out of a zip of 13 GB that lies 30 ms away, beside a request for each single picture: P6.

    python benchmarks/remote_zip.py FOLDER BASE-URL    FiftyOne's way

The zip is train2014's: as many members of as many bytes, with its whole directory and the members that are asked for;
the others are holes. One archive, so that the other one of COCO holds nothing and is not asked.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.dummy import Pool
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from benchmarks.far_shards import line
from benchmarks.harness import Contender, Figures, Scene, child
from benchmarks.prepared_coco import TRAIN2014, measure
from lavis_ext.common.config.cards import load_cards
from lavis_ext.demo.mirror import MirrorWriter, mirror_key

SAMPLES, WHOLE = 100, 13_510_573_713


def member(number: int) -> str:
    """The name of a picture."""
    return f"COCO_train2014_{number:012d}.jpg"


def make_mirror(folder: Path, count: int) -> tuple[int, int]:
    """A mirror of the zip, of annotations that name samples all over it, and those pictures one by one.

    Returns the bytes of their members, and of the zip's directory.
    """
    card, mirror, chance = load_cards().families["coco"].artifacts, MirrorWriter(folder), random.Random(7)
    chosen = set(range(0, count, max(1, count // SAMPLES))[:SAMPLES])
    path = folder / mirror_key(card["train2014"].url)
    path.parent.mkdir(parents=True)
    (folder / "single").mkdir()
    asked, each = 0, WHOLE // TRAIN2014
    with path.open("w+b") as file, ZipFile(file, "w") as archive:
        for number in range(count):
            info = ZipInfo(f"train2014/{member(number)}")
            if number in chosen:
                data = b"\xff\xd8\xff\xe0" + chance.randbytes(chance.randrange(each // 2, each * 3 // 2))
                archive.writestr(info, data)
                (folder / "single" / member(number)).write_bytes(data)
                asked += len(data)
            else:  # a hole in the file
                info.header_offset, info.file_size, info.compress_size, info.CRC = archive.start_dir, each, each, 0
                archive.filelist.append(info)
                archive.start_dir += 30 + len(info.filename) + each
        start = archive.start_dir
    size = path.stat().st_size
    # members are compared with the directory: of the whole, which nobody fetches, no hash is asked
    mirror.files[mirror_key(card["train2014"].url)] = {"size": size, "sha256": "0" * 64}
    mirror.add_zip(card["val2014"].url, [("val2014/", b"")])
    rows = [{"caption": "a", "image": f"train2014/{member(n)}", "image_id": f"coco_{n}"} for n in sorted(chosen)]
    mirror.add_json(card["karpathy_train"].url, rows)
    mirror.finish()
    return asked, size - start


def fiftyone(folder: Path, base: str) -> None:
    """FiftyOne's `_download_images`: threads, one a core, and a session of requests for each picture."""
    import requests

    names = json.loads((folder / "names.json").read_text())
    (folder / "out").mkdir()

    def fetch(name: str) -> None:
        with requests.Session() as session, session.get(f"{base}/single/{name}", stream=True) as reply:
            reply.raise_for_status()
            with (folder / "out" / name).open("wb") as file:
                for data in reply.iter_content(1 << 16):
                    file.write(data)

    begun = time.perf_counter()
    with Pool(os.cpu_count()) as pool:
        list(pool.imap_unordered(fetch, names))
    print(json.dumps({"wall": time.perf_counter() - begun}))


@contextmanager
def samples(scene: Scene) -> Iterator[Sequence[Contender]]:
    """Ours as a user starts it, with records and the start of Python; FiftyOne's way without its start."""
    folder, mirror = scene.folder / "zip", scene.folder / "zip/mirror"
    asked, directory = make_mirror(mirror, TRAIN2014 // 40 if scene.quick else TRAIN2014)
    names = sorted(path.name for path in (mirror / "single").iterdir())
    (folder / "names.json").write_text(json.dumps(names))
    with line(mirror) as (base, sent):

        def counted(run: Any, there: Path) -> Figures:
            before = sent.value
            found = run()
            if any((there / n).read_bytes() != (mirror / "single" / n).read_bytes() for n in names):
                raise RuntimeError(f"{there}: other bytes")
            moved = sent.value - before
            shutil.rmtree(folder / "out")
            return {**found, "bytes": moved / asked, "all": moved / (asked + directory)}

        def ours() -> Figures:
            own = {"LAVIS_EXT_MIRROR": base, "LAVIS_EXT_CACHE_ROOT": str(folder / "out")}
            words = ["-m", "lavis_ext", "prepare", "coco_caption", "--split", "train", "--quiet"]
            wall, cpu, memory = measure([*words, "--max-samples", str(len(names))], {**os.environ, **own})
            return {"wall": wall, "cpu": cpu, "memory": memory}

        def singles() -> Figures:
            return child(["benchmarks/remote_zip.py", str(folder), base])

        yield [
            Contender("ours", lambda: counted(ours, folder / "out/coco/images/train2014")),
            Contender("FiftyOne's way", lambda: counted(singles, folder / "out")),
        ]
    shutil.rmtree(folder)


if __name__ == "__main__":
    fiftyone(Path(sys.argv[1]), sys.argv[2])
