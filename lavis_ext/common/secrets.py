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
# `token: X` as YAML has it, which prose has too: what follows decides, see `_is_secret`. Not a language model's tokens.
_MODEL = r"pad|bos|eos|unk|sep|cls|mask|special|query|image|img|text|prompt|begin|end|first|last|next|new|num|max|min"
_NEWLINE = r"(?:\r?\n|(?:\\r)?\\n)"  # JSON writes it as two characters
_YAML = re.compile(
    rf"(?:(?<![\w-])|(?<=\\n))(?!(?:\w{{1,32}}_)?(?:{_MODEL})[_-]token)"
    r"(?P<key>(?:[\w-]{1,40}[_.-])?(?:token|secret|password|passwd|passphrase|pwd|credentials?|signature|sas|sig"
    r"|(?:api|account|access|shared|storage|private|secret|resource)[_-]?key))"
    rf"(?P<colon>\\?[\"']?[ \t]?:(?:[ \t]+|[ \t]*{_NEWLINE}[ \t]+(?:-[ \t]+)?(?=[^\s\\]+[ \t\"'>]*(?:{_NEWLINE}|$)))"
    r"(?:!\S{0,40}[ \t]+|&\w{1,40}[ \t]+)?)"
    rf"(?:(?P<text>{_QUOTED})|(?P<block>[|>][+-]?\d?[ \t]*(?:{_NEWLINE}[ \t]+(?:(?!{_NEWLINE})[^\n])*)+)"
    r"|(?P<plain>[^\s\"'<>]+))",
    re.IGNORECASE,
)
_PASSWORD_LINE = re.compile(  # which may have blanks
    r"(?:^|(?<=\\n)|(?<=[\"']))([ \t\-#|<\"']{0,80}(?:[\w-]{1,40}[_.-])?pass(?:word|wd|phrase)\\?[\"']?[ \t]?:[ \t]+)"
    r"(?P<first>[^\s\"'<>{\[|&!][^\s]*)[ \t]+\S[^\r\n\"]*",
    re.IGNORECASE | re.MULTILINE,
)
_SECRET_WORD = re.compile(r"token|secret|pass|pwd|credential|signature|sas|sig|key", re.IGNORECASE)
_STATES = re.compile(
    r"a|an|and|are|as|at|be|been|bad|but|by|can|could|declared|does|each|empty|ended|expected|expires|"
    r"expired|false|for|from|given|had|has|have|here|hidden|if|in|instead|into|invalid|is|it|its|left|"
    r"missing|must|needed|neither|no|none|not|null|of|off|on|one|only|optional|or|over|read|refused|"
    r"rejected|required|set|should|shown|some|taken|that|the|there|this|to|too|true|two|unknown|unset|"
    r"until|used|using|was|were|what|when|where|which|who|will|with|without|wrong|you|your|~",
    re.IGNORECASE,
)
"""Words that prose has behind a colon, and no secret is."""
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
    if ":" in text and _SECRET_WORD.search(text):
        text = _PASSWORD_LINE.sub(_masked_line, text)
        text = _YAML.sub(_masked_yaml, text)
    if "&" in text:
        text = _PAIRS.sub("***", text)
    return _BEARER.sub(lambda found: f"{found[1] or found[2]}***", text)


def _masked(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    return f"{found[1]}{quote}***{quote}"


def _masked_line(found: re.Match[str]) -> str:
    first = found["first"].rstrip(",;.:!?)")
    return found[0] if first.isdigit() or _STATES.fullmatch(first) or "***" in found[0] else f"{found[1]}***"


def _masked_yaml(found: re.Match[str]) -> str:
    head = f"{found['key']}{found['colon']}"
    if found["plain"] is None:
        quote = found["quote"] or ""
        return f"{head}{quote}***{quote}" if found["text"] else f"{head}***"
    value = found["plain"].rstrip(",;.:!?)]}")
    return f"{head}***{found['plain'][len(value) :]}" if value and _is_secret(found, value) else found[0]


def _is_secret(found: re.Match[str], value: str) -> bool:
    """Whether a plain word behind `token:` is a value: it looks like none of a language, or stands as YAML has it.

    That is alone on the rest of a line that begins with the key, or in braces.
    """
    if _STATES.fullmatch(value) or "***" in value or "://" in value:
        return False
    before = re.split(r"\n|\\n", found.string[max(0, found.start() - 80) : found.start()])[-1]
    after = found.string[found.end() : found.end() + 80]
    braces = "{" in before and before.rstrip()[-1:] in "{,"
    alone = not before.strip(" \t-#>|\"'\\<") and not after.partition("\n")[0].strip(" \t\r\"'>\\")
    if value.isdigit():  # `query_token: 32`, `password: 3 tries are left`
        return (alone or braces) and "token" not in found["key"].lower()
    strange = len(value) >= 20 or re.search(r"\d|[+/=%_$@#*]|[^\W\d_][A-Z]", value) is not None
    return braces or alone or (strange and not value.isupper())


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
