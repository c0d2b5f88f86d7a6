"""An artifact that lists images: its own files first, one or many parts, then the images that they name."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from lavis_ext.common.config.cards import Artifact, ImageList
from lavis_ext.common.errors import ConfigError, UsageError
from lavis_ext.common.files import read_file
from lavis_ext.fetch import MirrorMap, Policy, Progress, Source, Transfer, fetch_all
from lavis_ext.fetch.safety import identity, split_url
from lavis_ext.prepare.extract import set_aside
from lavis_ext.prepare.records import disk_errors
from lavis_ext.prepare.urls.hosted import fetch_hosted
from lavis_ext.prepare.urls.job import (
    Distributor,
    ListAccount,
    ListJob,
    is_of_origin,
    list_account,
    place_of,
    shown_source,
    spec_digest,
    spec_of,
    work_folder,
)
from lavis_ext.prepare.urls.rows import DamagedList
from lavis_ext.prepare.urls.run import fetch_list

log = logging.getLogger(__name__)
TABLES = (".parquet", ".json", ".jsonl", ".csv", ".tsv")


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """How the lists of a run are fetched; `source` is another place of the list's own files (see `list_addresses`)."""

    max_samples: int | None = None
    source: str = ""
    distributor: Distributor = "multiprocessing"
    processes: int = 0
    only: frozenset[str] | None = None
    """File names of the images that are wanted, in place of the first `max_samples` (engine `fetch`)."""
    damaged: tuple[Path, ...] = ()
    """Images or shards that a check found wrong, to be made again."""
    policy: Policy = field(default_factory=Policy)
    mirrors: MirrorMap = field(default_factory=MirrorMap)


def part_count(spec: ImageList, max_samples: int | None) -> int:
    """How many of a list's files are needed for so many samples."""
    if max_samples is None or not spec.rows_per_part:
        return spec.parts
    return max(1, min(spec.parts, math.ceil(max_samples / spec.rows_per_part)))


def list_addresses(root: Path, artifact: Artifact, options: ListOptions) -> dict[Path, str]:
    """The list's own files, in order, and the URL of each; "" for those of the user.

    By default they come from the artifact's url. `options.source` may be a folder of tables or one table (read in
    place), a text file of URLs, the address of one file, an address with `{part:05d}` in it, or a base (a repository
    `hf:datasets/owner/name` or a folder on a server) that holds parts under their usual names.
    Raises ConfigError for any other source.
    """
    spec, source = spec_of(artifact), options.source
    folder = root / artifact.storage if spec.parts > 1 else (root / artifact.file).parent
    if not source:
        if spec.parts == 1:
            return {root / artifact.file: artifact.url}
        urls = list(_parts(artifact.url, spec, options.max_samples))
    elif source.startswith(("http:", "https:", "hf:", "gdrive:")):
        urls = list(_parts(_under(source, artifact), spec, options.max_samples))
    elif os.path.exists(source):  # noqa: PTH110 - of any text, without an error
        local = _local_tables(Path(source))
        if local:
            return dict.fromkeys(local, "")
        urls = _read_urls(Path(source))
    else:
        raise ConfigError(
            "source", f"{source!r} is neither a file, a folder nor an address", "name one of https:, hf:, gdrive:"
        )
    urls = list(dict.fromkeys(urls))
    counts = Counter(map(_name, urls))
    names = [_name(url) if counts[_name(url)] == 1 else f"{n:05d}-{_name(url)}" for n, url in enumerate(urls)]
    return dict(zip((folder / _folder_of(source) / name for name in names), urls, strict=True))


def _folder_of(source: str) -> str:
    """A folder's name for another source: its last 60 characters, and a digest where others may end so too."""
    shown = shown_source(source)
    plain = re.sub(r"\W+", "-", shown).strip("-")
    return plain if len(plain) <= 60 else f"{plain[-50:]}-{hashlib.sha256(shown.encode()).hexdigest()[:9]}"


def fetch_list_files(
    root: Path, artifact: Artifact, options: ListOptions, progress: Progress | None = None
) -> dict[Path, str]:
    """Fetch the list's own files (of Laion-COCO: its metadata); returns them with their URLs.

    One that the last account has from another URL is set aside first. Raises what the engine raises, AccessError too.
    """
    files = list_addresses(root, artifact, options)
    account = list_account(root, artifact)
    known = account.origin.get("files", {}) if account is not None else {}
    with disk_errors(root):
        for path, url in files.items():
            kept = known.get(place_of(path, root))
            if url and kept is not None and kept[0] != identity(url) and path.is_file() and spec_of(artifact).parts > 1:
                set_aside(path)
    transfers = [_transfer(path, url, artifact, options) for path, url in files.items() if url]
    if transfers:
        fetch_all(transfers, options.policy, progress)
    return files


def is_made_from(root: Path, artifact: Artifact, options: ListOptions, account: ListAccount) -> bool:
    """Whether an account is of the list as it is declared and lies there now; opens no socket.

    Accounts of older versions do not say. Raises ConfigError for a source that is none.
    """
    origin, asked = account.origin, (shown_source(options.source), spec_digest(spec_of(artifact)))
    if not origin or (origin["source"], origin["spec"]) != asked:
        return False
    return is_of_origin(origin, list_addresses(root, artifact, options), root)


def fetch_images(
    root: Path, artifact: Artifact, threshold: float, options: ListOptions, progress: Progress | None = None
) -> ListAccount:
    """The list's own files, then every image that they name, by the engine that the list asks for.

    `threshold` counts where the list has none of its own. A file of the list that was fetched and cannot be read is set
    aside and fetched once more. Raises as `fetch_list_files`, `fetch_hosted`, `fetch_list`.
    """
    # img2dataset opens URLs, not folders: what a local mirror holds comes through the fetch engine
    local = bool(options.mirrors) and split_url(options.mirrors.base).scheme not in ("http", "https")
    if local and spec_of(artifact).output == "shards":
        what = "is a folder, and img2dataset, which makes the shards, asks a server"
        way_out = f"serve it (python -m http.server --directory {options.mirrors.base}) and name its address"
        raise UsageError(f"mirror {options.mirrors.base}", what, way_out)
    job = make_job(root, artifact, fetch_list_files(root, artifact, options, progress), threshold, options)
    by_engine = job.spec.output == "files" and (job.spec.engine == "fetch" or local)
    engine = fetch_hosted if by_engine else fetch_list
    try:
        return engine(job, progress)
    except DamagedList as error:
        if not job.addresses.get(error.path):
            raise
        log.warning("%s; it is set aside and fetched once more", error)
        with disk_errors(error.path):
            set_aside(error.path)
        fetch_list_files(root, artifact, options, progress)
        return engine(job, progress)


def make_job(
    root: Path, artifact: Artifact, files: Mapping[Path, str], threshold: float, options: ListOptions
) -> ListJob:
    """The job that an artifact's list makes; `files` are its own, each with its URL."""
    spec = spec_of(artifact)
    return ListJob(
        name=f"{artifact.family or PurePosixPath(spec.storage).parts[0]}/{artifact.name} images",
        annotations=tuple(files),
        target=root / spec.storage,
        work=work_folder(root, artifact),
        spec=spec,
        threshold=threshold if spec.threshold is None else spec.threshold,
        max_samples=options.max_samples,
        only=options.only,
        mirrors=options.mirrors,
        policy=options.policy,
        distributor=options.distributor,
        processes=options.processes,
        backoff=ListJob.backoff * options.policy.backoff / Policy.backoff,
        source=options.source,
        addresses=files,
        damaged=options.damaged,
    )


def _parts(pattern: str, spec: ImageList, max_samples: int | None) -> Iterator[str]:
    if "{part" not in pattern:
        yield pattern
        return
    for part in range(part_count(spec, max_samples)):
        yield pattern.replace("{part:05d}", f"{part:05d}").replace("{part}", str(part))


def _under(source: str, artifact: Artifact) -> str:
    """An address of the parts: as it is where it names a file, else the usual names below it."""
    if "{part" in source or source.startswith("gdrive:") or split_url(source).path.endswith(TABLES):
        return source
    return f"{source.rstrip('/')}/{artifact.url.rpartition('/')[2]}"


def _local_tables(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in TABLES else []
    found = sorted(file for file in path.iterdir() if file.suffix in TABLES)
    if not found:
        raise ConfigError(str(path), "holds no table", f"name a folder of {', '.join(TABLES)} files")
    return found


def _read_urls(path: Path) -> list[str]:
    try:
        lines = read_file(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is neither a table nor a text of addresses ({error})", "name one") from error
    urls = [line.strip() for line in lines if line.strip() and line[0] != "#"]
    if not urls:
        raise ConfigError(str(path), "holds no address", "write one address per line")
    return urls


def _name(url: str) -> str:
    return PurePosixPath(unquote(split_url(url).path)).name


def _transfer(path: Path, url: str, artifact: Artifact, options: ListOptions) -> Transfer:
    """How to fetch a file of a list; the artifact's figures and mirrors are those of its one file."""
    if url != artifact.url:
        return options.mirrors.apply(Transfer(path, (Source(url),), label=path.name))
    others = (Source(m.url, m.equivalence, m.size, m.sha256, m.md5) for m in artifact.mirrors)
    transfer = Transfer(path, (Source(url), *others), artifact.size, artifact.sha256, artifact.md5)
    return options.mirrors.apply(replace(transfer, label=artifact.name))
