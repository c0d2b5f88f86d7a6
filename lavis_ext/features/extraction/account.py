"""What is known of a destination besides its rows: how they were made, which images it lacks, and why."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lavis_ext.errors import UsageError
from lavis_ext.features.files import write_atomic

log = logging.getLogger(__name__)
FORMAT = 1
NAME = ".extraction.json"


@dataclass
class Account:
    """`made`: detector and settings, empty until the first row; `expected`: ids; `faults`: why an image has no row."""

    made: dict[str, Any] = field(default_factory=dict)
    expected: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def read(cls, destination: Path) -> Account | None:
        """The account of a file or a store, None where there is none that can be read."""
        path = account_path(destination)
        try:
            account = cls(**json.loads(path.read_text("utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s: cannot be read and is passed over (%s)", path, error)
            return None
        return account if account.format == FORMAT else None

    def write(self, destination: Path) -> None:
        """Keep it beside the file, or in the store; raises DiskError."""
        write_atomic(account_path(destination), json.dumps(asdict(self), ensure_ascii=False).encode())

    def agree(self, made: dict[str, Any], destination: Path) -> None:
        """Take over how rows are made now; raises UsageError where those that are there were made in another way."""
        same = json.loads(json.dumps(made))
        old, new = dict(_leaves(self.made)), dict(_leaves(same))
        different = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if self.made and different:
            told = ", ".join(f"{key} {old.get(key)!r}, now {new.get(key)!r}" for key in different)
            raise UsageError(str(destination), f"was begun with other settings: {told}", "name another destination")
        self.made = same

    def missing(self, there: Any) -> dict[str, str]:
        """Expected images that are not in `there`, and why, as far as it is known."""
        return {name: self.faults.get(name, "not extracted yet") for name in self.expected if name not in there}


def _leaves(tree: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """`settings.conf` and its value, for each value of a tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def account_path(destination: Path) -> Path:
    """Hidden beside a file, hidden inside a store."""
    return destination / NAME if destination.is_dir() else destination.with_name(f".{destination.name}{NAME}")
