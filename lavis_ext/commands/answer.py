"""What every verb shares: its Answer, and where its data lie; `args` is whatever has the flags."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    """What a verb has to say: lines for a person, objects for a program, and the exit code."""

    lines: list[str] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    code: int = 0


def env_option(args: Any) -> str | None:
    """`env.cache_root` of `--options`, or None."""
    from lavis_ext.config import parse_options

    env = parse_options(args.options).get("env") or {}
    value = env.get("cache_root") if isinstance(env, dict) else None
    return str(value) if value else None


def cache_root_of(args: Any) -> Path:
    """Where the data of a verb lie."""
    from lavis_ext.config import cache_root

    return cache_root(env_option(args))


def progress_of(args: Any) -> Any:
    """How a verb tells of bytes that move; nothing with `--quiet`."""
    from lavis_ext.fetch import make_progress

    return make_progress(to_stderr, quiet=args.quiet)


def to_stderr(line: str) -> None:
    """A line for a person, beside what the verb answers."""
    sys.stderr.write(f"{line}\n")
