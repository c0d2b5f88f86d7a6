"""Samples that cannot be read: their error, their counts, and when they are too many."""

from __future__ import annotations

import math
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lavis_ext.common.errors import IntegrityError, LavisExtError, PartialError

BAD_TAR = (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError, IndexError)
"""What tarfile raises for damaged headers: it follows long names by recursion, and reads as much as they promise."""


class SampleError(IntegrityError):
    """One sample that is missing or corrupt; `why` begins with its kind, details come after a colon."""

    def __init__(self, sample_id: str, path: str, why: str) -> None:
        super().__init__(f"sample {sample_id}", f"{why} ({path})")
        self.sample_id, self.path, self.why = sample_id, path, why

    @property
    def reason(self) -> str:
        """The kind of fault, equal for all samples that share it."""
        return self.why.partition(":")[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleError, (self.sample_id, self.path, self.why)


@dataclass
class Tally:
    """Counts of one split: samples seen, faults by reason, and the first faults."""

    seen: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[dict[str, str]] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """How many samples failed."""
        return sum(self.reasons.values())


@dataclass
class FaultLog:
    """Counts samples seen and samples failed per `dataset/split` and stops a run that loses too many.

    `tolerance` is the allowed share of bad samples, `tolerances` that of single data sets by name. During an epoch a
    split fails once `at_least` samples were seen and its faults exceed the allowed number by more than three times its
    square root, so that one bad picture among the first twenty does not end a run that tolerates one in a
    hundred; at the end of an epoch (`check(final=True)`) the plain share counts. A tolerance of 0 stops at the first
    fault.
    """

    tolerance: float = 0.01
    tolerances: dict[str, float] = field(default_factory=dict)
    at_least: int = 20
    keep: int = 10
    tallies: dict[str, Tally] = field(default_factory=dict)

    def seen(self, dataset: str, split: str, count: int) -> None:
        """Count samples that were tried, good or bad."""
        self._tally(dataset, split).seen += count

    def record(self, dataset: str, split: str, error: SampleError) -> None:
        """Count a sample that failed; it must also be counted by `seen`."""
        tally = self._tally(dataset, split)
        tally.reasons[error.reason] += 1
        if len(tally.first) < self.keep:
            tally.first.append({"id": error.sample_id, "path": error.path, "why": error.why})

    def check(self, final: bool = False) -> None:
        """Raise PartialError (exit code 8) for the first split that has lost too many samples."""
        for key, tally in self.tallies.items():
            if tally.bad and self._exceeds(self._allowed(key), tally, final):
                raise PartialError(key, self._describe(key, tally), self._way_out(key))

    def summary(self) -> dict[str, Any]:
        """Per `dataset/split`: seen, bad, reasons (most frequent first) and the first faults."""
        return {
            key: {"seen": t.seen, "bad": t.bad, "reasons": dict(t.reasons.most_common()), "first": list(t.first)}
            for key, t in sorted(self.tallies.items())
        }

    def state_dict(self) -> dict[str, Any]:
        """The counts as plain values."""
        return self.summary()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the counts by those of `state_dict()`."""
        self.tallies = {
            key: Tally(seen=t["seen"], reasons=Counter(t["reasons"]), first=list(t["first"]))
            for key, t in state.items()
        }

    def add(self, state: Mapping[str, Any]) -> None:
        """Add the counts of another `state_dict()` to these."""
        for key, more in state.items():
            tally = self.tallies.setdefault(key, Tally())
            tally.seen += more["seen"]
            tally.reasons.update(more["reasons"])
            tally.first = [*tally.first, *more["first"]][: self.keep]

    def _tally(self, dataset: str, split: str) -> Tally:
        return self.tallies.setdefault(f"{dataset}/{split}", Tally())

    def _allowed(self, key: str) -> float:
        return self.tolerances.get(key.rpartition("/")[0], self.tolerance)

    def _exceeds(self, share: float, tally: Tally, final: bool) -> bool:
        allowed = share * tally.seen
        if final or share == 0:
            return tally.bad > allowed or tally.bad == tally.seen
        return tally.seen >= self.at_least and tally.bad > allowed + 3 * math.sqrt(allowed)

    def _describe(self, key: str, tally: Tally) -> str:
        reasons = ", ".join(f"{reason} {count}x" for reason, count in tally.reasons.most_common(3))
        first = tally.first[0] if tally.first else {"id": "?", "path": "?"}
        share = f"{tally.bad} of {tally.seen} samples failed ({self._allowed(key):.2%} allowed)"
        return f"{share}: {reasons}; the first is {first['id']} at {first['path']}"

    def _way_out(self, key: str) -> str:
        from lavis_ext.common.config.cards import load_cards

        name = key.rpartition("/")[0]
        splits = [tally for one, tally in self.tallies.items() if one.rpartition("/")[0] == name and tally.bad]
        share = max(-(-100 * tally.bad // tally.seen) for tally in splits)
        while any(share / 100 * tally.seen < tally.bad for tally in splits):  # 0.29 * 100 is less than 29
            share += 1
        raised = f"--options datasets.{name}.tolerance={share / 100:g}"
        try:
            cards = load_cards()
            own, declared = cards.words_of_own(name), name in cards.names()
        except LavisExtError:  # the loss is to be told, not what has become of a card meanwhile
            own, declared = "", False
        if own:
            return f"`lavis-ext verify {own} --deep` lists them; mend or leave out the rows, or {raised}"
        if not declared:
            return f"mend or leave out the rows, or {raised}"
        return f"`lavis-ext verify {name} --deep --repair` fetches them again; or {raised}"
