"""Constrained beam search (Anderson et al., arXiv:1612.00576), and the constraints of NoCaps (arXiv:1812.08658).

A constraint is met by any of its word forms. The search runs a finite-state machine over each caption: a state is the
set of constraints met (bit i for constraint i) and the prefix of a form that the caption ends in. Every state has a
beam of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import read_file
from lavis_ext.oscar.generation import CaptionState, Choice, Ends, GeneratedCaptions, pick

Ids = tuple[int, ...]
Constraint = Sequence[Ids]
"""The forms of one thing, each as token ids."""
MOST = 3
NEVER = float("-inf")


@dataclass
class Machine:
    """The states of the captions of one image. State s meets the constraints `met[s]`; a word leads on as `moves` says,
    any other word to `rest[s]`, the state of the same constraints with no form begun."""

    given: int
    met: list[int] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)
    moves: list[dict[int, int]] = field(default_factory=list)

    def needed(self, least: int) -> int:
        """How many constraints a caption must meet: `least`, or all where fewer are given."""
        return min(self.given, least)


def build_machine(constraints: Sequence[Constraint]) -> Machine:
    """The machine of up to three constraints; raises ConfigError for more.

    Where forms overlap, the longest one that has begun counts; a form within another one is met with it.
    """
    if len(constraints) > MOST:
        raise ConfigError("constraints", f"{len(constraints)} are given", f"give at most {MOST} an image")
    machine = Machine(len(constraints))
    number: dict[tuple[int, Ids], int] = {}
    waiting: list[tuple[int, Ids]] = []

    def state(met: int, begun: Ids) -> int:
        if (met, begun) not in number:
            number[met, begun] = len(machine.met)
            machine.met.append(met)
            machine.rest.append(-1)
            machine.moves.append({})
            waiting.append((met, begun))
        return number[met, begun]

    state(0, ())
    while waiting:
        met, begun = waiting.pop(0)
        here = number[met, begun]
        machine.rest[here] = state(met, ())
        words = {word for constraint in constraints for form in constraint for word in form}
        for word in sorted(words):
            target = _after(constraints, met, (*begun, word))
            if target != (met, ()):
                machine.moves[here][word] = state(*target)
    return machine


def _after(constraints: Sequence[Constraint], met: int, read: Ids) -> tuple[int, Ids]:
    """Constraints met, and the longest prefix of an unmet form, where a caption ends in the words `read`."""
    for index, constraint in enumerate(constraints):
        if any(form and read[-len(form) :] == form for form in constraint):
            met |= 1 << index
    open_forms = [form for index, forms in enumerate(constraints) if not met >> index & 1 for form in forms]
    for start in range(len(read)):
        tail = read[start:]
        if any(len(form) > len(tail) and form[: len(tail)] == tail for form in open_forms):
            return met, tail
    return met, ()


@dataclass(frozen=True)
class Machines:
    """The machines of a batch, padded to S states and W listed words: `words` and `leads` [B, W] and [B, S, W] with -1
    where there is none, `rest` and `met` [B, S]; padding leads to itself and is never reached."""

    words: Tensor
    leads: Tensor
    rest: Tensor
    met: Tensor
    needed: Tensor


def join_machines(machines: Sequence[Machine], least: int, device: torch.device) -> Machines:
    """Machines of several images side by side."""
    listed = [sorted({word for moves in machine.moves for word in moves}) for machine in machines]
    states, width = max(len(machine.met) for machine in machines), max(1, *map(len, listed))
    words = torch.full((len(machines), width), -1)
    leads = torch.full((len(machines), states, width), -1)
    rest = torch.arange(states).repeat(len(machines), 1)
    met = torch.zeros(len(machines), states, dtype=torch.long)
    for row, (machine, own) in enumerate(zip(machines, listed, strict=True)):
        words[row, : len(own)] = torch.tensor(own, dtype=torch.long)
        rest[row, : len(machine.rest)] = torch.tensor(machine.rest)
        met[row, : len(machine.met)] = torch.tensor(machine.met)
        for here, moves in enumerate(machine.moves):
            leads[row, here, : len(own)] = torch.tensor([moves.get(word, machine.rest[here]) for word in own])
    needed = torch.tensor([machine.needed(least) for machine in machines])
    return Machines(*(tensor.to(device) for tensor in (words, leads, rest, met, needed)))


def search_constrained(
    writer: CaptionState, machines: Machines, beams: int, ends: Ends, choice: Choice
) -> GeneratedCaptions:
    """The best caption of each image that meets enough of its constraints; `writer` has S · `beams` rows.

    Within a state captions compete by the sum of log probabilities; the best of each state then compete by its mean
    over the words and [SEP], as upstream's do. Where none meets enough, the best of those that meet most is taken.
    """
    batch, states = machines.rest.shape
    ids = torch.full((batch, states * beams, 1), ends.cls, device=machines.rest.device)
    scores = torch.full((batch, states * beams), NEVER, device=ids.device)
    scores[:, 0] = 0.0
    for _ in range(choice.max_length - 1):
        ended = (ids[..., -1] == ends.sep) | (ids[..., -1] == ends.pad)
        if bool((ended | (scores == NEVER)).all()):
            break
        logs = F.log_softmax(writer.step(ids[..., -1]).float(), dim=-1)
        only_end = torch.full_like(logs[0, 0], NEVER)
        only_end[ends.pad] = 0.0
        logs = torch.where(ended[..., None], only_end, logs) + scores[..., None]
        scores, rows, words = _choose(logs.view(batch, states, beams, -1), machines, beams)
        writer.follow(rows)
        ids = torch.cat([pick(ids, rows), words[..., None]], dim=2)
    return _select(ids.view(batch, states, beams, -1), scores.view(batch, states, beams), machines, ends, choice)


def _choose(sums: Tensor, machines: Machines, beams: int) -> tuple[Tensor, Tensor, Tensor]:
    """From sums [B, S, K, V]: scores, rows and words [B, S · K] of the best of each state that they lead to."""
    batch, states, rows, _ = sums.shape
    there = machines.words.clamp(min=0)[:, None, None].expand(batch, states, rows, -1)
    known = (machines.words >= 0)[:, None, None].expand_as(there)
    named = sums.gather(-1, there).masked_fill(~known, NEVER)
    others = sums.scatter_reduce(-1, there, torch.where(known, NEVER, sums.gather(-1, there)), "amin")
    best, best_words = others.topk(min(beams, sums.shape[-1]), dim=-1)
    values = torch.cat([named, best], dim=-1)
    words = torch.cat([there, best_words], dim=-1)
    leads = machines.leads[:, :, None].expand_as(named)
    targets = torch.cat([leads, machines.rest[:, :, None, None].expand_as(best)], dim=-1)
    origins = torch.arange(states * rows, device=sums.device).view(1, states, rows, 1).expand_as(values)
    values, words, targets, origins = (tensor.flatten(1) for tensor in (values, words, targets, origins))
    reached = targets[:, None] == torch.arange(states, device=sums.device)[None, :, None]
    top, places = torch.where(reached, values[:, None], NEVER).topk(beams, dim=-1)
    places = places.flatten(1)
    return top.flatten(1), origins.gather(1, places), words.gather(1, places)


def _select(ids: Tensor, scores: Tensor, machines: Machines, ends: Ends, choice: Choice) -> GeneratedCaptions:
    """The caption of each image: of every state the best beam by its sum, of these one by constraints met, then mean.

    States in which a form has begun do not count, unless no other has a beam.
    """
    filled = F.pad(ids, (0, choice.max_length - ids.shape[3]), value=ends.pad)[:, :, 0]  # beams are sorted by sums
    words = ((filled != ends.sep) & (filled != ends.pad)).sum(-1)
    means = scores[:, :, 0] / words
    count = torch.as_tensor(sum(machines.met >> bit & 1 for bit in range(MOST)))
    begun = machines.rest != torch.arange(machines.rest.shape[1], device=ids.device)
    enough = torch.minimum(count, machines.needed[:, None]).masked_fill(begun | (means == NEVER), -1)
    ranked = torch.where(enough == enough.amax(1, keepdim=True), means, NEVER)
    top, place = ranked.max(1)
    return GeneratedCaptions(filled[torch.arange(len(ids)), place][:, None], top[:, None])


# The constraints of NoCaps, by upstream's rules: detected things, without those that are too common or too rare and
# without boxes of a general class over one of a more special class (an "animal" over a "dog"), the most confident ones.

Box = tuple[float, float, float, float]
GIVEN = 3
OVERLAP = 0.85
MOST_WAYS = 64
SEPARATOR = ","
SKIPPED = frozenset(
    (
        "auto part,bathroom accessory,bicycle wheel,boy,building,clothing,door handle,fashion accessory,footwear,girl,"
        "hiking equipment,human arm,human beard,human body,human ear,human eye,human face,human foot,human hair,"
        "human hand,human head,human leg,human mouth,human nose,land vehicle,mammal,man,person,personal care,plant,"
        "plumbing fixture,seat belt,skull,sports equipment,tire,tree,vehicle registration plate,wheel,woman,"
        "__background__"
    ).split(SEPARATOR)
)
SPELT = {
    "band-aid": "bandaid",
    "wood-burning stove": "wood burning stove",
    "kitchen & dining room table": "table",
    "salt and pepper shakers": "salt and pepper",
    "power plugs and sockets": "power plugs",
    "luggage and bags": "luggage",
}
"""How a class of Open Images is called in captions."""


@dataclass(frozen=True)
class DetectedObject:
    """A detected thing: its class in lower case, its confidence, and its box (x1, y1, x2, y2) in pixels."""

    name: str
    conf: float
    box: Box


def detected(labels: Iterable[Mapping[str, Any]], where: str) -> list[DetectedObject]:
    """Things from a row of labels, `[{class, conf, rect}]`; raises IntegrityError for other rows."""
    try:
        rows = [(str(row["class"]).lower(), float(row["conf"]), row["rect"]) for row in labels]
        return [
            DetectedObject(name, conf, (float(a), float(b), float(c), float(d))) for name, conf, (a, b, c, d) in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        what = f"has labels without class, conf or rect ({type(error).__name__}: {error})"
        raise IntegrityError(where, what, "name the detections of Open Images") from error


def choose_names(
    things: Sequence[DetectedObject], heights: Mapping[str, int] | None = None, given: int = GIVEN
) -> list[str]:
    """The names of up to `given` things that a caption must name, the most confident first.

    `heights` says how far a class is above the most special ones (see `read_heights`).
    """
    kept = [thing for thing in things if thing.conf > 0 and thing.name not in SKIPPED]
    kept = suppress_general(kept, heights or {})
    kept.sort(key=attrgetter("conf"), reverse=True)
    return list(dict.fromkeys(SPELT.get(thing.name, thing.name) for thing in kept[:given]))


def suppress_general(things: Sequence[DetectedObject], heights: Mapping[str, int]) -> list[DetectedObject]:
    """Without boxes that cover a box of a more special thing by more than 0.85 (intersection over union)."""
    special = [heights.get(thing.name, 0) for thing in things]
    return [
        thing
        for thing, height in zip(things, special, strict=True)
        if not any(
            lower < height and overlap(thing.box, other.box) > OVERLAP
            for other, lower in zip(things, special, strict=True)
        )
    ]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union, with upstream's one pixel more in every direction."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    inside = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return inside / (sum(areas) - inside)


def words_for(name: str, pieces: Mapping[str, Sequence[str]], forms: Mapping[str, Sequence[str]]) -> list[str]:
    """All ways to say a name: each of its words as its `pieces`, and each piece in one of its `forms`.

    A word that neither lists is used as it is.
    """
    parts = [piece for word in name.split() for piece in pieces.get(word) or [word]]
    ways = product(*(forms.get(part) or [part] for part in parts))
    return list(dict.fromkeys(" ".join(way).replace(" ##", "") for way in islice(ways, MOST_WAYS)))


def read_forms(path: Path) -> dict[str, list[str]]:
    """The rows of a TSV: a word, and the words for it, separated by commas; raises IntegrityError."""
    try:
        rows = [line.split("\t") for line in read_file(path).decode("utf-8").splitlines() if line.strip()]
        return {name.strip(): [word.strip() for word in words.split(",") if word.strip()] for name, words in rows}
    except (OSError, ValueError) as error:
        raise IntegrityError(str(path), f"is no table of names and words: {error}", "fetch it again") from error


def read_heights(tree: Mapping[str, Any]) -> dict[str, int]:
    """Class in lower case → how many levels are below it, from Open Images' hierarchy (`LabelName`, `Subcategory`)."""
    found: dict[str, int] = {}

    def visit(node: Mapping[str, Any]) -> int:
        height = 1 + max((visit(child) for child in node.get("Subcategory", ())), default=-1)
        name = str(node.get("LabelName", "")).lower()
        found[name] = max(height, found.get(name, 0))
        return height

    visit(tree)
    return found
