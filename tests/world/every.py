"""Every family of data sets, exported from one small world and prepared by the real verb; what came of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lavis_ext.demo.addresses import all_cards
from lavis_ext.demo.server import serve
from lavis_ext.demo.steps import Answer, Command, environment_for, run_verb
from lavis_ext.demo.world import World
from lavis_ext.errors import LavisExtError
from lavis_ext.fetch.mirrors import MANIFEST
from lavis_ext.wording import columns
from tests.world.export import EXPORTS, export_world, place_by_hand

log = logging.getLogger(__name__)
SIZES = {"train": 60, "val": 20, "test": 20, "hidden": 20}
STATES = ("missing", "partial", "present", "verified")
"""From the worst to the best."""
WHOLE = ("oscar", "vinvl")
"""Families of which more is wanted than what data sets read: models, and features in all of their forms."""
HEAD = ["family", "names", "samples", "images", "state", "seconds"]


@dataclass(frozen=True)
class FamilyState:
    """A prepared family: its registry names, samples of all splits, and images of these that are there.

    An image counts once for each split that uses it. Data sets count in their default type. Of a family that is wanted
    whole, its files are counted in the place of images.
    """

    family: str
    names: tuple[str, ...]
    samples: int = 0
    images: int = 0
    expected: int = 0
    state: str = STATES[0]
    seconds: float = 0.0
    exit_code: int = 0

    def cells(self) -> list[str]:
        """One row of the table."""
        images = f"{self.images} of {self.expected}"
        return [self.family, " ".join(self.names), str(self.samples), images, self.state, f"{self.seconds:.1f}"]


def prepare_every(
    out: Path, seed: int, families: Iterable[str] = EXPORTS, command: Command = run_verb
) -> tuple[FamilyState, ...]:
    """Draw a small world into `out/mirror`, serve it, and prepare each family into `out/cache`; logs go to `out/logs`.

    What an earlier call drew and prepared there is used again. A family that fails does not stop the others: its
    state says so.
    """
    world, chosen = World(seed, **SIZES), list(families)
    if not (out / "mirror" / MANIFEST).is_file():
        export_world(world, out / "mirror")
    place_by_hand(world, out / "cache", chosen)
    with serve(out / "mirror") as url:
        return tuple(prepare_family(family, out, url, command) for family in chosen)


def prepare_family(family: str, out: Path, url: str, command: Command) -> FamilyState:
    """Run `lavis-ext prepare FAMILY` against a mirror."""
    log.info("%s …", family)
    start = time.monotonic()
    names = registry_names(family)
    words = ["prepare", *wanted(family), "--quiet", *options_of(family)]
    try:
        answer = command(words, environment_for(out / "cache", url), out / "logs" / f"{family}.log")
    except LavisExtError as error:
        log.warning("%s", error)
        failed = FamilyState(family, names, state=f"failed ({error.exit_code})", exit_code=error.exit_code)
        return replace(failed, seconds=seconds_since(start))
    return replace(summarise(family, names, answer), seconds=seconds_since(start))


def seconds_since(start: float) -> float:
    """Of the monotonic clock."""
    return round(time.monotonic() - start, 2)


def registry_names(family: str) -> tuple[str, ...]:
    """The names of the data sets that a family declares itself and that its name prepares."""
    cards = all_cards()
    found = [(name, d) for name, types in cards.families[family].datasets.items() for d in types.values()]
    own = [(name, d) for name, d in found if d.family == family and not d.on_request]
    return tuple(dict.fromkeys(name for name, d in own if cards.artifacts_of(d)))


def wanted(family: str) -> list[str]:
    """What of a family is prepared: its data sets, or all that it publishes."""
    if family not in WHOLE:
        return [family]
    return [f"{family}/*", *([family] if all_cards().families[family].datasets else [])]


def options_of(family: str) -> list[str]:
    """Of a list in many parts only as much as the mirror has: its first part."""
    parted = any(a.lists and a.lists.parts > 1 for a in all_cards().families[family].artifacts.values())
    return ["--max-samples", str(SIZES["train"])] if parted else []


def summarise(family: str, names: tuple[str, ...], answer: Answer) -> FamilyState:
    """What the verb's report says of the splits of these names."""
    told: list[dict[str, Any]] = [split for item in answer for split in item.get("splits", ())]
    own = [split for split in told if split["dataset"] in names]
    files = [split for split in told if split["dataset"].startswith(f"{family}/")]
    counted = files or own
    return FamilyState(
        family=family,
        names=names,
        samples=sum(split["samples"] or 0 for split in own),
        images=sum(split["present"] for split in counted),
        expected=sum(split["expected"] or 0 for split in counted),
        state=min((split["state"].partition(" ")[0] for split in own + files), key=STATES.index, default=STATES[0]),
    )


def table(states: Sequence[FamilyState]) -> list[str]:
    """The families as lines of aligned columns."""
    return columns([HEAD, *(state.cells() for state in states)]) if states else []
