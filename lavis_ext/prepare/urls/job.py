"""`ListJob`: what is asked of a list of images; `Pass`: the folders of one pass over it; `ListAccount`: the result."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from lavis_ext.common.config.cards import Artifact, ImageList
from lavis_ext.common.errors import ConfigError, LavisExtError, NetworkError, PartialError
from lavis_ext.common.files import read_object, replacing, sha256_of, write_json
from lavis_ext.common.secrets import redact, redact_url
from lavis_ext.fetch import MirrorMap, Policy
from lavis_ext.fetch.safety import identity

if TYPE_CHECKING:
    from lavis_ext.prepare.urls.rows import ListedImage

Distributor = Literal["multiprocessing", "pyspark", "ray"]
MOST_PROCESSES = 16
ASIDE = ".lavis_ext/set_aside"
"""Where files and shards go that are no images, or of other rows than the list has now."""
REPEATS = 5
"""Images of one digest that are counted apart: hosts send one picture in the place of many that are gone."""


@dataclass(frozen=True, kw_only=True)
class ListJob:
    """One list: annotation files, what their keys mean, where images and bookkeeping go, and how hard to try.

    Times are seconds, sizes bytes.
    """

    name: str
    annotations: tuple[Path, ...]
    target: Path
    """Folder of the images or shards."""
    work: Path
    """Folder of the bookkeeping, on the same file system as the target."""
    spec: ImageList
    threshold: float = 1.0
    max_samples: int | None = None
    only: frozenset[str] | None = None
    """File names of the images that are wanted, in place of the first `max_samples` (engine `fetch`)."""
    mirrors: MirrorMap = field(default_factory=MirrorMap)
    policy: Policy = field(default_factory=Policy)
    distributor: Distributor = "multiprocessing"
    processes: int = 0
    """0: one per core, at most 16."""
    threads: int = 64
    """Downloads at a time, in each process."""
    timeout: float = 10.0
    """Without a byte from a host."""
    deadline: float = 60.0
    """For one body."""
    max_bytes: int = 64 << 20
    """Of one body."""
    passes: int = 2
    """Further passes over rows that failed for reasons that may pass."""
    backoff: float = 5.0
    """Before the first of them; doubled before each next one."""
    stall: float = 300.0
    """Without any progress for this long the process that downloads is killed."""
    restarts: int = 1
    """How often it is started again after that, or after a crash, without a shard that was finished in between."""
    source: str = ""
    """Where the list's own files come from, in place of the artifact's url."""
    addresses: Mapping[Path, str] = field(default_factory=dict)
    """The URL that each of them was fetched from; none for those of the user."""
    damaged: tuple[Path, ...] = ()
    """Images or shards that a check found wrong: they are set aside once the list is read, and made again."""

    @property
    def shards(self) -> bool:
        """Whether the images go into tar shards."""
        return self.spec.output == "shards"

    @property
    def process_count(self) -> int:
        """Processes that download."""
        return self.processes or min(MOST_PROCESSES, os.cpu_count() or 1)

    @property
    def root(self) -> Path:
        """The cache root."""
        return self.work.parents[3]

    @property
    def allow_private(self) -> bool:
        """Whether addresses inside this network are fine: asked for, or the user named a mirror."""
        return self.policy.allow_private or bool(self.mirrors)


@dataclass(frozen=True)
class Pass:
    """The folders of one pass: URL tables, and what img2dataset writes for each; shards are numbered from `first`."""

    folder: Path
    tables: Path
    first: int
    hashes: tuple[str, ...]
    """Of the rows of each table."""

    @property
    def count(self) -> int:
        """How many shards it has."""
        return len(self.hashes)

    @property
    def out(self) -> Path:
        """Where img2dataset works: statistics, status tables, unpublished shards."""
        return self.folder / "out"

    @property
    def shards(self) -> range:
        """The numbers of its shards."""
        return range(self.first, self.first + self.count)

    def input_hash(self, shard: int) -> str:
        """The hash of the rows of a shard."""
        return self.hashes[shard - self.first]

    def table(self, shard: int) -> Path:
        """The URL table of a shard."""
        return self.tables / f"{shard - self.first:05d}.parquet"

    def stats(self, shard: int) -> Path:
        """The statistics of a shard, which img2dataset writes last."""
        return self.out / f"{shard:05d}_stats.json"

    def status(self, shard: int) -> Path:
        """What became of each row of a shard."""
        return self.out / f"{shard:05d}.parquet"

    def pulse(self, shard: int) -> Path:
        """Rows and bytes so far."""
        return self.out / f"{shard:05d}.pulse"

    def tar(self, shard: int) -> Path:
        """The shard, before it is published."""
        return self.out / f"{shard:05d}.tar"

    def forget(self, shard: int) -> None:
        """Remove the bookkeeping of a shard, so that it is made again; published data stays where it is."""
        for path in (self.stats(shard), self.status(shard), self.pulse(shard), self.tar(shard)):
            path.unlink(missing_ok=True)


# What a list was made from: a run in which nothing is left to retry would not notice another one


def spec_digest(spec: ImageList) -> str:
    """Of what decides which images are wanted and how they are kept."""
    kept = {key: value for key, value in asdict(spec).items() if key not in ("threshold", "expected", "rows_per_part")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def shown_source(source: str) -> str:
    """A source as records may hold it: without what may be a secret in an address."""
    return identity(source) if "://" in source else source


def place_of(path: Path, root: Path) -> str:
    """A file's name in the account, the same in a copy of the cache root."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path.absolute())


def origin_of(job: ListJob) -> dict[str, Any]:
    """Source, spec, and per file of the list its URL, size, mtime and sha256; files that the last account has with the
    same size and mtime are not hashed again. Raises OSError."""
    old = read_account(job.work)
    known = old.origin.get("files", {}) if old is not None else {}
    files = {}
    for path in job.annotations:
        status, name = path.stat(), place_of(path, job.root)
        stamp = [identity(job.addresses.get(path, "")), status.st_size, status.st_mtime_ns]
        kept = known.get(name, [])
        files[name] = kept if kept[:3] == stamp else [*stamp, sha256_of(path)]
    return {"source": shown_source(job.source), "spec": spec_digest(job.spec), "files": files}


def is_of_origin(origin: Mapping[str, Any], addresses: Mapping[Path, str], root: Path) -> bool:
    """Whether the files of a list are those that an account was made from, by size and mtime, else by sha256.

    `addresses` is each file's URL, "" for one of the user's own. A fetched file that was removed since does not count:
    parts of a list are large.
    """
    files = origin["files"]
    if not all(addresses.values()) and len(files) != len(addresses):
        return False
    for path, url in addresses.items():
        kept = files.get(place_of(path, root))
        if kept is None or kept[0] != identity(url):
            return False
        try:
            status = path.stat()
            same = status.st_size == kept[1] and (status.st_mtime_ns == kept[2] or sha256_of(path) == kept[3])
        except OSError:
            same = bool(url)
        if not same:
            return False
    return True


# The account


class Passing(Enum):
    """Reasons of a lost image that another try may not meet again; the values stand in `missing.tsv`.

    Statuses of servers (`HTTP 503`) are the others: see `passing_status`.
    """

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    NAME_SERVER = "name server"
    UNFINISHED = "unfinished"
    GONE = "gone from the disk"
    ALTERED = "not the bytes of the mirror's manifest"


PLACEHOLDER = "placeholder"
PASSING_REASONS = frozenset(reason.value for reason in Passing)
SHOWN = 4

_STATUS = re.compile(r"HTTP (\d{3})\b")


def passing_status(status: int) -> bool:
    """Whether another try may get another answer than this HTTP status."""
    return status in (408, 425, 429) or status >= 500


@dataclass(frozen=True)
class LostImage:
    """A sample without an image."""

    id: str
    url: str
    reason: str
    corrupt: bool = False
    row: int = -1
    """Number of its record in the list, from 0; -1 in the index of an older version, which does not say."""

    @classmethod
    def of(cls, row: ListedImage, reason: str, corrupt: bool = False) -> LostImage:
        """A row whose image is lost."""
        return cls(row.id, row.url, reason, corrupt, row.number)

    def fields(self) -> Iterator[str]:
        """Its line of `missing.tsv`: the query and the password of an address are in the list, and nowhere else."""
        yield from (redact(self.id), redact_url(self.url), redact(self.reason), str(self.row) if self.row >= 0 else "")


@dataclass(kw_only=True)
class ListAccount:
    """The result of a list: `expected` = `present` + `missing` + `corrupt`; the file `lost` names every lost image."""

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
    origin: dict[str, Any] = field(default_factory=dict)
    """What it was made from, see `origin_of`; empty in accounts of older versions."""
    repeated: dict[str, int] = field(default_factory=dict)
    """Present images that are one picture under several URLs: its sha256 → how many, the most frequent first."""

    @property
    def share(self) -> float:
        """Present of expected; 1 for an empty list."""
        return self.present / self.expected if self.expected else 1.0

    @property
    def error(self) -> LavisExtError | None:
        """PartialError (exit code 8) below the threshold, NetworkError (4) where nothing is there for reasons of the
        network alone, None where enough is there."""
        if self.share >= self.threshold and (self.present or not self.expected):
            return None
        what = f"{self.present:,} of {self.expected:,} images are there ({self.share:.1%}); {self.top_reasons()}"
        way_out = f"run again to retry what may have passed; {self.lost} names every one that is missing"
        if not self.present and not set(self.reasons) - PASSING_REASONS:
            return NetworkError(self.name, what, way_out)
        return PartialError(self.name, f"{what}, {self.threshold:.0%} are asked for", way_out)

    @property
    def passing(self) -> bool:
        """Whether some reasons may have passed by the next run."""
        statuses = (found for reason in self.reasons if (found := _STATUS.match(reason)))
        return not PASSING_REASONS.isdisjoint(self.reasons) or any(passing_status(int(found[1])) for found in statuses)

    def covers(self, max_samples: int | None) -> bool:
        """Whether it was made for at least so many samples (None: for all)."""
        return self.asked is None or (max_samples is not None and max_samples <= self.asked)

    def check(self) -> None:
        """Raise `error`, if there is one."""
        error = self.error
        if error is not None:
            raise error

    def top_reasons(self) -> str:
        """`HTTP 404 ×12, timeout ×3, 2 other reasons`."""
        shown = [f"{reason} ×{count:,}" for reason, count in self.reasons.most_common(SHOWN)]
        more = len(self.reasons) - SHOWN
        return ", ".join(shown + ([f"{more} other reasons"] if more > 0 else [])) or "no reason is known"

    def line(self) -> str:
        """One line for a person."""
        text = f"{self.name}: {self.present:,} of {self.expected:,} images ({self.share:.1%})"
        text += f", {self.missing:,} missing, {self.corrupt:,} corrupt"
        text = f"{text}: {self.top_reasons()}" if self.reasons else text
        if not self.repeated:
            return text
        count = sum(self.repeated.values())
        return f"{text}; {count:,} of those present are {len(self.repeated):,} pictures that repeat"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "reasons": dict(self.reasons.most_common()), "lost": str(self.lost or "")}

    def save(self, folder: Path, losses: Iterable[LostImage]) -> None:
        """Count losses, write them to `missing.tsv`, then the account to `account.json`; both atomically."""
        self.lost = folder / "missing.tsv"
        with replacing(self.lost) as part, part.open("w", encoding="utf-8", errors="replace", newline="") as file:
            file.write("id\turl\treason\trow\n")
            for loss in losses:
                self.reasons[loss.reason] += 1
                self.corrupt += loss.corrupt
                self.missing += not loss.corrupt
                file.write("\t".join(" ".join(value.split()) for value in loss.fields()) + "\n")
        write_json(folder / "account.json", self.as_dict())


def spec_of(artifact: Artifact) -> ImageList:
    """What an artifact says of its list; raises ConfigError for one that lists no images."""
    if artifact.lists is None:
        raise ConfigError(f"artifact '{artifact.name}'", "lists no images", "write `lists:` under it")
    return artifact.lists


def work_folder(root: Path, artifact: Artifact) -> Path:
    """The folder of the bookkeeping of a list: `<family>/.lavis_ext/lists/<artifact>`."""
    family = PurePosixPath(spec_of(artifact).storage).parts[0]
    return root / family / ".lavis_ext" / "lists" / (artifact.name or "images")


def list_account(root: Path, artifact: Artifact) -> ListAccount | None:
    """The account that the last run wrote of a list; opens no image."""
    return read_account(work_folder(root, artifact)) if artifact.lists else None


def read_account(folder: Path) -> ListAccount | None:
    """The account that the last run left in a folder, or None."""
    raw = read_object(folder / "account.json")
    try:
        raw["lost"] = Path(raw["lost"]) if raw["lost"] else None
        account = ListAccount(**{**raw, "reasons": Counter(raw["reasons"])})
    except (ValueError, TypeError, KeyError):
        return None
    counts = (account.expected, account.present, account.shards, account.samples, account.asked or 0)
    return account if all(type(count) is int for count in counts) else None
