"""The one place that makes text safe to show or to write: no password, signature, token or query of a URL stays in it.

Errors, log lines, printed answers, records, run folders and reports go through `redact` or `redact_tree`. What a text
that is given as an address may be, and is not, is decided here too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

SECRET_KEYS = ("token", "secret", "password", "passwd", "sas", "signature", "authorization", "credential", "sig")
"""Last words of settings (`hub_token`) whose text is replaced whole."""

_SECRET_PARAMETER = re.compile(
    r"^(sig|se|sp|st|sv|sr|spr|sip|ske|skt|skoid|sktid|sks|skv|x-amz-.*|x-goog-.*|.*token.*|.*signature.*|.*secret.*"
    r"|.*password.*|.*key.*|policy|expires|auth.*|awsaccesskeyid|googleaccessid)$",
    re.IGNORECASE,
)
# A quote or bracket ends an address only where it closes something: users quote signatures and passwords too. Only
# blanks and line ends separate addresses, since other control characters come in damaged ones. Every repetition is
# bounded, or starts where no other can, so that a megabyte takes milliseconds.
_RUN = r"(?:[^ \t\r\n\"'<>)\]}]|\\?[\"')\]}](?![ \t\r\n,;:)\]}>\"']|$)|\](?=:\d))*"
_URL = re.compile(rf"\b([a-z][a-z0-9+.-]{{0,30}})://((?:\[[\w:.%]*\])?{_RUN})", re.IGNORECASE)
_BLANK_PASSWORD = re.compile(r"(://)[^\s/?#@:\[]{1,64}:(?!\d{0,5}(?![\w]))[^\n@]{1,128}@")
_USERINFO = re.compile(r"[^\s/@:\"']{1,64}:[^\s@/]{1,128}@(?=[\w\[])")
_PORT = re.compile(r"[^:\[\]]*(?::\d*)?|\[[^\]]*\](?::\d*)?")
_BARE_QUERY = re.compile(rf"(?<=[^\s\"'<>?])\?({_RUN})")
_PAIRS = re.compile(r"(?<![\w%.-])[\w%.-]{1,64}=[^\s&]{0,4096}&[\w%.-]{1,64}=[^ \t\r\n\"'<>]*")
_QUOTED = r"(?P<quote>\\*[\"'])(?:(?!(?P=quote))[^\r\n])*(?:(?P=quote))?"
_NAMED = re.compile(  # but not `num_query_token=32`
    r"(?:\b|(?<=%26)|(?<=%3F))((?:sig|(?:sharedaccess)?signature|x-(?:amz|goog)-[a-z-]{1,32}|(?:access|auth|security|session|refresh|hf|api|sas)?[_-]?token"
    r"|\w{1,32}[_-](?:token|secret|password|passwd|passphrase|credential|signature|sas)(?!\s?=\s?\d+(?!\w))"
    r"|(?:client|aws|shared)?[_-]?secret(?:[_-]?access)?(?:[_-]?key)?|password|passwd|passphrase|credential|pwd|sas"
    r"|(?:api|account|access|shared|storage|private)[_-]?key)(?:\s?(?:=|%3D)\s?|\\?[\"']\s?[:=]\s?(?=\\?[\"'])))"
    rf"(?!…)(?:{_QUOTED}|[^\s&\"'<>]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"((?:authorization|cookie|x-api-key|api-key)\\?[\"']?\s?[:=]\s?)" + rf"(?:{_QUOTED}|[^\r\n]+)", re.IGNORECASE
)
_BEARER = re.compile(r"\b(bearer\s+)[\w+/.~=-]{8,}|\b(hf_)(?=[a-z]*\d)[a-z0-9]{8,}", re.IGNORECASE)


def redact_url(url: str) -> str:
    """The URL without userinfo, query and fragment, which are where tokens live; any text is taken."""
    whole = re.sub(r"[\t\r\n]", "", url.strip())
    scheme, mark, rest = whole.partition("://")
    shown = f"{scheme.lower()}://{_bare(rest)}" if mark else re.split(r"[?#]", _USERINFO.sub("", whole), maxsplit=1)[0]
    return CONTROL.sub(_escaped, shown)


def _bare(rest: str) -> str:
    """What follows `://` in an address, without its secrets and those of addresses in its path."""
    kept = []
    for part in rest.split("://"):
        authority = re.split(r"[/?#\\]", part, maxsplit=1)[0]
        strange = "@" not in authority and not _PORT.fullmatch(authority)
        if strange and "@" in part:  # a password with a slash, as people paste them
            part = part.rpartition("@")[2]
        elif strange:
            part = f"***{part[len(authority) :]}"
        else:
            part = authority.rpartition("@")[2] + part[len(authority) :]
        kept.append(re.split(r"[?#]", part, maxsplit=1)[0])
        if len(kept[-1]) < len(part):
            break
    return "://".join(kept)


def redact(text: str) -> str:
    """Free text with every URL redacted, and every signature, token, password and authorization replaced by `***`."""
    if "://" in text:
        text = _BLANK_PASSWORD.sub(r"\1", text)
        text = _URL.sub(lambda found: f"{found[1]}://{_bare(found[2])}", text)
    if "@" in text:
        text = _USERINFO.sub("", text)
    if "?" in text:
        text = _BARE_QUERY.sub(lambda found: "" if "=" in found[1] or len(found[1]) > 11 else found[0], text)
    text = _NAMED.sub(_masked, _HEADER.sub(_masked, text))
    if "&" in text:
        text = _PAIRS.sub("***", text)
    return _BEARER.sub(lambda found: f"{found[1] or found[2]}***", text)


def _masked(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    return f"{found[1]}{quote}***{quote}"


def redact_tree(value: Any, key: str = "", hidden: Mapping[str, str] | None = None) -> Any:
    """Plain values with every text redacted, and text under a key that names a secret replaced by `***`.

    `hidden` maps further texts, wherever they stand, to what is written instead.
    """
    if isinstance(value, Mapping):
        named = ((redact(name) if isinstance(name, str) else name, item) for name, item in value.items())
        return {name: redact_tree(item, str(name), hidden) for name, item in named}
    if isinstance(value, (list, tuple)):
        return [redact_tree(item, key, hidden) for item in value]
    if not isinstance(value, str):
        return value  # `num_query_token` is a number
    if value and re.split(r"[_.-]", key.lower())[-1] in SECRET_KEYS:
        return "***"
    for text, instead in (hidden or {}).items():
        value = value.replace(text, instead)
    return redact(value)


def identity(url: str) -> str:
    """A name for the object behind a URL that holds no secret: no userinfo, signature or token, no query in clear text.

    Query parameters that may choose the object (`?id=7`) enter as a digest, so that two objects never share a name.
    """
    query = url.partition("#")[0].partition("?")[2]
    kept = sorted((k, v) for k, v in parse_qsl(query) if not _SECRET_PARAMETER.match(k))
    if not kept:
        return redact_url(url)
    digest = hashlib.sha256(urlencode(kept, errors="surrogatepass").encode()).hexdigest()[:16]
    return f"{redact_url(url)}#{digest}"


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys, what reverses the direction of text, and halves of characters."""


def printable(text: str, kept: str = "\n\t") -> str:
    """Redacted text whose control characters but those `kept`, which a terminal would obey, are written as escapes."""
    return CONTROL.sub(lambda found: found[0] if found[0] in kept else _escaped(found), redact(text))


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(?=:)", re.IGNORECASE)


def url_fault(url: str) -> str | None:
    """Why a text cannot be a URL (`https://[bad/x`, port 99999, control characters), or None.

    Python's own words are not shown: of `http://u:pa/ss@h` they quote the password as a port.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "not a URL"
    try:
        if parts.port == 0:
            return "not a URL (its port is 0)"
    except ValueError:
        return "not a URL (its port is none)"
    try:
        host.encode("ascii" if host.isascii() else "idna")
    except UnicodeError:
        return "not a URL (its host is none)"
    if parts.scheme.lower() in ("http", "https") and not host:
        return "not a URL (it names no host)"
    return "not a URL (control characters)" if CONTROL.search(url) else None


def split_url(url: str) -> SplitResult:
    """`urlsplit` for any text: of one that is no URL the scheme, and as a path what stands before a query."""
    try:
        return urlsplit(url)
    except ValueError:
        rest = re.sub(r"//[^/?#]*@", "//", url.partition("#")[0].partition("?")[0])
        scheme = _SCHEME.match(url)
        return SplitResult(scheme[0].lower() if scheme else "", "", rest[scheme.end() + 1 if scheme else 0 :], "", "")
