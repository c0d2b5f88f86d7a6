"""What came of a list, sample by sample: how many are expected, there, missing, corrupt, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lavis_ext.errors import LavisExtError, NetworkError, PartialError
from lavis_ext.files import write_json

PASSING_REASONS = frozenset({"timeout", "connection", "name server", "unfinished", "gone from the disk"})
PASSING_STATUS = ("HTTP 408", "HTTP 425", "HTTP 429", "HTTP 5")
SHOWN = 4


@dataclass(frozen=True)
class Loss:
    """A sample without an image."""

    id: str
    url: str
    reason: str
    corrupt: bool = False


@dataclass(kw_only=True)
class Account:
    """What a list came to. `expected` = `present` + `missing` + `corrupt`; `lost` names every one that is not there."""

    name: str
    expected: int = 0
    present: int = 0
    missing: int = 0
    corrupt: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    threshold: float = 1.0
    asked: int | None = None
    """`max_samples` of the run that wrote it."""
    lost: Path | None = None
    bytes_moved: int = 0
    shards: int = 0
    samples: int = 0
    """In shards: samples that their manifests promise."""
    notes: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Present of expected; 1 for an empty list."""
        return self.present / self.expected if self.expected else 1.0

    @property
    def error(self) -> LavisExtError | None:
        """PartialError (exit code 8) below the threshold; NetworkError (4) where nothing came and only the network is
        to blame; None where enough is there."""
        if self.share >= self.threshold and (self.present or not self.expected):
            return None
        told = f"{self.present:,} of {self.expected:,} images are there ({self.share:.1%}); {self.told_reasons()}"
        way_out = f"run again to retry what may have passed; {self.lost} names every one that lacks"
        if not self.present and not set(self.reasons) - PASSING_REASONS:
            return NetworkError(self.name, told, way_out)
        return PartialError(self.name, f"{told}, {self.threshold:.0%} are asked for", way_out)

    @property
    def passing(self) -> bool:
        """Whether some reasons may have passed by the next run."""
        return any(reason in PASSING_REASONS or reason.startswith(PASSING_STATUS) for reason in self.reasons)

    def covers(self, max_samples: int | None) -> bool:
        """Whether it was made for at least so many samples (None: for all)."""
        return self.asked is None or (max_samples is not None and max_samples <= self.asked)

    def check(self) -> None:
        """Raise `error`, if there is one."""
        error = self.error
        if error is not None:
            raise error

    def told_reasons(self) -> str:
        """`HTTP 404 ×12, timeout ×3, 2 other reasons`."""
        told = [f"{reason} ×{count:,}" for reason, count in self.reasons.most_common(SHOWN)]
        more = len(self.reasons) - SHOWN
        return ", ".join(told + ([f"{more} other reasons"] if more > 0 else [])) or "no reason is known"

    def line(self) -> str:
        """One line for a person."""
        told = f"{self.name}: {self.present:,} of {self.expected:,} images ({self.share:.1%})"
        told += f", {self.missing:,} missing, {self.corrupt:,} corrupt"
        return f"{told}: {self.told_reasons()}" if self.reasons else told

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "reasons": dict(self.reasons.most_common()), "lost": str(self.lost or "")}

    def save(self, folder: Path, losses: Iterable[Loss]) -> None:
        """Count losses, write them to `missing.tsv`, then the account to `account.json`; both atomically."""
        self.lost = folder / "missing.tsv"
        part = self.lost.with_name("missing.tsv.part")
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write("id\turl\treason\n")
            for loss in losses:
                self.reasons[loss.reason] += 1
                self.corrupt += loss.corrupt
                self.missing += not loss.corrupt
                file.write("\t".join(_field(value) for value in (loss.id, loss.url, loss.reason)) + "\n")
        part.replace(self.lost)
        write_json(folder / "account.json", self.as_dict())


def _field(value: str) -> str:
    return " ".join(value.split())


def read_account(folder: Path) -> Account | None:
    """The account that the last run left in a folder, or None."""
    try:
        raw = json.loads((folder / "account.json").read_text("utf-8"))
        raw["lost"] = Path(raw["lost"]) if raw["lost"] else None
        return Account(**{**raw, "reasons": Counter(raw["reasons"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
