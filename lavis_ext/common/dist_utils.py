"""LAVIS' questions about processes. The runner joins them (accelerate); a script only asks."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

from lavis_ext.common.config.resolve import cache_root

T = TypeVar("T")


def is_dist_avail_and_initialized() -> bool:
    """Whether the processes of a launcher are joined already."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """How many processes the launcher started; 1 without one."""
    return get_dist_info()[1]


def get_rank() -> int:
    """The number of this process; 0 without a launcher."""
    return get_dist_info()[0]


def is_main_process() -> bool:
    """Whether this is process 0."""
    return get_rank() == 0


def get_dist_info() -> tuple[int, int]:
    """Number of this process and how many there are: of the joined group, before that of the launcher."""
    if is_dist_avail_and_initialized():
        import torch.distributed as dist

        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def init_distributed_mode(args: Any) -> None:
    """Set `rank`, `world_size`, `gpu` and `distributed` of `args`, as LAVIS does; the runner joins the processes."""
    args.rank, args.world_size = get_dist_info()
    args.gpu = int(os.environ.get("LOCAL_RANK", "0"))
    args.distributed = args.world_size > 1


def download_cached_file(url: str, check_hash: bool = True, progress: bool = False) -> str:
    """The local copy of a file, fetched once below the cache root; whichever process comes first fetches it.

    Nobody declares its hash, so that `check_hash` has nothing to compare; what was compared is logged. Raises
    NetworkError. A data set's files have a card, and `lavis-ext prepare` verifies them.
    """
    found = import_module("lavis_ext.models.weights").fetched(url, "download_cached_file", cache_root())
    return str(found)


def main_process(func: Callable[..., T]) -> Callable[..., T | None]:
    """A function that only process 0 runs; None on others."""

    @wraps(func)
    def on_main(*args: Any, **kwargs: Any) -> T | None:
        return func(*args, **kwargs) if is_main_process() else None

    return on_main
