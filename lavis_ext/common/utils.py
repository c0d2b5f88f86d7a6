"""LAVIS' helpers for paths, times and JSON; what fetches is `lavis_ext.fetch`, and `lavis-ext prepare`."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from lavis_ext.common.config.resolve import config_roots
from lavis_ext.common.files import decode_json, disk_errors, expanded, read_file
from lavis_ext.common.registry import registry
from lavis_ext.common.secrets import split_url


def now() -> str:
    """The local time as a job's name, with seconds: two starts in LAVIS' ten minutes would be one run to resume."""
    return time.strftime("%Y%m%d%H%M%S")


def is_url(url_or_filename: str) -> bool:
    """Whether it begins with http:// or https://."""
    return split_url(str(url_or_filename)).scheme in ("http", "https")


def get_cache_path(rel_path: str | Path = "") -> str:
    """A path below the cache root, `~` expanded; an absolute path is left as it is."""
    return str(expanded(Path(registry.get_path("cache_root"), rel_path)))


def get_abs_path(rel_path: str | Path) -> str:
    """A path below the folder that holds `configs/`; an absolute path is left as it is."""
    return str(Path(registry.get_path("library_root"), rel_path))


def find_yaml(path: str | Path) -> str:
    """The YAML that a class names: absolute, below the folder of `configs/`, or below one of `LAVIS_EXT_CONFIGS`."""
    inside = Path(*Path(path).parts[1:]) if Path(path).parts[:1] == ("configs",) else Path(path)
    places = [Path(get_abs_path(path)), *(root / inside for root in config_roots())]
    return str(next((place for place in places if place.is_file()), places[0]))


def load_json(filename: str | Path) -> Any:
    """The value of a JSON file."""
    return decode_json(read_file(Path(filename)))


def makedir(dir_path: str | Path) -> bool:
    """Make a folder and those above it; True, or DiskError where LAVIS gives False."""
    with disk_errors(Path(dir_path), "name another folder"):
        Path(dir_path).mkdir(parents=True, exist_ok=True)
    return True


def get_file_size(filename: str | Path) -> float:
    """The size of a file in MiB."""
    return Path(filename).stat().st_size / 2**20


def is_serializable(value: Any) -> bool:
    """Whether JSON can hold a value."""
    try:
        json.dumps(value)
    except (TypeError, OverflowError, ValueError):
        return False
    return True


def is_convertible_to_int(value: Any) -> bool:
    """Whether the text of a value is a whole number."""
    return re.fullmatch(r"-?\d+", str(value)) is not None
