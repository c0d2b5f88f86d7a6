"""Flags made from the dataclass that they fill: a field is a flag, its type says how it is read, its metadata the rest.

    @dataclass(frozen=True, kw_only=True)
    class Runs:
        folder: str = flag("output", positional=True, nargs="?", metavar="FOLDER", help="default: output")
        against: Literal["previous", "first"] = flag("previous", help="what to compare with")

`arguments_of(Runs)` is for argparse, `build(Runs, namespace)` the object. Nothing heavy is imported here, nor
by the modules that declare flags: they are read to print help.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Argument = tuple[tuple[str, ...], dict[str, Any]]
"""Names and settings, as `ArgumentParser.add_argument` takes them."""
REQUIRED: Any = MISSING
T = TypeVar("T")


def flag(default: Any, *names: str, positional: bool = False, **settings: Any) -> Any:
    """A field that the command line fills; `names` where `--field-name` is not its name, `settings` as argparse's.

    A field of the dataclass without it is filled, by name, from a flag that every verb has (`json: bool = False`).
    """
    return field(default=default, metadata={"names": names, "positional": positional, "settings": settings})


def arguments_of(kind: type) -> list[Argument]:
    """The flags of a dataclass, its own before those that it inherits."""
    hints = get_type_hints(kind)
    declared = {one.name: one for base in reversed(kind.__mro__) if is_dataclass(base) for one in fields(base)}
    inherited = {one.name for base in kind.__mro__[1:] if is_dataclass(base) for one in fields(base)}
    order = sorted(declared, key=lambda name: name in inherited)
    return [_argument(declared[name], hints[name]) for name in order if declared[name].metadata]


def _argument(one: Field[Any], hint: Any) -> Argument:
    settings: dict[str, Any] = {}
    default, kinds = one.default, list(_kinds(hint))
    if default not in (MISSING, None) and bool not in kinds:
        settings["default"] = str(default) if isinstance(default, Path) else default
    if choices := [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]:
        settings["choices"] = choices
    if bool in kinds:
        settings["action"] = "store_true"
    elif number := next((kind for kind in kinds if kind in (int, float)), None):
        settings["type"] = number
    settings |= one.metadata["settings"]
    if one.metadata["positional"]:
        return (one.name,), settings
    if default is MISSING:
        settings["required"] = True
    return one.metadata["names"] or (f"--{one.name.replace('_', '-')}",), {"dest": one.name, **settings}


def _kinds(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, UnionType):
        yield from (kind for kind in get_args(hint) if kind is not NoneType)
    else:
        yield hint


def build(kind: type[T], args: Namespace) -> T:
    """The dataclass filled from what argparse found; an empty text where a Path may be given is as good as none."""
    hints = get_type_hints(kind)
    found = {}
    for one in fields(kind):  # type: ignore[arg-type]
        value = getattr(args, one.name)
        if isinstance(value, str) and Path in _kinds(hint := hints[one.name]):
            value = Path(value) if value or hint is Path else None
        found[one.name] = tuple(value) if isinstance(value, list) else value
    return kind(**found)


def fill(kind: type[T], flags: Any, **more: Any) -> T:
    """A dataclass of the library from the flags of the same names; one that was not given keeps its default."""
    given = {one.name: getattr(flags, one.name, None) for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.items() if value is not None} | more)


@dataclass(frozen=True, kw_only=True)
class Options:
    """For verbs that read a configuration."""

    options: tuple[str, ...] = flag((), nargs="*", metavar="a.b=c", help="settings over those of the YAML")


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """For verbs that move bytes."""

    quiet: bool = flag(False, help="no progress")


@dataclass(frozen=True, kw_only=True)
class Names:
    """For verbs about some data sets."""

    names: tuple[str, ...] = flag(
        REQUIRED, positional=True, nargs="+", metavar="NAME", help="a family (coco) or a data set (coco_caption)"
    )
