"""Licences that a person accepts before the first byte: of cards with `terms: non-commercial` or `gated`.

What was accepted is remembered in `licences.json` in the user's folder of settings, with the words of the licence: it
is asked again where a card's words change. `LAVIS_EXT_ACCEPT_LICENCE` (families, or `all`) accepts for one environment.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lavis_ext.common.config.cards import Card
from lavis_ext.common.config.resolve import user_folder
from lavis_ext.common.errors import AccessError, DiskError, Problem
from lavis_ext.common.files import decode_json, disk_errors, read_file, write_atomic

log = logging.getLogger(__name__)
VARIABLE = "LAVIS_EXT_ACCEPT_LICENCE"
ALL = "all"


def waiting(restricted: Iterable[Card]) -> list[Card]:
    """Those of some cards whose licence is still to be accepted."""
    known, named = accepted(), {one.strip() for one in os.environ.get(VARIABLE, "").split(",")}
    asked = [card for card in restricted if not {card.family, ALL} & named]
    return [card for card in asked if known.get(card.family, {}).get("licence") != card.licence]


def file_of_accepted() -> Path:
    """Where it is remembered."""
    return user_folder() / "licences.json"


def accepted() -> dict[str, Mapping[str, Any]]:
    """Family → the licence's words and the day; what cannot be read counts as nothing."""
    with suppress(OSError, ValueError, AttributeError):
        tree = decode_json(read_file(file_of_accepted()))["accepted"]
        return {family: one for family, one in tree.items() if isinstance(one, dict)}
    return {}


def remember(cards: Iterable[Card]) -> None:
    """Note that these were accepted; a folder that cannot be written to only means that it is asked again."""
    found = {card.family: {"licence": card.licence, "when": time.strftime("%Y-%m-%d")} for card in cards}
    file = file_of_accepted()
    try:
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps({"format": 1, "accepted": {**accepted(), **found}}, indent=1))
    except DiskError as error:
        log.warning("%s: what was accepted is not remembered: %s", file, error)


def refused(cards: Iterable[Card]) -> AccessError:
    """The error for licences that were not accepted."""
    problems = [
        Problem(
            f"{card.family}, {card.terms}",
            f"its licence is not accepted: {card.licence} ({card.homepage})",
            f"read it, then add --accept-licence, or set {VARIABLE}={card.family}",
        )
        for card in cards
    ]
    return AccessError.of(problems)  # type: ignore[return-value]
