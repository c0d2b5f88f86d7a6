"""The world beyond COCO's form: every family of data sets exported, and prepared by the real verb."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lavis_ext.common.errors import LavisExtError, UsageError, nearest
from lavis_ext.common.files import disk_errors, write_atomic
from lavis_ext.common.wording import columns
from lavis_ext.demo.coco import Photo, export_coco, export_photos
from lavis_ext.demo.mirror import MirrorWriter, all_cards, serve
from lavis_ext.demo.steps import Answer, Command, environment_for, run_verb
from lavis_ext.demo.world import World
from lavis_ext.fetch.mirrors import MANIFEST
from tests.world.families import (
    export_flickr30k,
    export_minigpt4,
    export_nocaps,
    export_snli_ve,
    export_vg,
    flickr_by_request,
)
from tests.world.nlvr import export_nlvr, nlvr_by_request
from tests.world.vqa import export_aokvqa, export_gqa, export_okvqa, export_vqav2
from tests.world.weblists import export_laion, export_sbu

log = logging.getLogger(__name__)
SIZES = {"train": 60, "val": 20, "test": 20, "hidden": 20}
STATES = ("missing", "partial", "present", "verified")
"""From the worst to the best."""
WHOLE = ("oscar", "vinvl")
"""Families that are prepared whole, beyond what data sets read: models, and features in all of their forms."""
HEAD = ["family", "names", "samples", "images", "state", "seconds"]


class Exporter(Protocol):
    """Writes all scenes of a world under the URLs of one family."""

    def __call__(self, world: World, mirror: MirrorWriter) -> None:
        """Add the family's files to the mirror."""


def export_oscar(world: World, mirror: MirrorWriter) -> None:
    """Oscar's archives; features and models need numpy and torch, which are imported here."""
    from tests.world.oscar import archives

    archives.export_oscar(world, mirror)


def export_vinvl(world: World, mirror: MirrorWriter) -> None:
    """VinVL's folders; they need numpy and torch too."""
    from tests.world.oscar import archives

    archives.export_vinvl(world, mirror)


EXPORTS: dict[str, Exporter] = {
    "coco": export_coco,
    "vqav2": export_vqav2,
    "okvqa": export_okvqa,
    "aokvqa": export_aokvqa,
    "gqa": export_gqa,
    "vg": export_vg,
    "nocaps": export_nocaps,
    "sbu_caption": export_sbu,
    "laion": export_laion,
    "minigpt4": export_minigpt4,
    "nlvr": export_nlvr,
    "flickr30k": export_flickr30k,
    "snli_ve": export_snli_ve,
    "oscar": export_oscar,
    "vinvl": export_vinvl,
}
NEEDS = dict.fromkeys(("vqav2", "okvqa", "aokvqa"), "coco")
"""Families that are about the images of another one."""
BY_HAND: dict[str, Callable[[World], Iterator[tuple[str, bytes]]]] = {
    "nlvr": nlvr_by_request,
    "flickr30k": flickr_by_request,
    "snli_ve": flickr_by_request,
}
"""Families whose images no server gives out: what a person puts below the cache root, as (path, content)."""


def export_world(world: World, root: Path, families: Iterable[str] | None = None) -> Path:
    """Write a subset mirror of the families (default: all) into `root`; returns its manifest, which is written last.

    The images that a family takes from another one come along. Raises UsageError for an unknown name.
    """
    chosen = list(EXPORTS) if families is None else list(families)
    for name in chosen:
        if name not in EXPORTS:
            raise UsageError(f"export '{name}'", "not known", nearest(name, EXPORTS))
    mirror = MirrorWriter(root)
    for name in dict.fromkeys([*(NEEDS[name] for name in chosen if name in NEEDS), *chosen]):
        EXPORTS[name](world, mirror)
    return mirror.finish()


def place_by_hand(world: World, cache_root: Path, families: Iterable[str]) -> int:
    """Put the images that come on request where a person would; those that are there stay. Returns how many it wrote.

    Raises DiskError.
    """
    made = 0
    for family in BY_HAND.keys() & set(families):
        for name, content in BY_HAND[family](world):
            path = cache_root / name
            if not path.is_file():
                with disk_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(path, content)
                made += 1
    return made


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
    start, names = time.monotonic(), registry_names(family)
    words = ["prepare", *wanted(family), "--quiet", *options_of(family)]
    try:
        answer = command(words, environment_for(out / "cache", url), out / "logs" / f"{family}.log")
    except LavisExtError as error:
        log.warning("%s", error)
        state = FamilyState(family, names, state=f"failed ({error.exit_code})", exit_code=error.exit_code)
    else:
        state = summarise(family, names, answer)
    return replace(state, seconds=round(time.monotonic() - start, 2))


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
    reported: list[dict[str, Any]] = [split for item in answer for split in item.get("splits", ())]
    own = [split for split in reported if split["dataset"] in names]
    files = [split for split in reported if split["dataset"].startswith(f"{family}/")]
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


def export_photographs(folder: Path, mirror: MirrorWriter, splits: Sequence[float] = (0.7, 0.15, 0.15)) -> None:
    """Write a folder in COCO's form (`images/`, `captions.json`) as a small COCO 2014 with a Karpathy split.

    `splits`: shares of train, val and test, in the order of the image ids. The photographs of test are also COCO's
    hidden test images.
    """
    content = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    said: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
        said.setdefault(annotation["image_id"], []).append(annotation["caption"])
    cuts = [round(len(said) * sum(splits[:n])) for n in range(4)]
    photos = [
        Photo(number, split, tuple(said[number]), (folder / "images" / names[number]).read_bytes)
        for split, start, end in zip(("train", "val", "test"), cuts, cuts[1:], strict=False)
        for number in sorted(said)[start:end]
    ]
    export_photos([*photos, *(Photo(p.id, "hidden", (), p.read) for p in photos if p.split == "test")], mirror)
