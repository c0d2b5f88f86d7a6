"""The reference of the site says every verb, flag, exit code, key and card; nothing of it is written by hand."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lavis_ext.cli import VERBS
from lavis_ext.cli.verb import EXIT_CODES
from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import LavisExtError
from lavis_ext.common.names import NAMES
from lavis_ext.common.registry import Facade

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py, which mkdocs loads by its path too."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generate: ModuleType) -> dict[str, str]:
    made: dict[str, str] = generate.reference()
    return {Path(name).stem: text for name, text in made.items()}


def section(text: str, anchor: str) -> str:
    """The part of a page below `## … { #anchor }`."""
    match = re.search(rf"(?ms)^## [^\n]*\{{ #{re.escape(anchor)} \}}$(.*?)(?=^## |\Z)", text)
    assert match, anchor
    return match[1]


def test_every_verb_and_flag(pages: dict[str, str]) -> None:
    golden: dict[str, dict[str, Any]] = json.loads((ROOT / "tests" / "cli" / "flags.json").read_text())
    common = {"--configs", "--json", "--debug", "--plugin"}
    assert set(VERBS) == {name.split()[0] for name in golden}
    for verb, flags in golden.items():
        name, _, action = verb.partition(" ")
        part = section(pages["commands"], name)
        part = part.partition(f"### {verb} {{ #{name}-{action} }}")[2].partition("\n### ")[0] if action else part
        wanted = {name for names in flags for name in names.split() if name.startswith("-")} - common
        lacking = [name for name in wanted if f"`{name}`" not in part]
        assert lacking == [], verb
    assert all(f"`{name}" in pages["commands"] for name in common)


def test_every_exit_code(pages: dict[str, str]) -> None:
    kinds, waiting = set[Any](), [LavisExtError]
    while waiting:
        found = waiting.pop()
        kinds.add(found)
        waiting += found.__subclasses__()
    codes = {0, 1, 130, 143} | {kind.exit_code for kind in kinds}
    assert {int(code) for code in re.findall(r"(?m)^\| (\d+) \|", pages["exit-codes"])} == codes
    assert codes <= {int(code) for code in re.findall(r"\b\d+\b", EXIT_CODES)}


@pytest.mark.parametrize("kind", ["task", "model", "builder", "processor", "objective", "metric"])
def test_every_key(kind: str, generate: ModuleType, pages: dict[str, str]) -> None:
    anchor = next(anchor for anchor, (of, *_) in generate.SECTIONS.items() if of == kind)
    part = section(pages["keys"], anchor)
    for name in NAMES[kind]:
        owner = Facade._kinds[kind].config(name)
        if owner is None:
            continue
        assert f"`{name}`" in part
        assert [one.name for one in fields(owner) if one.init and f"| `{one.name}` |" not in part] == [], name


def test_keys_have_their_meaning(pages: dict[str, str]) -> None:
    line = next(line for line in pages["keys"].splitlines() if line.startswith("| `save_freq` |"))
    assert "whole number from -1 on" in line and "Epochs between checkpoints" in line


def test_every_card(pages: dict[str, str]) -> None:
    for family, card in load_cards().families.items():
        part = section(pages["cards"], family)
        for name, types in card.datasets.items():
            assert all(f"| `{name}` | `{kind}` |" in part for kind in types), name
        assert [name for name in card.artifacts if f"| `{name}` |" not in part] == [], family


def test_links_become_links_between_pages(generate: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="benchmarks/index.md"))
    text = (
        "[a](fetch.md#x) [b](../docs/oscar.md) [c](fetch_layer.py) [d](https://e.org/x.md)\n```text\n[e](f.md)\n```\n"
    )
    wanted = "[a](fetch.md#x) [b](../oscar.md) c [d](https://e.org/x.md)\n```text\n[e](f.md)\n```\n"
    assert generate.on_page_markdown(text, page, None, None) == wanted
