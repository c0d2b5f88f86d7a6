"""What a repository of the Hugging Face hub holds, by its API: names, sizes, and the SHA-256 of what is kept in LFS."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

from lavis_ext.common.errors import IntegrityError, NetworkError
from lavis_ext.common.files import decode_json, is_encodable
from lavis_ext.fetch.objects import Pinned
from lavis_ext.fetch.remote import fetch_page
from lavis_ext.fetch.safety import redact_url, safe_relative, split_url
from lavis_ext.fetch.session import Session
from lavis_ext.fetch.transfer import Policy, Source

PAGE = 64 << 20
"""Bytes of one page of a listing: a thousand files take about 300 kB."""
PAGES = 10_000
SHA256 = re.compile(r"[0-9a-f]{64}")


def list_repository(url: str, policy: Policy | None = None) -> list[Pinned]:
    """The files of `hf:datasets/OWNER/NAME[@REVISION][/FOLDER]`, recursively, of one commit.

    Addresses name the commit that the revision meant when it was asked for, so that a later fetch is of the same files
    whatever is pushed meanwhile; `version` is the file's SHA-256 (LFS) or Git id. Raises NetworkError where there is no
    such repository, revision or folder, AccessError for one that is gated, IntegrityError for an odd answer.
    """
    kind, owner, name, revision, folder = repository_of(url)
    base = f"hf:api/{kind or 'models/'}{owner}/{name}"
    with Session(policy) as session:
        info = _read(session, f"{base}/revision/{quote(revision, safe='')}", url)[0]
        commit = info.get("sha") if isinstance(info, dict) else None
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise IntegrityError(
                redact_url(url), "the hub names no commit of this revision", "see the repository's page"
            )
        place = f"{base}/tree/{commit}{'/' + quote(folder) if folder else ''}?recursive=true"
        entries = [entry for page in _pages(session, place, url) for entry in page]
    found = [_pinned(f"hf:{kind}{owner}/{name}@{commit}", entry) for entry in entries if entry.get("type") == "file"]
    if None in found:
        raise IntegrityError(redact_url(url), "the hub lists a file without a name or a size", "try again later")
    return [one for one in found if one is not None]


def repository_of(url: str) -> tuple[str, str, str, str, str]:
    """`datasets/` or nothing, owner, name, revision (main) and folder of an address; raises NetworkError."""
    parts = split_url(url)
    safe_relative(f"{parts.netloc}/{parts.path}")
    names = [unquote(part) for part in f"{parts.netloc}/{parts.path}".split("/") if part]
    kind = "datasets/" if names[:1] == ["datasets"] else ""
    owner, name, *rest = [*names[1 if kind else 0 :], "", ""]
    name, _, revision = name.partition("@")
    folder = "/".join(part for part in rest if part)
    if not owner or not name or not is_encodable(url):
        raise NetworkError(redact_url(url), "names no repository", "write hf:datasets/OWNER/NAME[@REVISION]/…")
    return kind, owner, name, revision or "main", folder


def _pages(session: Session, place: str, url: str) -> Iterator[list[dict[str, Any]]]:
    for _ in range(PAGES):
        page, following = _read(session, place, url)
        if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
            raise IntegrityError(redact_url(url), "the hub's listing is of another form", "try again later")
        yield page
        if not following:
            return
        # only its query is taken: the next page is asked of the same host, with the same token
        place = f"{place.partition('?')[0]}?{split_url(following).query}"
    raise IntegrityError(redact_url(url), f"its listing has more than {PAGES:,} pages", "name a folder of it")


def _read(session: Session, place: str, url: str) -> tuple[Any, str]:
    page = fetch_page(session, Source(place), PAGE)
    if page is None:
        raise NetworkError(redact_url(url), "the hub has no such repository, revision or folder", "correct the address")
    try:
        return decode_json(page[0]), page[1]
    except ValueError as error:
        raise IntegrityError(redact_url(url), "the hub's answer is not JSON", "try again later") from error


def _pinned(base: str, entry: dict[str, Any]) -> Pinned | None:
    path, size, lfs = entry.get("path"), entry.get("size"), entry.get("lfs")
    if not isinstance(path, str) or "\0" in path or not is_encodable(path) or type(size) is not int or size < 0:
        return None
    digest = lfs.get("oid") if isinstance(lfs, dict) else None
    sha256 = digest if isinstance(digest, str) and SHA256.fullmatch(digest) else None
    return Pinned(f"{base}/{quote(path)}", size, sha256 or str(entry.get("oid") or ""), sha256, fixed=True)
