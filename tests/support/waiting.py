"""Two ranks for `torchrun`: rank 0 works, or fails, or is slow; each rank leaves what it got."""

from __future__ import annotations

import time
from pathlib import Path

from lavis_ext.common.errors import ConfigError, LavisExtError
from lavis_ext.runners.device import build_accelerator
from lavis_ext.runners.distributed import broadcast_from_main, main_first
from tests.support.server import wait_until
from tests.support.toys import toy_run


def tell_and_wait(folder: Path) -> None:
    """All that rank 0 may do, one after the other; the slow one comes last."""
    accelerator = build_accelerator(toy_run(folder))
    rank = accelerator.process_index
    told: list[str] = []

    def prepare() -> str:
        if rank == 0:
            time.sleep(0.2)
            (folder / "prepared").write_text("once")
        return (folder / "prepared").read_text()

    def refuse() -> str:
        raise ConfigError("here", "rank 0 cannot", "do this")

    def fail() -> str:
        raise ZeroDivisionError("in a library")

    def dawdle() -> str:
        wait_until(lambda: (folder / "told_1").exists(), 60)  # until the other has given up
        return "late"

    told.append(main_first(accelerator, prepare, 1))
    told.append(broadcast_from_main(accelerator, lambda: f"of {rank}", 1))
    for work, minutes in ((refuse, 1.0), (fail, 1.0), (dawdle, 0.02)):
        try:
            told.append(broadcast_from_main(accelerator, work, minutes))
        except (LavisExtError, ZeroDivisionError, RuntimeError) as error:
            told.append(f"{type(error).__name__} {error}")
    (folder / f"told_{rank}").write_text("\n".join(told))
