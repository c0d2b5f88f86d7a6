"""Objects in buckets, through obstore: the opener of `s3://`, `gs://` and `az://`, listings, writing, and `Pinned`.

A bucket's credentials come from its provider's own chain (environment, web identity, the machine's own; for S3 the
profiles of `~/.aws` where boto3 is installed), never from a YAML, and never stand in an error: what a store answers may
repeat a signature, so that of its text only the first words are told.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache
from typing import Any
from urllib.parse import quote, unquote

from lavis_ext.common.errors import ConfigError, IntegrityError, NetworkError
from lavis_ext.common.files import is_encodable
from lavis_ext.fetch.remote import RemoteFile
from lavis_ext.fetch.safety import redact, redact_url, split_url
from lavis_ext.fetch.session import Reply, Request, Session, Validators, register_opener, scheme_of
from lavis_ext.fetch.transfer import Failure, Policy, Unsatisfiable, backoff, is_set, to_error

BUCKETS = ("s3", "gs", "az")
REMOTE = (*BUCKETS, "hf", "http", "https")
ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
PIECE = 1 << 18
MISSING = "obstore is not installed: pip install -c constraints.txt 'lavis_ext[cloud]'"


@dataclass(frozen=True)
class Pinned:
    """One version of an object: its address, its size, and what names the version ("" where its host says nothing)."""

    url: str
    size: int
    version: str = ""
    sha256: str | None = None
    fixed: bool = False
    """Whether its address names the version: a commit."""

    @property
    def name(self) -> str:
        """The last part of its address, decoded."""
        return unquote(split_url(self.url).path).rpartition("/")[2]

    @property
    def shown(self) -> str:
        """Its address without secrets."""
        return redact_url(self.url)


class ObjectBody:
    """The bytes of an answer as obstore streams them."""

    def __init__(self, stream: Any) -> None:
        self._pieces = iter(stream)
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end; raises Failure."""
        if not self._rest:
            with _failures():
                self._rest = memoryview(next(self._pieces, b""))
        found, self._rest = self._rest[:size], self._rest[size:]
        return bytes(found)

    def readinto(self, buffer: memoryview) -> int:
        """`read` into a buffer."""
        if not self._rest:
            with _failures():
                self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        """Drop what is left."""
        self._pieces = iter(())

    def abort(self) -> None:
        pass  # a read ends by the store's own read timeout


@register_opener(*BUCKETS)
class ObjectOpener:
    """Ranges of objects, of one version where the request names one."""

    def __init__(self, session: Session) -> None:
        self._policy = session.policy

    def open(self, request: Request) -> Reply:
        """The bytes; raises Failure, Unsatisfiable."""
        store, path = store_of(request.url, self._policy)
        options: dict[str, Any] = {"if_match": request.condition} if request.condition else {}
        if not request.whole:
            options["range"] = (
                {"offset": request.start}
                if request.stop is None
                else (request.start, max(request.stop, request.start + 1))
            )
        import obstore

        try:
            with _failures():
                found = obstore.get(store, path, options=options)
        except Failure as failure:
            if request.start and failure.kind == "transient":
                self._refuse_past_end(store, path, request.start)
            raise
        meta, (start, _) = found.meta, found.range
        body = ObjectBody(found.stream(min_chunk_size=PIECE))
        return Reply(
            start,
            meta["size"],
            body,
            Validators(etag=meta.get("e_tag") or meta.get("version")),
            partial=not request.whole,
            ranges=True,
        )

    def _refuse_past_end(self, store: Any, path: str, start: int) -> None:
        """A store's 416 has no type of its own: where the object ends before the range, raise Unsatisfiable."""
        import obstore

        with _failures():
            size = obstore.head(store, path)["size"]
        if start >= size:
            raise Unsatisfiable(size)

    def close(self) -> None:
        """Stores are kept: they hold the connections of a process."""


@contextmanager
def _failures() -> Iterator[None]:
    """Turn obstore's errors inside the block into a Failure, by their type."""
    import obstore.exceptions as known

    try:
        yield
    except (known.NotFoundError, FileNotFoundError):
        raise Failure("absent", "no such object or bucket") from None
    except (known.PermissionDeniedError, known.UnauthenticatedError):
        raise Failure("access", "the store refuses it: see that its credentials are set and may read") from None
    except known.PreconditionError:
        raise Failure("replaced", "the object was replaced while it was read") from None
    except (known.InvalidPathError, known.UnknownConfigurationKeyError, known.NotSupportedError) as error:
        raise Failure("final", _first_words(error)) from None
    except (known.BaseError, OSError) as error:
        raise Failure("transient", _first_words(error)) from None


def _first_words(error: Exception) -> str:
    """What a store's error begins with: what follows may be the answer itself, with keys and signatures in it."""
    return redact(re.split(r"[<\n{]", str(error), maxsplit=1)[0])[:160].strip() or type(error).__name__


def place_of(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and decoded key of an address; raises Failure for one without a bucket."""
    parts = split_url(url)
    if not parts.netloc or "@" in parts.netloc or not is_encodable(url):
        raise Failure(
            "final", f"not an object's address: expected {parts.scheme}://BUCKET/KEY, credentials are not in it"
        )
    return parts.scheme.lower(), parts.netloc, unquote(parts.path).lstrip("/")


def store_of(url: str, policy: Policy) -> tuple[Any, str]:
    """The store of an object's bucket, kept for the process, and the object's key; raises Failure."""
    scheme, bucket, key = place_of(url)
    with _LOCK:
        return _store(scheme, bucket, policy.connect_timeout, policy.stall_timeout), key


_LOCK = threading.Lock()


@cache
def _store(scheme: str, bucket: str, connect: float, stall: float) -> Any:
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise Failure("package", MISSING) from error
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=connect),
        "read_timeout": timedelta(seconds=stall),
        "timeout": timedelta(hours=1),  # its default of 30 s is for a whole body; a silent one is the read timeout's
    }
    if is_set(ALLOW_HTTP[scheme]):  # options that are given take the place of those in the environment
        options["allow_http"] = True
    # one try each: the engine counts attempts, and goes on where a body was cut
    more: dict[str, Any] = {"client_options": options, "retry_config": {"max_retries": 0}}
    with _failures():
        try:
            if scheme == "s3":
                return S3Store(bucket, **more, **_profile())
            return GCSStore(bucket, **more) if scheme == "gs" else AzureStore(bucket, **more)
        except ValueError as error:
            raise Failure("final", _first_words(error)) from None


def _profile() -> dict[str, Any]:
    """boto3's chain where it is installed and nothing is in the environment: obstore's own knows no profiles."""
    named = (
        "AWS_ACCESS_KEY_ID",
        "AWS_SKIP_SIGNATURE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    )
    if any(os.environ.get(name) for name in named):
        return {}
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider

        session = boto3.Session()
        return {"credential_provider": Boto3CredentialProvider(session)} if session.get_credentials() else {}
    except (ImportError, ValueError):
        return {}


# What there is: by a listing of the bucket or the hub, or object by object


def listed(url: str, policy: Policy | None = None) -> list[Pinned]:
    """All objects whose address begins with `url`, sorted, of a bucket or a repository of the hub.

    Raises ConfigError for a host that lists nothing (https), and as `fetch` does.
    """
    scheme = scheme_of(url)
    policy = policy or Policy()
    if scheme == "hf":
        from lavis_ext.fetch.hub import list_repository

        return sorted(list_repository(url, policy), key=lambda one: one.url)
    if scheme not in BUCKETS:
        raise ConfigError(redact_url(url), "this host cannot be listed", "name the files: {00000..00200}.tar")
    return sorted(attempts(url, policy, lambda: _list(url, policy)), key=lambda one: one.url)


def _list(url: str, policy: Policy) -> list[Pinned]:
    import obstore

    scheme, bucket, prefix = place_of(url)
    store, _ = store_of(url, policy)
    folder = prefix.rpartition("/")[0]  # a store's prefix is whole names between slashes
    found: list[Pinned] = []
    with _failures():
        for page in obstore.list(store, prefix=folder or None):
            found += [
                Pinned(
                    f"{scheme}://{bucket}/{quote(one['path'])}",
                    one["size"],
                    one.get("e_tag") or one.get("version") or "",
                )
                for one in page
                if one["path"].startswith(prefix)
            ]
    return found


def attempts(url: str, policy: Policy, work: Callable[[], Any]) -> Any:
    """The result of `work`, tried again after a passing failure; raises NetworkError and the others as `fetch` does."""
    with Session(policy) as session:
        for attempt in range(policy.retries + 1):
            try:
                if policy.offline:
                    raise Failure("final", "offline")
                return work()
            except Failure as failure:
                if failure.kind != "transient" or attempt == policy.retries:
                    raise to_error(redact_url(url), [(redact_url(url), failure)]) from failure
                session.pause(backoff(attempt, policy, failure.retry_after))
    raise NetworkError(redact_url(url), "not tried", "run again")


def pinned(url: str, policy: Policy | None = None, session: Session | None = None) -> Pinned:
    """The version of an object that is there now; raises as `fetch` does, and IntegrityError for an empty one."""
    with RemoteFile(url, policy, session=session, ahead=1) as file:
        if not file.size:
            raise IntegrityError(redact_url(url), "is empty", "write it again")
        return Pinned(url, file.size, file.validator)


def expand(
    pattern: str, names: Iterable[str], policy: Policy | None = None
) -> tuple[list[Pinned], list[str], list[str] | None]:
    """The objects that a pattern names in its order, and those of `names` (its braces expanded) that are not there.

    Of a bucket and of the hub one listing says what there is, which comes third; of other hosts each object is asked
    for. Raises ConfigError for a wildcard where nothing can be listed.
    """
    wanted = list(names)
    if scheme_of(pattern) not in (*BUCKETS, "hf"):
        if any(re.search(r"[*\[]|/$", split_url(name).path) for name in wanted):
            raise ConfigError(redact_url(pattern), "this host cannot be listed", "name the files: {00000..00200}.tar")
        with Session(policy) as session, ThreadPoolExecutor(16) as pool:  # connections are used again
            return list(pool.map(lambda name: pinned(name, policy, session), wanted)), [], None
    prefix = re.split(r"[*?\[{]", pattern, maxsplit=1)[0].rpartition("/")[0]
    there = {unquote(one.url): one for one in listed(f"{prefix}/", policy)}
    around = [one.url for one in there.values()]
    if there and scheme_of(pattern) == "hf":
        there = {_unversioned(name): one for name, one in there.items()}
    found: list[Pinned] = []
    absent: list[str] = []
    for name in wanted:
        plain = _unversioned(name) if scheme_of(pattern) == "hf" else name
        if not plain.endswith("/") and not re.search(r"[*?\[]", plain):
            found += [there[plain]] if plain in there else []
            absent += [] if plain in there else [name]
            continue
        shape = f"{plain}*.tar" if plain.endswith("/") else plain
        hits = [one for key, one in there.items() if fnmatchcase(key, shape) and key.count("/") == shape.count("/")]
        found += hits
        absent += [] if hits else [name]
    return list(dict.fromkeys(found)), absent, around


def _unversioned(url: str) -> str:
    """An address of the hub in one spelling, without its revision: `hf:datasets/o/n@main/x`, `hf://datasets/o/n/x`."""
    return re.sub(r"@[^/]*", "", re.sub(r"^hf:/*", "hf:", url), count=1)


# Writing


def put(url: str, data: bytes, policy: Policy | None = None) -> str:
    """Write an object in one call, which appears whole or not at all; returns its version. Raises as `fetch` does."""
    import obstore

    policy = policy or Policy()

    def write() -> str:
        store, key = store_of(url, policy)
        with _failures():
            return str(obstore.put(store, key, data).get("e_tag") or "")

    return str(attempts(url, policy, write))


def upload(url: str, path: Any, policy: Policy | None = None) -> str:
    """Write a file as an object, by multipart where it is large; a cut upload leaves no object. Raises as `fetch`."""
    import obstore

    policy = policy or Policy()

    def write() -> str:
        store, key = store_of(url, policy)
        with _failures():
            return str(obstore.put(store, key, path).get("e_tag") or "")

    return str(attempts(url, policy, write))
