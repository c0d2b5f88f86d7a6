"""The verb `config`: what a run file comes to, and where each value comes from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.cli.verb import Answer, Options, Verb, env_option, examples, flag, width_of_terminal
from lavis_ext.common.secrets import redact_tree
from lavis_ext.common.wording import columns, shorten

if TYPE_CHECKING:
    from lavis_ext.common.config.schema import Config

DEFAULT = "default"
VARIABLES = ("LAVIS_EXT_CONFIGS", "LAVIS_EXT_MIRROR", "LAVIS_EXT_OFFLINE", "LAVIS_EXT_ALLOW_PRIVATE")
LEAST = 14
"""Characters of a value, and of an origin, that are shown at least."""
ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([^\s,}]+)")


@dataclass(frozen=True, kw_only=True)
class Show(Options):
    """Flags of `config show`."""

    file: str | None = flag(
        None, positional=True, nargs="?", metavar="FILE", help="a run file; without one, the settings of this machine"
    )
    given: bool = flag(False, help="leave out what has its default")


@examples(
    "config show",
    "config show run.yaml",
    "config show run.yaml --given --options run.max_epoch=5",
)
def show(args: Show) -> Answer:
    """Each value of a run, or of this machine, with its origin: file:line, --options, environment, or default."""
    rows = list(values_of(args) if args.file else machine(args))
    if args.given:
        rows = [row for row in rows if row["origin"] != DEFAULT]
    return Answer(lines_of(rows, width_of_terminal()), rows)


def lines_of(rows: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    """A table below the name of each section, in the width of the terminal; defaults that are empty are left out."""
    sections: dict[str, list[list[str]]] = {}
    for row in rows:
        if row["origin"] != DEFAULT or row["value"] not in (None, "", [], {}):
            section, key = split_key(row["key"])
            sections.setdefault(section, []).append([key, text_of(row["value"]), shortened(row["origin"])])
    lines: list[str] = []
    for section, cells in sections.items():
        indent = "  " if section else ""
        lines += [f"{section}:"] if section else []
        lines += [indent + line for line in columns(cut(cells, None if width is None else width - len(indent) - 4))]
    return lines


def cut(cells: Sequence[Sequence[str]], width: int | None) -> list[list[str]]:
    """Rows of key, value and origin with all three in `width`: values lose their ends, origins their beginnings."""
    if width is None:
        return [list(row) for row in cells]
    room = width - max(len(key) for key, *_ in cells)
    most = max(room - LEAST, LEAST)
    ends = [origin if len(origin) <= most else f"…{origin[1 - most :]}" for *_, origin in cells]
    room = max(room - max(map(len, ends)), LEAST)
    return [[key, shorten(text, room), end] for (key, text, _), end in zip(cells, ends, strict=True)]


def split_key(key: str) -> tuple[str, str]:
    """`datasets.birds.weight` → `datasets.birds`, `weight`; a name without a section stands alone."""
    parts = key.split(".")
    depth = 2 if parts[0] == "datasets" else 1
    return (".".join(parts[:depth]), ".".join(parts[depth:])) if len(parts) > depth else ("", key)


def values_of(args: Show) -> Iterator[dict[str, Any]]:
    """Key, value and origin of everything that a run file and its options come to; raises ConfigError."""
    from lavis_ext.common.config.decode import read_sections
    from lavis_ext.common.config.resolve import find_config, load_config

    config = load_config(args.file or "", list(args.options))
    user, _ = read_sections(find_config(args.file or ""))
    named = dict(leaves(user))
    places = {**model_places(config), **config.places}
    model = {"model": plain(config.model)} if config.model else {}
    tree = {**model, "run": plain(config.run), "datasets": {n: plain(d) for n, d in config.datasets.items()}}
    for key, value in leaves(redact_tree(tree, hidden=config.hidden)):
        origin = places.get(key) or places.get(key.replace(".args.", ".")) or DEFAULT
        text = named.get(key)
        if origin != "--options" and isinstance(text, str) and (found := ENVIRONMENT.search(text)):
            origin = f"{origin}, environment {found[1]}"
        yield {"key": key, "value": value, "origin": origin}
    yield cache_root_row(config.cache_root, args)


def plain(section: Any) -> dict[str, Any]:
    """A section as mappings, without what is empty and has nothing below it."""
    return {key: value for key, value in asdict(section).items() if value not in ({}, [])}


def machine(args: Show) -> Iterator[dict[str, Any]]:
    """The settings of this machine: where data and settings lie, and the switches of the environment."""
    from lavis_ext.common.config.resolve import cache_root, config_roots, user_folder

    yield cache_root_row(str(cache_root(env_option(args))), args)
    yield {"key": "configs", "value": [str(root) for root in config_roots()], "origin": "LAVIS_EXT_CONFIGS, shipped"}
    file = user_folder() / "config.yaml"
    yield {"key": "user file", "value": str(file), "origin": "read" if file.is_file() else "not there"}
    for name in VARIABLES:
        if value := os.environ.get(name):
            yield {"key": name, "value": redact_tree(value), "origin": "environment"}


def cache_root_row(root: str, args: Show) -> dict[str, Any]:
    """The cache root: from a run file or option, else as everywhere."""
    from lavis_ext.common.config.resolve import cache_root_origin

    found, origin = cache_root_origin(env_option(args))
    origin = "--options" if origin == "option" else origin
    return {"key": "env.cache_root", "value": root, "origin": origin if found == root else str(args.file)}


def model_places(config: Config) -> dict[str, str]:
    """Where the YAML of the model's type says what."""
    from lavis_ext.common.config.decode import read_sections
    from lavis_ext.common.config.resolve import model_files

    path = model_files().get(config.model.arch, {}).get(config.model.model_type) if config.model else None
    return read_sections(path)[1] if path else {}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"run": {"seed": 1}}` → `run.seed`, 1; lists stay whole."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def text_of(value: Any) -> str:
    """A value as YAML writes it on one line."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def shortened(origin: str) -> str:
    """An origin with its file relative to the working directory, or to the folder of the shipped YAMLs."""
    from lavis_ext.common.config.resolve import config_roots

    file, colon, line = origin.partition(":")
    for base in (Path.cwd(), config_roots()[-1].parent):
        if Path(file).is_absolute() and Path(file).is_relative_to(base):
            return f"{Path(file).relative_to(base)}{colon}{line}"
    return origin


ACTIONS: dict[str, Verb] = {
    "show": Verb("each value of a run file, and where it comes from", "lavis_ext.cli.config:show"),
}
