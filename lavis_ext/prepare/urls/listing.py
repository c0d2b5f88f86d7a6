"""An artifact that lists images: its own files first, one or many parts, then the images that they name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from lavis_ext.common.config.cards import Artifact, ImageList
from lavis_ext.common.errors import ConfigError, UsageError
from lavis_ext.fetch import MirrorMap, Policy, Progress, Source, Transfer, fetch_all
from lavis_ext.prepare.urls.hosted import fetch_hosted
from lavis_ext.prepare.urls.job import Distributor, ListAccount, ListJob, read_account
from lavis_ext.prepare.urls.run import fetch_list

TABLES = (".parquet", ".json", ".jsonl", ".csv", ".tsv")


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """How the lists of a run are fetched; `source` is another place of the list's own files (see `list_files`)."""

    max_samples: int | None = None
    source: str = ""
    distributor: Distributor = "multiprocessing"
    processes: int = 0
    only: frozenset[str] | None = None
    """File names of the images that are wanted, in place of the first `max_samples` (engine `fetch`)."""
    policy: Policy = field(default_factory=Policy)
    mirrors: MirrorMap = field(default_factory=MirrorMap)


def work_folder(root: Path, artifact: Artifact) -> Path:
    """The folder of the bookkeeping of a list: `<family>/.lavis_ext/lists/<artifact>`."""
    family = PurePosixPath(_spec(artifact).storage).parts[0]
    return root / family / ".lavis_ext" / "lists" / (artifact.name or "images")


def list_account(root: Path, artifact: Artifact) -> ListAccount | None:
    """The account that the last run wrote of a list; opens no image."""
    return read_account(work_folder(root, artifact)) if artifact.lists else None


def part_count(spec: ImageList, max_samples: int | None) -> int:
    """How many of a list's files are needed for so many samples."""
    if max_samples is None or not spec.rows_per_part:
        return spec.parts
    return max(1, min(spec.parts, math.ceil(max_samples / spec.rows_per_part)))


def list_files(root: Path, artifact: Artifact, options: ListOptions) -> tuple[list[Path], list[Transfer]]:
    """The list's own files, and how to fetch those that are not local.

    By default they come from the artifact's url. `options.source` may be a folder of tables or one table (read in
    place), a text file of URLs, the address of one file, an address with `{part:05d}` in it, or a base (a repository
    `hf:datasets/owner/name` or a folder on a server) that holds parts under their usual names.
    Raises ConfigError for any other source.
    """
    spec, source = _spec(artifact), options.source
    folder = root / artifact.storage if spec.parts > 1 else (root / artifact.file).parent
    if not source:
        urls = list(_parts(artifact.url, spec, options.max_samples))
        if spec.parts == 1:
            return [root / artifact.file], [_with_mirrors(root / artifact.file, artifact, options)]
    elif Path(source).exists():
        local = _local_tables(Path(source))
        if local:
            return local, []
        urls = _read_urls(Path(source))
    elif urlsplit(source).scheme in ("http", "https", "hf", "gdrive"):
        urls = list(_parts(_under(source, artifact), spec, options.max_samples))
    else:
        raise ConfigError(
            "source", f"{source!r} is neither a file, a folder nor an address", "name one of https:, hf:, gdrive:"
        )
    folder = folder / re.sub(r"\W+", "-", source).strip("-")[-60:] if source else folder
    files = [folder / _name(url) for url in urls]
    return files, [_transfer(path, url, options) for path, url in zip(files, urls, strict=True)]


def fetch_list_files(
    root: Path, artifact: Artifact, options: ListOptions, progress: Progress | None = None
) -> list[Path]:
    """Fetch the list's own files (of Laion-COCO: its metadata); raises what the engine raises, AccessError too."""
    files, transfers = list_files(root, artifact, options)
    if transfers:
        fetch_all(transfers, options.policy, progress)
    return files


def fetch_images(
    root: Path, artifact: Artifact, threshold: float, options: ListOptions, progress: Progress | None = None
) -> ListAccount:
    """The list's own files, then every image that they name, by the engine that the list asks for.

    `threshold` counts where the list has none of its own. Raises as `fetch_list_files`, `fetch_hosted`, `fetch_list`.
    """
    # img2dataset opens URLs, not folders: what a local mirror holds comes through the fetch engine
    local = bool(options.mirrors) and urlsplit(options.mirrors.base).scheme not in ("http", "https")
    if local and _spec(artifact).output == "shards":
        what = "is a folder, and img2dataset, which makes the shards, asks a server"
        way_out = f"serve it (python -m http.server --directory {options.mirrors.base}) and name its address"
        raise UsageError(f"mirror {options.mirrors.base}", what, way_out)
    job = make_job(root, artifact, fetch_list_files(root, artifact, options, progress), threshold, options)
    by_engine = job.spec.output == "files" and (job.spec.engine == "fetch" or local)
    return fetch_hosted(job, progress) if by_engine else fetch_list(job, progress)


def make_job(root: Path, artifact: Artifact, files: Sequence[Path], threshold: float, options: ListOptions) -> ListJob:
    """The job that an artifact's list makes."""
    spec = _spec(artifact)
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
    )


def _spec(artifact: Artifact) -> ImageList:
    if artifact.lists is None:
        raise ConfigError(f"artifact '{artifact.name}'", "lists no images", "write `lists:` under it")
    return artifact.lists


def _parts(pattern: str, spec: ImageList, max_samples: int | None) -> Iterator[str]:
    if "{part" not in pattern:
        yield pattern
        return
    for part in range(part_count(spec, max_samples)):
        yield pattern.replace("{part:05d}", f"{part:05d}").replace("{part}", str(part))


def _under(source: str, artifact: Artifact) -> str:
    """An address of the parts: as it is where it names a file, else the usual names below it."""
    if "{part" in source or source.startswith("gdrive:") or urlsplit(source).path.endswith(TABLES):
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
    urls = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip() and line[0] != "#"]
    if not urls:
        raise ConfigError(str(path), "holds no address", "write one address per line")
    return urls


def _name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


def _transfer(path: Path, url: str, options: ListOptions) -> Transfer:
    return options.mirrors.apply(Transfer(path, (Source(url),), label=path.name))


def _with_mirrors(path: Path, artifact: Artifact, options: ListOptions) -> Transfer:
    others = (Source(m.url, m.equivalence, m.size, m.sha256, m.md5) for m in artifact.mirrors)
    transfer = Transfer(path, (Source(artifact.url), *others), artifact.size, artifact.sha256, artifact.md5)
    return options.mirrors.apply(replace(transfer, label=artifact.name))
