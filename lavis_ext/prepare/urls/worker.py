"""One pass through img2dataset in a process of its own: `python -m lavis_ext.prepare.urls.worker pass.json`.

It puts img2dataset's reader, downloader, resizer, writers and distributors together as `img2dataset.download` does.
That function itself cannot number shards from an offset, ends with 0 when it is interrupted, and starts a process that
logs; who watches this process reads the same statistics.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lavis_ext.common.files import decode_json
from lavis_ext.fetch.lock import read_owner

KEY_DIGITS = 5
SUBJOB = 1000
FENCE = 0.5
"""Seconds between two looks at the owner file."""


@dataclass(frozen=True, kw_only=True)
class PassOrder:
    """Everything that the process needs to know, as JSON."""

    tables: str
    out: str
    target: str
    output: str
    first_shard: int
    done: list[int]
    keep: list[str]
    placeholders: list[str]
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
        return cls(**decode_json(path.read_text("utf-8")))


def run_pass(order: PassOrder) -> None:
    """Download every shard of the tables that is not done."""
    from img2dataset import distributor
    from img2dataset.reader import Reader

    from lavis_ext.prepare.urls.rows import ID, PATH, ROW

    scratch = Path(order.out) / "_tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    columns = [ROW, ID, PATH, *order.keep]
    reader = Reader(
        url_list=order.tables,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        verify_hash_col=None,
        verify_hash_type=None,
        save_additional_columns=columns,
        number_sample_per_shard=order.samples_per_shard,
        done_shards=set(order.done),
        tmp_path=str(scratch),
        start_shard_id=order.first_shard,
    )
    downloader = make_downloader(order, reader.column_list)
    if order.distributor == "multiprocessing" and order.processes == 1:
        for shard in reader:  # in this process
            downloader(shard)
        return
    getattr(distributor, f"{order.distributor}_distributor")(order.processes, downloader, reader, SUBJOB, 1)


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
        inspect=Inspector(tuple(order.placeholders)),
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
    run_pass(order)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
