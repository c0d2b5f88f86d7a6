"""Flags are made from a dataclass, and fill it."""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from lavis_ext.cli.verb import REQUIRED, Options, arguments_of, build, fill, flag


@dataclass(frozen=True, kw_only=True)
class Args(Options):
    paths: tuple[str, ...] = flag(REQUIRED, positional=True, nargs="+")
    folder: Path = flag(Path("here"), metavar="DIR")
    beside: Path | None = flag(None)
    form: Literal["a", "b"] | None = flag(None, "--form", "--shape", help="which")
    count: int | None = flag(None)
    share: float = flag(0.5)
    loud: bool = flag(False)
    name: str = flag(REQUIRED)
    json: bool = False


@dataclass(frozen=True)
class Settings:
    count: int = 3
    share: float = 0.1
    loud: bool | None = None
    other: str = "kept"


def parse(*words: str) -> Args:
    parser = ArgumentParser(exit_on_error=False)
    for names, settings in arguments_of(Args):
        parser.add_argument(*names, **settings)
    parser.set_defaults(json=True)
    return build(Args, parser.parse_args(words))


def test_what_is_not_given_is_the_field_s_default() -> None:
    found = parse("x", "--name", "n")
    assert found == Args(paths=("x",), name="n", json=True)
    assert isinstance(found.folder, Path)


def test_types_choices_and_second_names() -> None:
    words = ["x", "y", "--name", "n", "--shape", "b", "--count", "4", "--share", "2", "--loud", "--folder", "there"]
    found = parse(*words, "--options", "a=1", "b=2")
    assert (found.form, found.count, found.share, found.loud) == ("b", 4, 2.0, True)
    assert (found.folder, found.paths, found.options) == (Path("there"), ("x", "y"), ("a=1", "b=2"))


def test_an_empty_text_is_no_path_where_none_may_be_given() -> None:
    found = parse("x", "--name", "n", "--beside", "", "--folder", "")
    assert (found.beside, found.folder) == (None, Path())


@pytest.mark.parametrize("words", [["x"], ["--name", "n"], ["x", "--name", "n", "--form", "c"]])
def test_what_is_missing_or_not_a_choice_is_refused(words: list[str]) -> None:
    with pytest.raises((SystemExit, ArgumentError)):
        parse(*words)


def test_own_flags_come_before_inherited_ones() -> None:
    assert [settings.get("dest") for _, settings in arguments_of(Args)][-1] == "options"
    assert "json" not in [settings.get("dest") for _, settings in arguments_of(Args)]


def test_settings_of_the_library_are_filled_from_what_was_given() -> None:
    found = fill(Settings, parse("x", "--name", "n", "--count", "0"), other="said")
    assert found == Settings(count=0, share=0.5, loud=False, other="said")
    assert fill(Settings, parse("x", "--name", "n")).count == 3
