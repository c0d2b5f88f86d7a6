"""Work on many machines, by Spark or Ray: pieces go out, what each gave comes back, in order.

A piece whose process is killed is done again elsewhere, so that it must be the same whoever does it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

from lavis_ext.common.errors import UsageError

Work = Callable[[Any], Any]
Apply = Callable[[Work, Iterable[Any]], Iterator[Any]]
"""Does a piece of work for each item somewhere, and brings back what each gave."""
TRIES = 4
"""How often a piece is begun: as many processes may be killed at it. Spark's own number; locally Spark would take 1."""
AHEAD = 1000
"""Pieces that are given out at a time: what is done is known after as many."""
SPARK_MASTER = "LAVIS_EXT_SPARK_MASTER"


def require_installed(name: str) -> None:
    """Raise UsageError where the library of a distributor is missing."""
    if name != "multiprocessing" and find_spec(name) is None:
        extra = {"pyspark": "spark"}.get(name, name)
        raise UsageError(f"--distributor {name}", "is not installed", f"pip install 'lavis-ext[{extra}]'")


@contextmanager
def cluster(name: str, processes: int) -> Iterator[Apply]:
    """Spark's or Ray's way to do work: on the cluster that the environment names, else in processes here.

    `LAVIS_EXT_SPARK_MASTER` and `RAY_ADDRESS` name one; its machines need this package, and the same folders.
    """
    with (on_spark if name == "pyspark" else on_ray)(processes) as apply:
        yield lambda work, items: (one for some in in_batches(items) for one in apply(work, some))


def in_batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    """The items, at most `AHEAD` at a time."""
    left = iter(items)
    while batch := list(islice(left, AHEAD)):
        yield batch


@contextmanager
def on_spark(processes: int) -> Iterator[Callable[[Work, Sequence[Any]], Iterator[Any]]]:
    """A session of Spark's: one that is active already, else an own."""
    SparkSession: Any = import_module("pyspark.sql").SparkSession  # noqa: N806 (without stubs where it is missing)
    active = SparkSession.getActiveSession()
    master = os.environ.get(SPARK_MASTER) or f"local[{processes},{TRIES}]"
    builder = SparkSession.builder.master(master).appName("lavis_ext").config("spark.ui.enabled", "false")
    session = active or builder.config("spark.task.maxFailures", TRIES).getOrCreate()
    context = session.sparkContext
    try:
        yield lambda work, batch: iter(context.parallelize(batch, len(batch)).map(work).collect())
    finally:
        if active is None:
            session.stop()


@contextmanager
def on_ray(processes: int) -> Iterator[Callable[[Work, Sequence[Any]], Iterator[Any]]]:
    """Ray, which is started here where no cluster is named."""
    ray: Any = import_module("ray")
    begun = not ray.is_initialized()
    if begun:
        here: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": processes, "address": "local"}
        ray.init(include_dashboard=False, configure_logging=False, **here)

    def apply(work: Work, batch: Sequence[Any]) -> Iterator[Any]:
        remote = ray.remote(max_retries=TRIES - 1)(lambda held, item: held(item))
        held = ray.put(work)
        yield from (ray.get(one) for one in [remote.remote(held, item) for item in batch])

    try:
        yield apply
    finally:
        if begun:
            ray.shutdown()
