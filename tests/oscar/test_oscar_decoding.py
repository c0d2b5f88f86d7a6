"""Captions are written as they are trained: every step, the pass that scores them, and the searches by plain ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import ConfigError
from lavis_ext.oscar.constrained import build_machine, join_machines, search_constrained
from lavis_ext.oscar.convert import from_oscar
from lavis_ext.oscar.generation import CaptionState, Choice, Context, draw_captions, score_captions, search_beams
from lavis_ext.oscar.network import OscarNetwork
from tests.support.captions import (
    ENDS,
    Prefix,
    Table,
    TableWriter,
    best_constrained,
    close,
    every_caption,
    plain_beam_search,
    words_of,
)
from tests.support.oscar import SMALL, Reference, oscar_state

CONFIG = {**SMALL, "num_hidden_layers": 3}
MASK = 4


def network_and_context() -> tuple[OscarNetwork, Reference, Context]:
    state = oscar_state(CONFIG, "words")
    rng = torch.Generator().manual_seed(3)
    tags_seen, regions_seen = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    tags_seen[1, 2], regions_seen[0, 2:] = False, False
    ids, regions = torch.randint(5, 53, (2, 3), generator=rng), torch.randn(2, 4, 14, generator=rng)
    context = Context(ids, tags_seen, regions, regions_seen, tag_start=20)
    return from_oscar(state, CONFIG).eval(), Reference(state, CONFIG), context


def published(reference: Reference, context: Context, caption: list[int], image: int) -> np.ndarray:
    """Logits behind a caption as upstream computes them: caption and [MASK], tags, regions, all read again."""
    words, tags, regions = len(caption) + 1, context.ids.shape[1], context.regions.shape[1]
    mask = torch.zeros(words + tags + regions, words + tags + regions)
    mask[:words, :words] = torch.ones(words, words).tril()
    mask[:, words:] = context.seen[image].float()
    batch = {
        "input_ids": torch.tensor([[*caption, MASK, *context.ids[image]]]),
        "token_type_ids": torch.tensor([[0] * words + [1] * tags]),
        "position_ids": torch.tensor([[*range(words), *range(20, 20 + tags)]]),
        "img_feats": context.regions[image : image + 1],
        "attention_mask": mask[None],
    }
    return reference.words(reference.sequence(batch)[0, words - 1])


def test_a_step_is_the_published_pass_over_all_that_was_written() -> None:
    network, reference, context = network_and_context()
    captions = torch.tensor([[[2, 9, 30, 11], [2, 40, 7, 8]], [[2, 5, 5, 6], [2, 50, 49, 48]]])
    writer = CaptionState(network, context, MASK, 2)
    in_one = score_captions(network, context.repeated(2), captions.flatten(0, 1), MASK)
    for step in range(3):
        logits = writer.step(captions[..., step])
        torch.testing.assert_close(logits.flatten(0, 1), in_one[:, step], atol=1e-5, rtol=1e-5)
        for image in range(2):
            for row in range(2):
                expected = published(reference, context, captions[image, row, : step + 1].tolist(), image)
                np.testing.assert_allclose(logits[image, row].detach().numpy(), expected, atol=2e-5, rtol=0)


def test_rows_that_are_followed_keep_what_they_wrote() -> None:
    network, _, context = network_and_context()
    writer = CaptionState(network, context, MASK, 2)
    writer.step(torch.full((2, 2), 2))
    writer.step(torch.tensor([[9, 10], [11, 12]]))
    writer.follow(torch.tensor([[1, 1], [0, 1]]))
    found = writer.step(torch.tensor([[20, 21], [22, 23]]))
    captions = torch.tensor([[2, 10, 20, 0], [2, 10, 21, 0], [2, 11, 22, 0], [2, 12, 23, 0]])
    expected = score_captions(network, context.repeated(2), captions, MASK)[:, 2]
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2, 9])  # 9 has a caption that ends behind the first three candidates
@pytest.mark.parametrize(("beams", "penalty", "keep"), [(2, 1.0, 1), (3, 1.0, 3), (5, 0.6, 1), (5, 2.0, 2)])
def test_beams_find_what_upstreams_search_finds(seed: int, beams: int, penalty: float, keep: int) -> None:
    table = Table(seed, images=3)
    found = search_beams(TableWriter(table, beams), 3, ENDS, Choice(6, penalty), keep)  # type: ignore[arg-type]
    for image in range(3):
        expected = plain_beam_search(lambda p, image=image: table.logs(image, p), beams, 6, penalty, keep)  # type: ignore[misc]
        assert [words_of(ids) for ids in found.ids[image]] == [caption for _, caption in expected]
        assert all(close(float(s), e) for s, (e, _) in zip(found.scores[image], expected, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best_of_all_captions(seed: int) -> None:
    table, size = Table(seed, words=6), 4
    found = search_beams(TableWriter(table, 40), 2, ENDS, Choice(size))  # type: ignore[arg-type]
    for image in range(2):
        every = [(total / (len(c) - 1), c[:-1]) for c, total, _ in every_caption(table, image, size)]
        assert words_of(found.ids[image, 0]) == max(every)[1] and close(float(found.scores[image, 0]), max(every)[0])


def test_ids_end_in_sep_and_are_padded() -> None:
    found = search_beams(TableWriter(Table(1), 3), 2, ENDS, Choice(6), keep=2)  # type: ignore[arg-type]
    assert found.ids.shape == (2, 2, 6)
    for row in found.ids.flatten(0, 1).tolist():
        end = row.index(ENDS.sep)
        assert row[0] == ENDS.cls and row[end + 1 :] == [ENDS.pad] * (5 - end)


def test_greedy_takes_the_likeliest_word_and_its_score_is_the_mean() -> None:
    table = Table(2)
    found = draw_captions(TableWriter(table, 1), 2, ENDS, Choice(6))  # type: ignore[arg-type]
    for image in range(2):
        prefix, logs = (ENDS.cls,), []
        while len(prefix) < 6 and prefix[-1] != ENDS.sep:
            step = table.logs(image, prefix)
            prefix, logs = (*prefix, int(step.argmax())), [*logs, step.max()]
        assert words_of(found.ids[image, 0])[:5] == tuple(w for w in prefix[:5] if w != ENDS.sep)
        assert close(float(found.scores[image, 0]), float(np.mean(logs)))


def test_drawn_captions_follow_the_shares_and_the_seed() -> None:
    table = Table(5, images=1)

    def draw(seed: int, temperature: float = 1.0) -> list[Prefix]:
        rng = torch.Generator().manual_seed(seed)
        writer, choice = TableWriter(table, 3000), Choice(3, temperature=temperature)
        return [words_of(row) for row in draw_captions(writer, 1, ENDS, choice, rng, sample=True).ids[0]]  # type: ignore[arg-type]

    drawn = draw(0)
    assert drawn == draw(0) and drawn != draw(1)
    shares = np.exp(table.logs(0, (ENDS.cls,)))
    counts = np.bincount([row[1] if len(row) > 1 else ENDS.sep for row in drawn], minlength=7) / 3000
    np.testing.assert_allclose(counts, shares, atol=0.04)
    greedy = words_of(draw_captions(TableWriter(table, 1), 1, ENDS, Choice(3)).ids[0, 0])  # type: ignore[arg-type]
    assert set(draw(0, temperature=1e-3)) == {greedy}


@pytest.mark.parametrize("seed", range(4))
def test_the_logits_of_repeated_words_are_made_smaller_as_upstream_does(seed: int) -> None:
    """Before the softmax: divided where they are positive, multiplied where they are not."""
    table, penalty = Table(seed, words=9), 1.5

    def logs(image: int, prefix: Prefix) -> np.ndarray:
        found, there = table.logits(image, prefix), list(set(prefix))
        found[there] = np.where(found[there] < 0, found[there] * penalty, found[there] / penalty)
        return found - np.log(np.exp(found).sum())

    found = search_beams(TableWriter(table, 2), 2, ENDS, Choice(6, repetition_penalty=penalty))  # type: ignore[arg-type]
    for image in range(2):
        ((score, caption),) = plain_beam_search(lambda p, image=image: logs(image, p), 2, 6, 1.0, 1)  # type: ignore[misc]
        assert words_of(found.ids[image, 0]) == caption and close(float(found.scores[image, 0]), score)


def test_a_repeated_word_is_made_less_likely() -> None:
    plain, dear = Choice(8), Choice(8, repetition_penalty=50.0)
    tables = [Table(seed, words=9, images=1) for seed in range(6)]
    repeats = []
    for choice in (plain, dear):
        found = [words_of(search_beams(TableWriter(t, 4), 1, ENDS, choice).ids[0, 0]) for t in tables]  # type: ignore[arg-type]
        repeats.append(sum(len(caption) - len(set(caption)) for caption in found))
    assert repeats[1] < repeats[0]


CONSTRAINTS: list[list[list[Prefix]]] = [
    [],
    [[(4,)]],
    [[(4,), (5,)], [(6,)]],
    [[(4, 5)], [(5, 4), (6,)]],
    [[(4, 4, 5)]],
    [[(4, 5), (4,)], [(5,)], [(6, 6)]],
]


@pytest.mark.parametrize("constraints", CONSTRAINTS)
@pytest.mark.parametrize("least", [1, 2, 3])
def test_constrained_beams_find_the_best_caption_that_names_enough(constraints: list[list[Prefix]], least: int) -> None:
    table, size = Table(7, images=2), 5
    machines = join_machines([build_machine(constraints), build_machine(constraints[:1])], least, torch.device("cpu"))
    states = machines.rest.shape[1]
    found = search_constrained(TableWriter(table, states * 60), machines, 60, ENDS, Choice(size))  # type: ignore[arg-type]
    for image, given in enumerate([constraints, constraints[:1]]):
        caption, score = best_constrained(table, image, size, given, least)
        assert words_of(found.ids[image, 0]) == tuple(word for word in caption if word != ENDS.sep)
        assert close(float(found.scores[image, 0]), score)


def test_a_machine_has_as_many_states_as_it_needs() -> None:
    assert len(build_machine([]).met) == 1
    assert sorted(build_machine([[(4,)], [(5,)], [(6,), (7,)]]).met) == list(range(8))
    two_words = build_machine([[(4, 5)]])
    assert two_words.met == [0, 0, 1] and two_words.moves[1] == {4: 1, 5: 2}
    with pytest.raises(ConfigError, match="at most 3"):
        build_machine([[(4,)]] * 4)


def test_what_cannot_be_met_is_met_as_far_as_it_goes() -> None:
    """A caption of three words has no room for two things of two words each."""
    machines = join_machines([build_machine([[(4, 5)], [(6, 6)]])], 2, torch.device("cpu"))
    writer = TableWriter(Table(3, images=1), machines.rest.shape[1] * 20)
    found = words_of(search_constrained(writer, machines, 20, ENDS, Choice(4)).ids[0, 0])  # type: ignore[arg-type]
    assert {(4, 5), (6, 6)} & set(pairwise(found))


def test_images_without_tags_or_regions_are_described_too() -> None:
    network, _, context = network_and_context()
    bare = replace(context, ids=context.ids[:, :0], tags_seen=context.tags_seen[:, :0])
    blind = replace(context, tags_seen=context.tags_seen & False, regions_seen=context.regions_seen & False)
    for given in (bare, blind):
        captions = torch.tensor([[2, 9, 30], [2, 40, 7]])
        writer = CaptionState(network, given, MASK, 1)
        in_one = score_captions(network, given, captions, MASK)
        assert in_one.isfinite().all()
        for step in range(2):
            torch.testing.assert_close(
                writer.step(captions[:, step, None])[:, 0], in_one[:, step], atol=1e-5, rtol=1e-5
            )
