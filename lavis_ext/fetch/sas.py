"""Shared access signatures of Azure: where the token of a container comes from, and what its own fields say."""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import parse_qs

from lavis_ext.errors import AccessError, ConfigError

VARIABLE = "LAVIS_EXT_AZURE_SAS_"
FILE_VARIABLE = "LAVIS_EXT_AZURE_TOKENS"
STANDARD_INPUT = "-"
ANY = ""
"""The container of a token that stands alone in its file: it is used for every container that has none of its own."""

_FORM = re.compile(r"[\x21-\x7e]+")
RIGHTS = {"r": "read", "l": "list"}


@dataclass(frozen=True)
class Sas:
    """A token as it was given, without the leading `?`; `repr` does not show it."""

    query: str = field(repr=False)
    origin: str = ""

    def value(self, name: str) -> str:
        """One of its fields (`sp`, `se` …), "" where it has none."""
        return parse_qs(self.query).get(name, [""])[0]

    def obstacle(self, right: str, now: datetime | None = None) -> str | None:
        """Why this token cannot do what is asked (`r` read, `l` list), from its own fields; None where it may."""
        now = now or datetime.now(timezone.utc)
        starts, ends = parse_time(self.value("st")), parse_time(self.value("se"))
        if ends is not None and ends <= now:
            return f"the SAS from {self.origin} expired on {self.value('se')}"
        if starts is not None and starts > now:
            return f"the SAS from {self.origin} is valid from {self.value('st')} on, which this clock has not reached"
        rights = self.value("sp")
        if rights and right not in rights:
            return f"the SAS from {self.origin} gives no right to {RIGHTS[right]} (sp={rights})"
        return None

    @property
    def may_list(self) -> bool:
        """Whether its own fields say that it lists."""
        return self.obstacle("l") is None and "l" in self.value("sp")


def parse_time(text: str) -> datetime | None:
    """A time of a SAS (`2030-01-31`, `2030-01-31T10:00Z`, `2030-01-31T10:00:00Z`), None where it is none."""
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def clean_token(text: str, where: str) -> str:
    """What to append to a URL: the text without `?` or the URL before it, otherwise untouched.

    Raises ConfigError, which does not show the text, for what cannot be a token.
    """
    token = text.strip().rpartition("?")[2].lstrip("&")
    if not _FORM.fullmatch(token) or "sig" not in parse_qs(token):
        raise ConfigError(where, "holds no SAS", "expected what stands behind the `?` of a signed URL: sv=…&sig=…")
    return token


def variable_of(container: str) -> str:
    """The environment variable that holds a container's token: `LAVIS_EXT_AZURE_SAS_OSCAR`."""
    return VARIABLE + re.sub(r"[^A-Z0-9]", "_", container.upper())


class Tokens:
    """The tokens of this process: of the environment, then of a file or standard input that was named."""

    def __init__(self) -> None:
        self._given: dict[str, Sas] = {}
        self._read = ""

    def load(self, source: str) -> None:
        """Take tokens from a file that only its owner may read, or from standard input (`-`).

        A line is `CONTAINER TOKEN`, or a token alone, for every container. Raises AccessError, ConfigError.
        """
        text = sys.stdin.read() if source == STANDARD_INPUT else read_private(Path(source))
        where = "standard input" if source == STANDARD_INPUT else source
        found: dict[str, Sas] = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            container, _, token = line.rpartition(" ")
            found[container.strip()] = Sas(clean_token(token, where), where)
        if not found:
            raise ConfigError(where, "holds no SAS", "write `CONTAINER TOKEN` on a line of it")
        self._given, self._read = found, source

    def forget(self) -> None:
        """Drop what was loaded."""
        self._given, self._read = {}, ""

    def find(self, container: str) -> Sas | None:
        """The token of a container, None where there is none; raises AccessError, ConfigError."""
        name = variable_of(container)
        if os.environ.get(name):
            return Sas(clean_token(os.environ[name], name), name)
        file = os.environ.get(FILE_VARIABLE, "")
        if file and not self._read:
            self.load(file)
        return self._given.get(container) or self._given.get(ANY)


TOKENS = Tokens()


def read_private(path: Path) -> str:
    """The text of a file that nobody but its owner may read; raises AccessError for any other."""
    try:
        with path.expanduser().open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise AccessError(str(path), "others may read it, and it holds a secret", f"chmod 600 {path}")
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(str(path), f"cannot be read: {type(error).__name__}", "name a file with tokens") from error
