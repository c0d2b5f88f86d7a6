"""Where an export puts its files: the addresses that the cards name, so that neither drifts from the other."""

from __future__ import annotations

from functools import cache

from lavis_ext.cards import Cards, load_cards

PART = "{part:05d}"


def url_of(reference: str) -> str:
    """The first address of `family/artifact`; of a list in parts, that of its first part."""
    family, _, name = reference.partition("/")
    return all_cards().families[family].artifacts[name].url.replace(PART, f"{0:05d}")


def urls_of(family: str) -> list[str]:
    """The addresses of all artifacts of a family, each once."""
    return list(dict.fromkeys(url_of(f"{family}/{name}") for name in all_cards().families[family].artifacts))


@cache
def all_cards() -> Cards:
    """The shipped cards, read once."""
    return load_cards()
