"""What can go wrong, as exceptions that carry `where: what; way out` and the exit code of their kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

from lavis_ext.common.secrets import redact


@dataclass(frozen=True)
class Problem:
    """One mistake: its place, what is wrong, and what the user can do about it; without secrets, whoever shows it."""

    where: str
    what: str
    way_out: str = ""

    def __post_init__(self) -> None:
        for name in ("where", "what", "way_out"):
            object.__setattr__(self, name, redact(str(getattr(self, name))))

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.way_out}" if self.way_out else f"{self.where}: {self.what}"


class LavisExtError(Exception):
    """Any failure that the user can read; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, what: str, way_out: str = "") -> None:
        problem = Problem(where, what, way_out)
        self.problems: tuple[Problem, ...] = (problem,)
        super().__init__(problem.where, problem.what, problem.way_out)

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> LavisExtError:
        """One exception of this class with every problem; `problems` must not be empty."""
        found = tuple(problems)
        error = cls(found[0].where, found[0].what, found[0].way_out)
        error.problems = found
        return error

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class UsageError(LavisExtError):
    """Unknown verb, flag, data set or split."""

    exit_code = 2


class ConfigError(LavisExtError):
    """An invalid YAML or option: unknown key, wrong type, missing value."""

    exit_code = 3


class NetworkError(LavisExtError):
    """No mirror delivered after all retries."""

    exit_code = 4


class IntegrityError(LavisExtError):
    """Bytes that do not match their declared size, hash or format."""

    exit_code = 5


class DiskError(LavisExtError):
    """Too little space, no permission, or a write that failed."""

    exit_code = 6


class AccessError(LavisExtError):
    """Gated, licence not accepted, or a token that is missing or expired."""

    exit_code = 7


class PartialError(LavisExtError):
    """Less arrived than the card's threshold asks for."""

    exit_code = 8


class OwnedError(LavisExtError):
    """Another live process works on the same files."""

    exit_code = 9


class UnsafeError(LavisExtError):
    """Content that is refused: traversal, bomb, link, pickle, scheme."""

    exit_code = 10


class TrainingError(LavisExtError):
    """A loss that is not finite, or a worker that died."""

    exit_code = 11


class Preempted(LavisExtError):
    """Stopped by SIGTERM after a clean checkpoint: start the same command again."""

    exit_code = 75


MOST = 24
"""Names that a message lists."""


DATASETS = "`lavis-ext list` shows the data sets"
"""The way out instead of all their names."""


def near(name: str, known: Iterable[str], cutoff: float = 0.6, before: str = "") -> str:
    """The way out for a misspelt name: `did you mean …?`, or "" where none is like it; `before` stands before each."""
    names = sorted(set(known))
    same = [one for one in names if one.casefold() == name.casefold()]
    close = same or get_close_matches(name, names, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(repr(before + one) for one in close)}?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The way out for a misspelt name: `did you mean …?`, else the names there are."""
    names = sorted(set(known))
    if found := near(name, names):
        return found
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"known: {', '.join(names[:MOST])}{more}" if names else "none is known"
