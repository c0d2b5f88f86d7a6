"""`storage:` of shards (a path, a brace or glob pattern, a folder, or a list of them) becomes files that are there."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path

from lavis_ext.errors import ConfigError, UnsafeError

log = logging.getLogger(__name__)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
WILD = re.compile(r"[*?\[{]")
BRACES = re.compile(r"\{[^{}]*(?:,|\.\.)[^{}]*\}")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST = 1_000_000
SHOWN = 12


def list_shards(storage: Sequence[str], root: Path, where: str) -> list[Path]:
    """The tar files that `storage` names, relative to `root`, in order and each once.

    Raises UnsafeError for `pipe:` and every other scheme (shards are prepared first, then read from disk) and
    ConfigError where a pattern finds nothing or names shards that are not there. Numbers that are left out between the
    first and the last are told in the log.
    """
    if not storage:
        raise ConfigError(where, "names no shards", "write a folder or a pattern such as laion_coco/{00000..00200}.tar")
    found: dict[Path, None] = {}
    for pattern in storage:
        refuse_scheme(pattern, where)
        found |= dict.fromkeys(_expand(pattern, root, where))
    paths = list(found)
    gaps = find_gaps(paths)
    if gaps:
        log.warning("%s: shards are left out between the first and the last: %s", where, gaps)
    return paths


def refuse_scheme(pattern: str, where: str) -> None:
    """Raise UnsafeError for anything but a local path: webdataset's own opener would run `pipe:` as a command."""
    scheme = SCHEME.match(pattern)
    if scheme or "::" in pattern:
        what = f"'{pattern}' is no local path"
        raise UnsafeError(where, what, "fetch the shards first, then name the folder they lie in")


def fixed_folder(pattern: str, root: Path) -> Path:
    """The folder under which all that a pattern names lies."""
    path = root / Path(pattern).expanduser()
    wild = next((i for i, part in enumerate(path.parts) if WILD.search(part)), None)
    if wild is not None:
        return Path(*path.parts[:wild])
    return path.parent if path.suffix == ".tar" else path


def find_gaps(paths: Iterable[Path]) -> str:
    """The numbers that are left out between the first and the last shard of each folder, `00003, 00007–00009`."""
    told = []
    numbered = sorted((str(path.parent), path.stem) for path in paths if path.stem.isascii() and path.stem.isdigit())
    for _, group in groupby(numbered, lambda pair: pair[0]):
        stems = [stem for _, stem in group]
        numbers = {int(stem) for stem in stems}
        if max(numbers) - min(numbers) < MOST:
            missing = [n for n in range(min(numbers), max(numbers)) if n not in numbers]
            told += [tell_numbers(missing, len(stems[0]))] if missing else []
    return "; ".join(told)


def tell_numbers(numbers: Sequence[int], width: int) -> str:
    """Sorted numbers as runs: `00003, 00007–00009`, the first of them."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    told = ["–".join(f"{n:0{width}d}" for n in run) for run in runs[:SHOWN]]
    return ", ".join(told) + (f" and {len(runs) - SHOWN} more runs" if len(runs) > SHOWN else "")


def _expand(pattern: str, root: Path, where: str) -> list[Path]:
    path = root / Path(pattern).expanduser()
    if BRACES.search(pattern):
        return _expand_braces(pattern, root, where)
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif WILD.search(pattern):
        found = sorted(Path(name) for name in glob.glob(str(path)))  # noqa: PTH207 (the pattern may be absolute)
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise ConfigError(where, f"'{pattern}' finds no shards (looked in {path})", "correct it, or prepare the shards")
    return found


def _expand_braces(pattern: str, root: Path, where: str) -> list[Path]:
    """Every name of a brace pattern; glob signs beside the braces are expanded too. Absent shards are an error."""
    names = list(islice(braced(pattern), MOST + 1))
    if len(names) > MOST:
        raise ConfigError(where, f"'{pattern}' names more than {MOST:,} shards", "correct the range")
    if any(WILD.search(name) for name in names):
        return [path for name in names for path in _expand(name, root, where)]
    paths = [root / Path(name).expanduser() for name in names]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        what = f"'{pattern}' names {len(paths):,} shards, {len(absent):,} of them are absent: {_tell(absent)}"
        raise ConfigError(where, what, "prepare them, or name what is there")
    return paths


def _tell(paths: Sequence[Path]) -> str:
    if all(path.stem.isascii() and path.stem.isdigit() for path in paths):
        return tell_numbers(sorted(int(path.stem) for path in paths), len(paths[0].stem))
    return ", ".join(path.name for path in paths[:SHOWN]) + (" …" if len(paths) > SHOWN else "")


def braced(pattern: str) -> Iterable[str]:
    """`{000..010}` counts with its zeros kept, `{a,b}` chooses; the rightmost brace turns fastest, as in a shell."""
    match = BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    head, tail = pattern[: match.start()], pattern[match.end() :]
    for middle in _choices(match.group()):
        for rest in braced(tail):
            yield f"{head}{middle}{rest}"


def _choices(brace: str) -> Iterable[str]:
    count = RANGE.fullmatch(brace)
    if count is None:
        return brace[1:-1].split(",")
    first, last = count.groups()
    width = max(len(first), len(last)) if first[0] == "0" or last[0] == "0" else 0
    step = 1 if int(first) <= int(last) else -1
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))
