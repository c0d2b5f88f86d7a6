"""The result of a run: outcomes of artifacts, states of splits, one summary line, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lavis_ext.common.errors import DiskError, LavisExtError, NetworkError
from lavis_ext.common.wording import human
from lavis_ext.prepare.plan import Plan
from lavis_ext.prepare.records import ArtifactRecord


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one artifact: `bytes` moved over the wire, how it was `verified`, and its `record` now."""

    title: str
    file: str
    outcome: Literal["downloaded", "reused", "failed"]
    bytes: int = 0
    verified: str = "none"
    equivalence: str = "byte_exact"
    notes: tuple[str, ...] = ()
    error: LavisExtError | None = None
    record: ArtifactRecord | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        problems = [asdict(problem) for problem in self.error.problems] if self.error else []
        code = self.error.exit_code if self.error else 0
        shown = {name: getattr(self, name) for name in ("title", "file", "outcome", "bytes", "verified", "equivalence")}
        return {**shown, "notes": list(self.notes), "problems": problems, "exit_code": code}


@dataclass(frozen=True, kw_only=True)
class SplitState:
    """One split: samples that its annotations list, pictures that they name, and how many of those are there.

    `samples` and `expected` are None where the annotations are not there and the card declares no counts; `declared` is
    what the card counts, where all of it is meant to be there. `verified`: all of its files are there, and were
    compared with something; `subset`: some came from a mirror that offers only a part.
    """

    dataset: str
    split: str
    samples: int | None = None
    declared: int | None = None
    expected: int | None = None
    present: int = 0
    verified: bool = False
    subset: bool = False
    names: tuple[str, ...] = field(default=(), repr=False)
    """The names of missing pictures."""

    @property
    def missing(self) -> int | None:
        """Pictures that are named and not there."""
        return None if self.expected is None else max(0, self.expected - self.present)

    @property
    def state(self) -> str:
        """verified | present | partial | missing; with `(subset)` where something is there."""
        if self.samples is None and not self.verified:
            word = "missing"
        elif self.missing:
            word = "partial" if self.present else "missing"
        else:
            word = "verified" if self.verified else "present"
        return f"{word} (subset)" if self.subset and word != "missing" else word

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        names = ("dataset", "split", "samples", "declared", "expected", "present", "missing")
        shown = {name: getattr(self, name) for name in names}
        return {**shown, "verified": self.verified, "subset": self.subset, "state": self.state}

    def line(self) -> str:
        """`coco_caption/val: 5000 samples, 5000 of 5000 images, verified`."""
        pictures = "" if self.expected is None else f", {self.present} of {self.expected} images"
        absent = "samples not counted" if self.verified else "no annotations"
        count = absent if self.samples is None else f"{self.samples} sample{'' if self.samples == 1 else 's'}"
        differs = self.declared is not None and self.samples not in (None, self.declared)
        note = f" (the card counts {self.declared})" if differs else ""
        return f"{self.dataset}/{self.split}: {count}{note}{pictures}, {self.state}"


@dataclass(frozen=True, kw_only=True)
class ArtifactState(SplitState):
    """An artifact that the user named: its files, of which `present` are prepared, and their bytes."""

    bytes: int = 0

    @property
    def state(self) -> str:
        """verified | present | partial | missing; with `(subset)` where something is there."""
        whole = self.present and self.present == self.expected
        word = "verified" if self.verified else "present" if whole else "partial" if self.present else "missing"
        return f"{word} (subset)" if self.subset and self.present else word

    def line(self) -> str:
        """`vinvl/coco_ir: 3 of 4 files, 1.2 GB, partial`."""
        count = "what it holds is not known" if self.expected is None else f"{self.present} of {self.expected} files"
        return f"{self.dataset}: {count}, {human(self.bytes)}, {self.state}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `prepare` returns: the plan, the outcome of each artifact, the splits, and other errors."""

    plan: Plan
    outcomes: tuple[Outcome, ...] = ()
    splits: tuple[SplitState, ...] = ()
    errors: tuple[LavisExtError, ...] = ()
    dry_run: bool = False

    @property
    def failures(self) -> list[LavisExtError]:
        """Every error, of artifacts and of the counts of samples."""
        return [o.error for o in self.outcomes if o.error is not None] + list(self.errors)

    @property
    def exit_code(self) -> int:
        """The code of the worst failure, 0 without one."""
        return worst(self.failures)

    @property
    def bytes_moved(self) -> int:
        """Bytes that came over the wire or from a local mirror."""
        return sum(outcome.bytes for outcome in self.outcomes)

    @property
    def subset(self) -> bool:
        """Whether anything of it is a subset."""
        return any(outcome.equivalence == "subset" for outcome in self.outcomes)

    def count(self, outcome: str) -> int:
        """How many artifacts have this outcome."""
        return sum(one.outcome == outcome for one in self.outcomes)

    def line(self) -> str:
        """`planned 14 · downloaded 11 · reused 2 · failed 1 · bytes 26.1 GB · 0 unverified · exit 4`."""
        if self.dry_run:
            kinds = {type(error) for error in self.errors}
            offline = self.plan.context is not None and self.plan.context.policy.offline and NetworkError in kinds
            fits = "does not fit" if DiskError in kinds else "but offline" if offline else "fits"
            download = f"download {human(self.plan.download)}, {fits}"
            return f"planned {len(self.plan.items)} · {download} · nothing was written · exit {self.exit_code}"
        unverified = sum(one.outcome != "failed" and one.verified == "none" for one in self.outcomes)
        counts = (
            f"downloaded {self.count('downloaded')} · reused {self.count('reused')} · failed {self.count('failed')}"
        )
        subset = " · subset" if self.subset else ""
        total = f"planned {len(self.plan.items)} · {counts} · bytes {human(self.bytes_moved)}"
        return f"{total} · {unverified} unverified{subset} · exit {self.exit_code}"

    def lines(self) -> list[str]:
        """All lines for a person, the summary last."""
        lines = [*self.plan.passed_over, *(split.line() for split in self.splits)]
        lines += [f"{one.title}: {note}" for one in self.outcomes for note in one.notes]
        return [*lines, *(str(error) for error in self.failures), self.line()]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        problems = [asdict(problem) for error in self.failures for problem in error.problems]
        return {
            "plan": self.plan.as_dict(),
            "outcomes": [outcome.as_dict() for outcome in self.outcomes],
            "splits": [split.as_dict() for split in self.splits],
            "problems": problems,
            "bytes": self.bytes_moved,
            "subset": self.subset,
            "dry_run": self.dry_run,
            "exit_code": self.exit_code,
            "summary": self.line(),
        }


def worst(errors: Sequence[LavisExtError]) -> int:
    """One exit code for several failures: unsafe content first, then the disk, then the highest; 0 for none."""
    codes = {error.exit_code for error in errors}
    if 10 in codes:
        return 10
    if any(isinstance(error, DiskError) for error in errors):
        return DiskError.exit_code
    # a split that is short of pictures (8) is only a consequence of what failed before it
    return max(codes - {8}, default=8 if codes else 0)
