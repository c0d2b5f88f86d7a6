"""Annotations of Karpathy's shape, ready to index: P3 of `python -m benchmarks`.

    python benchmarks/rows.py write FILE COUNT
    python benchmarks/rows.py measure FILE PROCESSES CONTENDER

A module of its own, since torch in the process would hide what the rows weigh.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any


def open_rows(kind: str, path: Path) -> Any:
    """Annotations, ready to index."""
    if kind == "HF datasets":
        from datasets import load_dataset

        return load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / "hf"))
    if kind.startswith("ours"):
        from lavis_ext.datasets.readers.annotations import Annotations

        return Annotations([path])
    rows = import_module(kind).loads(path.read_bytes())
    for number, row in enumerate(rows):
        row["instance_id"] = str(number)
    return rows


def annotations(kind: str, path: Path, processes: int) -> dict[str, float]:
    """Seconds until the rows can be indexed, and MB of this process and of those that have read all of them.

    A first conversion is one process that writes the copy: `memory` is the most that it had.
    """
    if kind == "ours, first conversion":
        shutil.rmtree(path.parent / ".lavis_ext", ignore_errors=True)
    elif kind.startswith(("ours", "HF")):
        open_rows(kind, path)  # converted once
    if kind.startswith("ours"):
        import lavis_ext.datasets.readers.annotations  # imports are not what is measured

        assert lavis_ext.datasets.readers.annotations
    used, start = time.process_time(), time.perf_counter()
    rows = open_rows(kind, path)
    wall, cpu = time.perf_counter() - start, time.process_time() - used
    if kind == "ours, first conversion":
        return {"wall": wall, "cpu": cpu, "memory": most_mb()}
    context = multiprocessing.get_context("fork")
    read, weighed = context.Barrier(processes + 1), context.Barrier(processes + 1)
    workers = [context.Process(target=touch, args=(rows, read, weighed)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    read.wait()
    memory = sum(pss_mb(pid) for pid in ("self", *(str(worker.pid) for worker in workers)))
    weighed.wait()
    for worker in workers:
        worker.join()
    return {"wall": wall, "cpu": cpu, "memory": memory}


def touch(rows: Any, read: Any, weighed: Any) -> None:
    """Read rows of every page of memory, and stay until this process was weighed.

    Of millions it is each eighth, which lies less than a page from the next in every form; all would take minutes.
    """
    assert sum(len(rows[i]["caption"]) for i in range(0, len(rows), 8 if len(rows) > 1_000_000 else 1))
    read.wait()
    weighed.wait()


def most_mb() -> float:
    """The most memory that this process had; `ru_maxrss` counts that of the process which started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def pss_mb(pid: str) -> float:
    """Proportional memory of a process: what several share counts once."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def write_rows(path: Path, count: int) -> None:
    """Rows in the shape of the Karpathy training file, one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.write("[")
        for n in range(count):
            image = f"val2014/COCO_val2014_{n // 5:012d}.jpg"
            row = {"caption": f"A man number {n} rides a horse.", "image": image, "image_id": f"coco_{n // 5}"}
            file.write((", " if n else "") + json.dumps(row))
        file.write("]")


def main(action: str, place: str, number: str, name: str = "") -> None:
    """Write the rows, or measure one contender and print its figures."""
    found: dict[str, float] = {}
    if action == "measure":
        found = annotations(name, Path(place), int(number))
    else:
        write_rows(Path(place), int(number))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
