"""One pass through img2dataset in a process of its own: `python -m lavis_ext.prepare.urls.worker pass.json`.

It puts img2dataset's downloader, resizer, writers and distributors together as `img2dataset.download` does. That
function itself cannot number shards from an offset, ends with 0 when it is interrupted, and starts a process that logs;
who watches this process reads the same statistics. Its reader tries for minutes to write to a disk that is full, and
its pool of processes waits for ever for one that was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lavis_ext.common.files import decode_json, read_file
from lavis_ext.fetch.lock import read_owner
from lavis_ext.prepare.urls.cluster import Apply, cluster
from lavis_ext.prepare.urls.supervise import TROUBLES, reporting

KEY_DIGITS = 5
FENCE = 0.5
"""Seconds between two looks at the owner file."""
SHARDS_PER_PROCESS = 5
"""Then a new one takes its place, as in img2dataset: decoders leak."""
Shard = tuple[int, str]


@dataclass(frozen=True, kw_only=True)
class PassOrder:
    """Everything that the process needs to know, as JSON."""

    tables: str
    out: str
    target: str
    output: str
    first_shard: int
    done: list[int]
    skip: list[int]
    """Rows that are not to be asked for."""
    keep: list[str]
    placeholders: list[str]
    digests: dict[str, str]
    """Of the bodies at URLs of a mirror, by its manifest."""
    image_size: int
    samples_per_shard: int
    distributor: str
    processes: int
    threads: int
    timeout: float
    deadline: float
    max_bytes: int
    allow_private: bool
    owner: str = ""
    """The owner file of the list, and whose it is: this process ends when another takes the list over."""
    token: str = ""

    def write(self, path: Path) -> None:
        """Write it for the process."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> PassOrder:
        """Read it in the process."""
        return cls(**decode_json(read_file(path)))


def run_pass(order: PassOrder) -> None:
    """Download every shard of the tables that is not done."""
    from lavis_ext.prepare.urls.tables import ID, PATH, ROW

    columns = [ROW, ID, PATH, *order.keep, "caption", "url"]
    downloader, shards = make_downloader(order, columns), read_shards(order, columns)
    if order.distributor != "multiprocessing":
        with cluster(order.distributor, order.processes) as apply:
            run_elsewhere(apply, downloader, shards)
    elif order.processes == 1:
        for shard in shards:  # in this process
            downloader(shard)
    else:
        run_processes(order.processes, downloader, shards)


def read_shards(order: PassOrder, columns: list[str]) -> Iterator[Shard]:
    """Number and Arrow file of every shard that is not done, as the downloader takes them; raises OSError."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import parquet

    from lavis_ext.prepare.urls.tables import ROW

    scratch = Path(order.out) / "_tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(Path(order.tables).glob("*.parquet")), order.first_shard):
        if number in order.done:
            continue
        place = scratch / f"{number}.feather"
        table = parquet.read_table(path, columns=columns).select(columns)
        table = table.filter(pc.invert(pc.is_in(table[ROW], pa.array(order.skip, pa.int64()))))
        with reporting(str(place)), pa.OSFile(str(place), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        yield number, str(place)


def run_processes(count: int, downloader: Callable[[Shard], object], shards: Iterator[Shard]) -> None:
    """Download shards in processes; one that is killed (out of memory, say) costs its shard, which stays undone."""
    turn = threading.Lock()

    def work() -> None:
        while True:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                for _ in range(SHARDS_PER_PROCESS):
                    with turn:
                        shard = next(shards, None)
                    if shard is None:
                        return
                    try:
                        process.submit(downloader, shard).result()
                    except BrokenProcessPool:
                        sys.stderr.write(f"the process of shard {shard[0]} was killed\n")
                        break

    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(work) for _ in range(count)]:
            done.result()


def attempt(downloader: Callable[[Shard], object], shard: Shard) -> tuple[int, str, str] | None:
    """Download a shard, on whatever machine; what of a full disk there was to tell."""
    TROUBLES.clear()
    downloader(shard)
    return TROUBLES[-1] if TROUBLES else None


def run_elsewhere(apply: Apply, downloader: Callable[[Shard], object], shards: Iterator[Shard]) -> None:
    """Download shards on many machines; raises OSError where a write failed on any of them."""
    for trouble in apply(partial(attempt, downloader), shards):
        if trouble is not None:
            raise OSError(*trouble)


def make_downloader(order: PassOrder, columns: list[str]) -> Any:
    """img2dataset's downloader for this order."""
    from img2dataset.resizer import Resizer

    from lavis_ext.fetch.guard import ResponseLimits
    from lavis_ext.prepare.urls.parts import GuardedDownloader, NamedFilesWriter, ShardWriter
    from lavis_ext.prepare.urls.shards import Inspector

    shards = order.output == "shards"
    limits = ResponseLimits(
        allow_private=order.allow_private,
        max_bytes=order.max_bytes,
        deadline=order.deadline,
        inspect=Inspector(tuple(order.placeholders), order.digests),
    )
    return GuardedDownloader(
        limits,
        sample_writer_class=ShardWriter if shards else partial(NamedFilesWriter, Path(order.target)),
        resizer=Resizer(
            image_size=order.image_size,
            resize_mode="keep_ratio" if shards else "no",
            resize_only_if_bigger=True,
            disable_all_reencoding=not shards,
        ),
        thread_count=order.threads,
        save_caption=shards,
        extract_exif=False,
        output_folder=order.out,
        column_list=columns,
        timeout=order.timeout,
        number_sample_per_shard=order.samples_per_shard,
        oom_shard_count=KEY_DIGITS,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    )


def follow_parent() -> None:
    """End this process group as soon as the process that started it is gone: its end of our standard input closes."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=wait, name="follow-parent", daemon=True).start()


def follow_owner(order: PassOrder) -> None:
    """End this process group where the list is another's: the process that started it may be stopped, not gone."""

    def watch() -> None:
        while True:
            time.sleep(FENCE)
            owner = read_owner(Path(order.owner))
            if owner is None or owner.token != order.token:
                os.killpg(os.getpgid(0), signal.SIGKILL)

    if order.owner:
        threading.Thread(target=watch, name="follow-owner", daemon=True).start()


def main(words: list[str]) -> int:
    """Run the order in the file that is named."""
    follow_parent()
    order = PassOrder.read(Path(words[0]))
    follow_owner(order)
    with reporting(order.out):
        run_pass(order)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
