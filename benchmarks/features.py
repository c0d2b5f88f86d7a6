"""Region features from disk into batches: the native store beside Oscar's TSV, volta's pickled LMDB and h5py.

    python benchmarks/features.py [--images 5000] [--reads 3000] [--rounds 3] [--quick]

The same rows of 10 to 50 boxes are read at random, each copied as float32 into its place in a batch of 64. All readers
run in one process on one core, interleaved, with the files in the page cache; medians are compared. Oscar's and volta's
ways are written here as their code does it. Also timed: the import of the TSV beside decoding its base64 alone, and the
memory that four workers add. Writes `features.md`.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import pickle
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import lmdb
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from lavis_ext.features import import_features, open_store
from lavis_ext.features.formats.lines import write_lineidx

COLUMNS, MOST, BATCH = 2054, 50, 64
REPORT = Path(__file__).with_suffix(".md")
Read = Callable[[int, np.ndarray], None]


# --- what is read --------------------------------------------------------------------------------------------------


def images(count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and features [10 to 50, 2054]: rows cut from one block of random numbers, which takes no time to make."""
    rng = np.random.default_rng(0)
    block = np.maximum(rng.standard_normal((400, COLUMNS), np.float32), 0)
    block[:, 2048:] = rng.random((400, 6), np.float32)
    for number in range(count):
        begin, size = int(rng.integers(0, 350)), int(rng.integers(10, MOST + 1))
        yield str(number), block[begin : begin + size]


def write_tsv(path: Path, count: int) -> None:
    """Oscar's three columns."""
    with path.open("wb") as file:
        for image_id, features in images(count):
            file.write(b"%s\t%d\t%s\n" % (image_id.encode(), len(features), base64.b64encode(features.tobytes())))
    write_lineidx(path)


def write_lmdb(path: Path, count: int) -> None:
    """volta's rows: a pickled dict of text, the columns that its reader does not use left out, in its favour."""
    with lmdb.open(str(path), map_size=1 << 40) as environment, environment.begin(write=True) as writing:
        for image_id, features in images(count):
            boxes = np.zeros((len(features), 4), np.float32)
            row = {"img_id": image_id, "img_h": "480", "img_w": "640", "num_boxes": str(len(features))}
            row |= {"boxes": base64.b64encode(boxes).decode(), "features": base64.b64encode(features[:]).decode()}
            writing.put(image_id.encode(), pickle.dumps(row))
        writing.put(b"keys", pickle.dumps([str(n).encode() for n in range(count)]))


def write_hdf5(path: Path, count: int) -> None:
    """The adaptive form of bottom-up attention: the boxes of all images in one array, and where each image's lie."""
    ends = np.cumsum([len(features) for _, features in images(count)])
    places = np.stack([ends - np.diff(ends, prepend=0), ends], axis=1)
    with h5py.File(path, "w") as file:
        file["pos_boxes"] = places
        rows = file.create_dataset("image_features", (int(ends[-1]), COLUMNS), np.float32)
        for (start, stop), (_, features) in zip(places, images(count), strict=True):
            rows[start:stop] = features


# --- who reads -----------------------------------------------------------------------------------------------------


def oscar(path: Path) -> Read:
    """Oscar's TSVFile: offsets in a list, text, seek, split, base64 decoded, reshaped."""
    with path.with_suffix(".lineidx").open() as index:
        offsets = [int(line.strip()) for line in index]
    file = path.open("r")

    def read(number: int, out: np.ndarray) -> None:
        file.seek(offsets[number])
        row = [cell.strip() for cell in file.readline().split("\t")]
        count = int(row[1])
        out[:count] = np.frombuffer(base64.b64decode(row[-1]), np.float32).reshape(count, -1)
        out[count:] = 0

    return read


def volta(path: Path) -> Read:
    """volta's reader: one transaction a row, the pickled dict, base64 decoded, reshaped."""
    environment = lmdb.open(str(path), max_readers=1, readonly=True, lock=False, readahead=False, meminit=False)
    with environment.begin() as reading:
        keys = pickle.loads(reading.get(b"keys"))

    def read(number: int, out: np.ndarray) -> None:
        with environment.begin(write=False) as reading:
            item = pickle.loads(reading.get(keys[number]))
        count = int(item["num_boxes"])
        out[:count] = np.frombuffer(base64.b64decode(item["features"]), np.float32).reshape(count, -1)
        out[count:] = 0

    return read


def hdf5(path: Path) -> Read:
    """A slice of the array of all boxes."""
    file = h5py.File(path, "r")
    places, rows = file["pos_boxes"][()], file["image_features"]

    def read(number: int, out: np.ndarray) -> None:
        start, stop = places[number]
        count = int(stop - start)
        out[:count] = rows[start:stop]
        out[count:] = 0

    return read


def native(path: Path) -> Read:
    """The store, by id."""
    store = open_store(path)

    def read(number: int, out: np.ndarray) -> None:
        store.read_into(str(number), out)

    return read


# --- the clock -----------------------------------------------------------------------------------------------------


def rate(read: Read, order: np.ndarray) -> float:
    """Rows a second into a batch that is used again."""
    batch = np.zeros((BATCH, MOST, COLUMNS), np.float32)
    begin = time.perf_counter()
    for place, number in enumerate(order):
        read(int(number), batch[place % BATCH])
    return len(order) / (time.perf_counter() - begin)


def decode_rate(path: Path) -> float:
    """Seconds that one core needs to decode the base64 of all rows, and nothing else (the rows are in memory)."""
    total = 0.0
    with path.open("rb") as file:
        for line in file:
            text = line.rpartition(b"\t")[2].rstrip(b"\n")
            begin = time.perf_counter()
            base64.b64decode(text)
            total += time.perf_counter() - begin
    return total


def timed_import(path: Path, store: Path, dtype: str) -> float:
    """Seconds of an import into a new store, its flush to the disk included."""
    shutil.rmtree(store, ignore_errors=True)
    os.sync()  # what earlier rounds left to be written is not ours
    begin = time.perf_counter()
    done = import_features([path], store, dtype=dtype)
    assert not done.faults
    return time.perf_counter() - begin


# --- memory --------------------------------------------------------------------------------------------------------


def pss(pid: int) -> int:
    """Kilobytes of a process, pages that it shares counted by their share."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def touch(store: Any, count: int, ready: Any, leave: Any) -> None:
    """A worker that reads `count` rows of a store it was handed, then waits to be weighed."""
    torch.set_num_threads(1)
    out = np.zeros((MOST, COLUMNS), np.float32)
    for number in range(count):
        store.read_into(str(number), out)
    ready.release()
    leave.wait()


def weigh(store: Any, count: int) -> int:
    """Kilobytes of this process and four spawned workers that have read all rows."""
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Semaphore(0), context.Event()
    workers = [context.Process(target=touch, args=(store, count, ready, leave)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    total = sum(pss(pid) for pid in [os.getpid(), *(w.pid or 0 for w in workers)])
    leave.set()
    for worker in workers:
        worker.join()
    return total


def memory(path: Path, count: int) -> tuple[int, int]:
    """Kilobytes for one process that reads all rows, and what four workers that read them all add to it.

    What four workers weigh that read one row is taken off: that is Python's and the libraries'.
    """
    store = open_store(path)
    out = np.zeros((MOST, COLUMNS), np.float32)
    for number in range(count):
        store.read_into(str(number), out)
    alone = pss(os.getpid())
    return alone, weigh(store, count) - weigh(store, 1)


def apart(path: Path, count: int) -> tuple[int, int]:
    """`memory` in a fresh process, where nothing else is mapped."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(memory, path, count).result()


# --- the report ----------------------------------------------------------------------------------------------------


def size_of(path: Path) -> int:
    """Bytes on the disk, holes left out."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(min(p.stat().st_size, p.stat().st_blocks * 512) for p in files)


def measure(folder: Path, count: int, reads: int, rounds: int, weighing: bool) -> dict[str, Any]:
    """All figures of one run; memory takes a minute, in which processes start."""
    tsv = folder / "features.tsv"
    write_tsv(tsv, count)
    write_lmdb(folder / "volta.lmdb", count)
    write_hdf5(folder / "boxes.hdf5", count)
    imports: dict[str, list[float]] = {"float32": [], "float16": [], "decode": []}
    for _ in range(rounds):
        imports["decode"].append(decode_rate(tsv))
        for dtype in ("float32", "float16"):
            imports[dtype].append(timed_import(tsv, folder / dtype, dtype))
    # Before this process maps the files too: it would take a share of every page.
    weighed = {dtype: apart(folder / dtype, count) for dtype in ("float32", "float16") if weighing}
    readers = {
        "Oscar's TSV and lineidx": oscar(tsv),
        "volta's pickled LMDB": volta(folder / "volta.lmdb"),
        "h5py": hdf5(folder / "boxes.hdf5"),
        "native, float32": native(folder / "float32"),
        "native, float16": native(folder / "float16"),
    }
    places = [tsv, *(folder / name for name in ("volta.lmdb", "boxes.hdf5", "float32", "float16"))]
    rng = np.random.default_rng(1)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds + 1):
        order = rng.integers(0, count, reads)
        for name, read in readers.items():
            rates[name].append(rate(read, order))
    return {
        "rates": {name: median(found[1:]) for name, found in rates.items()},  # the first round warms up
        "bytes": dict(zip(readers, map(size_of, places), strict=True)),
        "imports": {name: median(found) for name, found in imports.items()},
        "memory": weighed,
    }


def report(found: dict[str, Any], args: argparse.Namespace) -> str:
    """The page."""
    rates, sizes, imports = found["rates"], found["bytes"], found["imports"]
    first, second = list(rates)[:2]
    load = os.getloadavg()[0]
    lines = [
        "# Region features",
        "",
        f"`python benchmarks/features.py`: {args.images} images of 10 to 50 boxes × {COLUMNS}, {args.reads} rows at",
        f"random into batches of {BATCH} × {MOST} × {COLUMNS} float32, one core, files in the page cache, medians of",
        f"{args.rounds} interleaved rounds; {os.cpu_count()} cores ({platform.machine()}), "
        f"load of the machine {load:.1f}, Python {platform.python_version()}, "
        f"numpy {np.__version__}, torch {torch.__version__}.",
        "",
        "| reader | rows/s | to Oscar's | to volta's | bytes | to the TSV's |",
        "|---|---|---|---|---|---|",
    ]
    for name, value in rates.items():
        ratios = f"{value / rates[first]:.1f} | {value / rates[second]:.1f}"
        lines.append(
            f"| {name} | {value:,.0f} | {ratios} | {sizes[name] / 1e9:.2f} GB | {sizes[name] / sizes[first]:.3f} |"
        )
    lines += ["", "| import of the TSV | seconds | rate to one core's base64 decoding |", "|---|---|---|"]
    lines.append(f"| base64 decoding alone | {imports['decode']:.2f} | 1.00 |")
    lines += [f"| into {d} | {imports[d]:.2f} | {imports['decode'] / imports[d]:.2f} |" for d in ("float32", "float16")]
    lines += [
        "",
        "| memory | one process that read all, MB | four workers that read all add, MB | share |",
        "|---|---|---|---|",
    ]
    for dtype, (alone, added) in found["memory"].items():
        lines.append(f"| {dtype} | {alone / 1e3:,.0f} | {added / 1e3:,.1f} | {added / alone:.1%} |")
    return "\n".join([*lines, "", *NOTES]) + "\n"


NOTES = [
    "Memory is the sum of the proportional set sizes, in which the mapped file counts once; what four workers weigh",
    "that read one row is taken off, which is Python and the libraries.",
    "",
    "Targets: 20 times Oscar's and 10 times volta's rows a second, an import at 0.8 of the rate of base64 decoding,",
    "workers that add less than 5 %. A target of 0.27 of the TSV's bytes for float16 cannot be met uncompressed: two",
    "bytes for what base64 writes as 5⅓ are 0.375. Of volta's 13-column rows, which hold class probabilities too,",
    "it is 0.136.",
]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--reads", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="300 images; prints, and leaves the page alone")
    parser.add_argument("--json", action="store_true", help="print the figures, and leave the page alone")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    args = parser.parse_args()
    if args.quick:
        args.images, args.reads, args.rounds = 300, 600, 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(Path(folder), args.images, args.reads, args.rounds, weighing=not args.json)
    print(json.dumps(found))
    if args.json:
        return
    page = report(found, args)
    print(page)
    if not args.quick:
        REPORT.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
