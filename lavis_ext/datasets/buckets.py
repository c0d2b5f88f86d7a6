"""Shards in object stores: which objects `storage:` names, what is declared of them, and their files when needed.

A run pins the version of every object when it starts. Each is fetched whole into a cache on the local disk by the
engine that fetches everything else, and is then read as a local shard is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import decode_json, read_object, write_json
from lavis_ext.datasets.readers.shard_index import MOST, SHOWN, Shard, beside_names, braced, checked_shards
from lavis_ext.fetch.cache import CachedObject, ObjectCache, digest_of
from lavis_ext.fetch.hub import SHA256
from lavis_ext.fetch.objects import REMOTE, Pinned, expand
from lavis_ext.fetch.remote import fetch_page
from lavis_ext.fetch.safety import redact_url
from lavis_ext.fetch.session import Session, scheme_of
from lavis_ext.fetch.transfer import Source

log = logging.getLogger(__name__)
ASKED = 16
"""Small files that are asked for at a time."""
LARGEST = 64 << 20


def is_remote(pattern: str) -> bool:
    """Whether a pattern of `storage:` names objects."""
    return scheme_of(pattern) in REMOTE


@dataclass(frozen=True)
class CountedObject(CachedObject):
    """A shard whose entries are counted once on this machine, where nothing says how many there are."""

    def count(self, needs: tuple[str, ...]) -> int | None:
        """The count that is kept, None where there is none."""
        found = read_object(self._kept).get(" ".join(needs))
        return found if type(found) is int and found >= 0 else None

    def keep_count(self, needs: tuple[str, ...], count: int) -> None:
        """Keep the count for later runs."""
        write_json(self._kept, {**read_object(self._kept), " ".join(needs): count})

    @property
    def _kept(self) -> Path:
        return self.cache.folder / "counts" / f"{digest_of(self.pinned)}.json"


@dataclass(frozen=True)
class CountedShard(Shard):
    """A shard that is fetched to be counted at most once, not at each start."""

    def count_entries(self, needs: tuple[str, ...]) -> int:
        """As of a local shard."""
        remote = self.remote
        if self.promised is not None or not isinstance(remote, CountedObject):
            return super().count_entries(needs)
        found = remote.count(needs)
        if found is None:
            found = super().count_entries(needs)
            remote.keep_count(needs, found)
        return found


@dataclass(eq=False)
class ShardBucket:
    """The shards that `storage:` names in object stores, in order. Picklable."""

    objects: Sequence[Pinned]
    cache: ObjectCache
    there: frozenset[str] | None = None
    """Addresses of all objects beside them; None where the host lists nothing, and each is asked for."""

    @classmethod
    def find(cls, storage: Sequence[str], cache: ObjectCache, where: str) -> ShardBucket:
        """The objects of patterns with braces, wildcards, or a folder that ends in a slash.

        Raises ConfigError for local paths among them and for objects that are not there, and as `fetch` does.
        """
        local = [pattern for pattern in storage if not is_remote(pattern)]
        if local:
            raise ConfigError(
                where, f"'{local[0]}' is local, others are in object stores", "make two data sets of them"
            )
        found: dict[Pinned, None] = {}
        there: set[str] = set()
        lists = True
        for pattern in storage:
            names = list(islice(braced(pattern), MOST + 1))
            if len(names) > MOST:
                raise ConfigError(
                    where, f"'{redact_url(pattern)}' names more than {MOST:,} shards", "correct the range"
                )
            objects, absent, around = expand(pattern, names, cache.policy)
            if absent:
                shown = ", ".join(redact_url(name).rpartition("/")[2] or redact_url(name) for name in absent[:SHOWN])
                what = (
                    f"'{redact_url(pattern)}' names {len(names):,} shards, {len(absent):,} of them are absent: {shown}"
                )
                raise ConfigError(where, what, "correct it, or name what is there")
            found |= dict.fromkeys(objects)
            lists = lists and around is not None
            there |= set(around or ())
        bucket = cls(list(found), cache, frozenset(there) if lists else None)
        checked_shards(bucket.paths, where)
        return bucket

    @property
    def paths(self) -> list[Path]:
        """Where the shards will lie."""
        return [self.cache.path(one) for one in self.objects]

    @property
    def limit(self) -> int:
        """Bytes of the cache."""
        return self.cache.limit

    @property
    def ahead(self) -> int:
        """Shards that are fetched before they are needed."""
        return self.cache.ahead

    @cached_property
    def identity(self) -> str:
        """A digest of addresses, sizes and versions."""
        lines = "\n".join(f"{one.shown} {one.size} {one.version}" for one in self.objects)
        return sha256(lines.encode()).hexdigest()

    def open(self, check: bool) -> Sequence[Shard]:
        """The shards with what their manifests declare."""
        infos: dict[str, dict[str, Any]] = {}
        with Session(self.cache.policy) as session, ThreadPoolExecutor(ASKED) as pool:  # connections are used again
            for one in self.objects:
                base = one.url.rpartition("/")[0]
                if base not in infos:
                    infos[base] = self._object(session, f"{base}/_info.json")
            opened = pool.map(
                lambda one: self._open(session, one, infos[one.url.rpartition("/")[0]], check), self.objects
            )
            shards = list(opened)
        uncounted = [shard for shard in shards if shard.promised is None]
        if uncounted:
            log.warning(
                "%s: nothing says how many samples it has, as of %d of %d shards: each is fetched once to be counted",
                uncounted[0].where, len(uncounted), len(shards),
            )  # fmt: skip
        return shards

    def _open(self, session: Session, one: Pinned, info: dict[str, Any], check: bool) -> Shard:
        base = one.url.rpartition("/")[0]
        names = beside_names(one.name)
        beside: dict[str, dict[str, Any]] = {"info": info}
        for kind in ("manifest", "stats"):
            beside[kind] = self._object(session, f"{base}/{quote(names[kind])}")
            if beside[kind]:
                break
        digest = beside["manifest"].get("sha256")
        if (
            not one.sha256
            and isinstance(digest, str)
            and SHA256.fullmatch(digest)
            and beside["manifest"].get("bytes") == one.size
        ):
            one = replace(one, sha256=digest)
        remote = CountedObject(one, self.cache)
        return CountedShard.of(remote.path, one.size, beside, check, remote=remote)

    def _object(self, session: Session, url: str) -> dict[str, Any]:
        """The JSON object at an address, empty where there is none that can be read."""
        if self.there is not None and url not in self.there:
            return {}
        page = fetch_page(session, Source(url, trusted=True), LARGEST)
        try:
            value = decode_json(page[0] if page else b"")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def begin(self, shards: Sequence[Shard]) -> None:
        """Begin to fetch these, in this order."""
        self.cache.prefetch(shard.remote.pinned for shard in shards if isinstance(shard.remote, CachedObject))
