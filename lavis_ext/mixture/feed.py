"""A stream as the mixture draws from it: so many samples at a time, lap after lap, with the state after each draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from lavis_ext.errors import ConfigError, LavisExtError, TrainingError


class Feed:
    """Draws from one stream for one rank.

    `iterate(rank, world, state)` is one lap from `state` on; after a lap the next begins from the stream's
    `state_dict()`, or from None if that gives nothing. What it yields may be SampleErrors in the place of samples. A
    stream that has a method `load(item, rng)` yields raw items, which workers then load in parallel.
    """

    def __init__(self, stream: Any, rank: int, world: int, state: Mapping[str, Any] | None) -> None:
        self._stream, self._rank, self._world = stream, rank, world
        self._items: Iterator[Any] = iter(stream.iterate(rank, world, state))

    def draw(self, count: int, again: bool = True) -> tuple[list[Any], dict[str, Any]]:
        """The next `count` items (fewer at the end of the lap if not `again`) and the state after them.

        Raises TrainingError for whatever the stream raises that is not an error of ours.
        """
        try:
            items = list(islice(self._items, count))
            while again and len(items) < count:
                items.append(self._first_of_next_lap())
                items += islice(self._items, count - len(items))
            return items, dict(self._stream.state_dict())
        except LavisExtError:
            raise
        except Exception as error:
            what = f"reading failed with {type(error).__name__}: {error}"
            raise TrainingError(f"stream '{self._stream.name}'", what, "see the log for the traceback") from error

    def _first_of_next_lap(self) -> Any:
        for state in (self._stream.state_dict(), None):
            self._items = iter(self._stream.iterate(self._rank, self._world, state))
            for item in self._items:
                return item
        raise ConfigError(
            f"stream '{self._stream.name}'", "holds no samples for this rank", "give it at least one shard a rank"
        )
