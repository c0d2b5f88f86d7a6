"""LAVIS' helpers for paths, times and JSON; what fetches is `lavis_ext.fetch`, and `lavis-ext prepare`."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from lavis_ext.common.config.resolve import config_roots
from lavis_ext.common.config.yamlio import read_value
from lavis_ext.common.dist_utils import download_cached_file as download_cached_file
from lavis_ext.common.errors import IntegrityError, UnsafeError, UsageError
from lavis_ext.common.files import decode_json, disk_errors, expanded, read_errors, read_file, replacing, write_atomic
from lavis_ext.common.lavis import refusing
from lavis_ext.common.registry import registry
from lavis_ext.common.secrets import split_url

log = logging.getLogger(__name__)


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


def save_file(data: Any, filename: str | Path, append_to_json: bool = True, verbose: bool = True) -> None:
    """Write `.json` (by default one line more), `.yaml` or `.npy`, by the name's end; raises UnsafeError for a pickle.

    Raises DiskError, and UsageError for another end.
    """
    path = expanded(filename)
    with disk_errors(path, "name another file"):
        if path.suffix == ".json":
            line = json.dumps(data, sort_keys=True) + "\n"
            if append_to_json:
                with path.open("a", encoding="utf-8") as file:
                    file.write(line)
            else:
                write_atomic(path, line)
        elif path.suffix == ".yaml":
            write_atomic(path, import_module("yaml").safe_dump(data, allow_unicode=True))
        elif path.suffix == ".npy":
            import numpy as np

            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, data, allow_pickle=False)
        else:
            raise unreadable(path)
    if verbose:
        log.info("saved %s", path)


def load_file(filename: str | Path, mmap_mode: Any = None, verbose: bool = True, allow_pickle: bool = False) -> Any:
    """Lines of `.txt`, the value of `.json` or `.yaml`, the array of `.npy` (mapped by `mmap_mode`), a frame of `.csv`.

    Nothing in a file is run: pickles, and `allow_pickle`, raise UnsafeError. Raises DiskError, IntegrityError for one
    that is not what its name says, UsageError for another end.
    """
    path = expanded(filename)
    if allow_pickle:
        raise UnsafeError(str(path), "a pickle runs what its author wrote", "leave out allow_pickle")
    if verbose:
        log.info("loading %s", path)
    try:
        with read_errors(path):
            if path.suffix == ".txt":
                return read_file(path).decode().splitlines(keepends=True)
            if path.suffix == ".json":
                return decode_json(read_file(path))
            if path.suffix == ".yaml":
                return read_value(read_file(path).decode(), str(path))
            if path.suffix == ".npy":
                import numpy as np

                return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
            if path.suffix == ".csv":
                return import_module("pandas").read_csv(path)
    except (ValueError, EOFError) as error:
        what = f"is no {path.suffix} of plain values: {str(error).splitlines()[0]}"
        raise IntegrityError(str(path), what, "write it again") from error
    raise unreadable(path)


def unreadable(path: Path) -> UnsafeError | UsageError:
    """Why `load_file` and `save_file` do not take a file."""
    if path.suffix in (".pkl", ".pickle"):
        return UnsafeError(str(path), "a pickle runs what its author wrote", "use .json or .npy")
    return UsageError(str(path), f"'{path.suffix}' is not served", "name it .json, .yaml or .npy")


def cleanup_dir(dir: str | Path) -> None:
    """Delete a folder with all that is in it; one that is not there is no error. Raises DiskError.

    Raises UnsafeError for a link, and for a folder in which the cache root, the home or the working directory lies.
    """
    path = expanded(dir)
    held = [Path(get_cache_path()), Path.home(), Path.cwd()]
    if path.is_symlink() or any(one.resolve().is_relative_to(path.resolve()) for one in held):
        raise UnsafeError(str(path), "is a link, or holds the cache root, your home or this folder", "name another")
    if path.exists():
        with disk_errors(path, "delete it by hand"):
            shutil.rmtree(path)
        log.info("deleted %s", path)


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


_PREPARE = "`lavis-ext prepare` fetches what a card declares, and verifies it; `download_cached_file` fetches one file"
__getattr__ = refusing(
    __name__,
    **dict.fromkeys(
        ("download_url", "cache_url", "download_google_drive_url", "to_google_drive_download_url"), _PREPARE
    ),
    **dict.fromkeys(("download_and_extract_archive", "download_and_untar"), "`unpack` of a card does it, safely"),
    get_redirected_url="the engine follows redirects by itself, each checked: give the address that you have",
)
