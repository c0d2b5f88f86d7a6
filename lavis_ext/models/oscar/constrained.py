"""Constrained beam search (Anderson et al., arXiv:1612.00576): captions that name what was seen, in one of its forms.

A caption runs through a machine of states while it is written. A state is which constraints are met (bit i for
constraint i), and how far the caption stands within a form of one that is not. Every state has a beam of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.errors import ConfigError
from lavis_ext.models.oscar.beams import Captions, Choice, Ends
from lavis_ext.models.oscar.decoding import Writer, pick

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

    Where forms overlap, the longest one that is under way counts; a form within another one is met with it.
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
    """What is met, and the longest form begun, once `read` stands at the end of a caption."""
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


def search_constrained(writer: Writer, machines: Machines, beams: int, ends: Ends, choice: Choice) -> Captions:
    """The best caption of each image that meets enough of its constraints; `writer` has S · `beams` rows.

    Within a state captions compete by the sum of log probabilities, across states by its mean over the words and [SEP],
    as upstream's do. Where none meets enough, the best of those that meet most is taken.
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


def _select(ids: Tensor, scores: Tensor, machines: Machines, ends: Ends, choice: Choice) -> Captions:
    """The best of the beams [B, S, K]: first by enough constraints, then by the mean log probability."""
    filled = F.pad(ids, (0, choice.max_length - ids.shape[3]), value=ends.pad)
    words = ((ids != ends.sep) & (ids != ends.pad)).sum(-1)
    means = scores / words
    count = sum(machines.met >> bit & 1 for bit in range(MOST))
    enough = torch.minimum(torch.as_tensor(count), machines.needed[:, None])[..., None].expand_as(means)
    enough = torch.where(means == NEVER, -1, enough)
    ranked = torch.where(enough == enough.flatten(1).amax(1)[:, None, None], means, NEVER)
    top, place = ranked.flatten(1).max(1)
    return Captions(filled.flatten(1, 2)[torch.arange(len(ids)), place][:, None], top[:, None])
