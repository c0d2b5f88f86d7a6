"""The opener of `hf:datasets/owner/name[@revision]/file`: the hub's own download address, with a token for it alone."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from lavis_ext.fetch.failures import Failure
from lavis_ext.fetch.http import HttpOpener
from lavis_ext.fetch.mirrors import hub_path
from lavis_ext.fetch.openers import Reply, Request, register_opener
from lavis_ext.fetch.safety import is_loopback, safe_relative

if TYPE_CHECKING:
    from lavis_ext.fetch.session import Session

ENDPOINT = "https://huggingface.co"
ENDPOINT_VARIABLE = "HF_ENDPOINT"


@register_opener("hf")
class HubOpener:
    """Asks the hub, or the endpoint that `HF_ENDPOINT` names, through the http opener.

    The token goes to that host only: the http opener drops it where a redirect leaves for the content network.
    """

    def __init__(self, session: Session) -> None:
        self._http = HttpOpener(session)

    def open(self, request: Request) -> Reply:
        """The file's bytes; 401 and 403 become a Failure that says where the licence is accepted."""
        path = hub_place(request.url)
        url = f"{endpoint()}/{quote(hub_path(path))}"
        token = hub_token() if may_carry_token(url) else None
        headers = {"Authorization": f"Bearer {token}"} if token else None
        try:
            return self._http.open(replace(request, url=url), headers)
        except Failure as failure:
            if failure.kind != "access":
                raise
            raise Failure("access", f"{failure.reason}; {way_in(path, bool(token))}") from failure

    def close(self) -> None:
        """Close pooled connections."""
        self._http.close()


def endpoint() -> str:
    """Where the hub is: `HF_ENDPOINT`, else huggingface.co; without a slash at the end."""
    return (os.environ.get(ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/")


def hub_place(url: str) -> str:
    """`datasets/owner/name[@revision]/file` of an `hf:` URL; raises Failure where a part is missing."""
    parts = urlsplit(url)
    path = safe_relative("/".join(part for part in (parts.netloc, parts.path) if part))
    rest = path.removeprefix("datasets/").split("/")
    if len(rest) < 3 or not all(rest):
        raise Failure("final", "not an address of the hub: expected hf:datasets/OWNER/NAME[@REVISION]/FILE")
    return path


def hub_page(path: str) -> str:
    """The page of a repository, where its licence is shown and accepted."""
    kind = "datasets/" if path.startswith("datasets/") else ""
    owner, name = path.removeprefix("datasets/").split("/")[:2]
    return f"{endpoint()}/{kind}{owner}/{name.partition('@')[0]}"


def way_in(path: str, signed_in: bool) -> str:
    """What a person does to get at a repository that refuses."""
    page = hub_page(path)
    if signed_in:
        return f"accept the licence on {page} with the account of your token, and see that the token may read it"
    return f"accept the licence on {page}, then set HF_TOKEN or run `hf auth login`"


def may_carry_token(url: str) -> bool:
    """Whether a token may travel there: over TLS, or to this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def hub_token() -> str | None:
    """The user's token: `HF_TOKEN`, else the one that `hf auth login` stored; None where there is none."""
    try:
        from huggingface_hub import get_token
    except ImportError:
        return os.environ.get("HF_TOKEN") or None
    token = get_token()
    return str(token) if token else None
