"""Terms of distillation against their formulas, written out in numpy float64 one number at a time."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lavis_ext.common.config.schema import own_keys
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import objectives, registry
from lavis_ext.distill.relations import (
    EarthMover,
    StructuredKd,
    attend,
    relation_heads,
    salient,
    token_scores,
    transport,
)
from lavis_ext.distill.terms import (
    AnnealingKd,
    Common,
    Mkd,
    Moment,
    PatientKd,
    SoftCrossEntropy,
    TinyBert,
    VanillaKd,
    divergence,
    hidden_pairs,
    of_one_width,
)
from lavis_ext.models.base_model import Outputs
from lavis_ext.models.settings import MgskdKeys

B, S, H, HEADS, C = 3, 5, 8, 2, 4
NOW = Moment()


def outputs(layers: int, seed: int, width: int = H, heads: int = HEADS, valid: Any = None, classes: int = C) -> Outputs:
    rng = np.random.default_rng(seed)
    mask = np.ones((B, S), dtype=bool)
    mask[0, -2:] = False

    def tensor(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape)).float()

    return Outputs(
        tensor(B, classes) * 3,
        tuple(tensor(B, S, width) for _ in range(layers + 1)),
        tuple(tensor(B, heads, S, S) for _ in range(layers)),
        torch.from_numpy(mask),
        valid,
    )


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kd(student: Outputs, teacher: Outputs, t: float, rows: range | list[int] = range(B)) -> float:
    total = 0.0
    for row in rows:
        p, q = softmax(array(teacher.logits)[row] / t), softmax(array(student.logits)[row] / t)
        total += sum(p[c] * (math.log(p[c]) - math.log(q[c])) for c in range(len(p)))
    return t * t * total / max(len(rows), 1)


def visible_mse(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> float:
    """Over visible tokens and the width."""
    x, y = array(a), array(b)
    spots = [(i, j) for i in range(B) for j in range(S) if mask[i, j]]
    return float(np.mean([((x[i, j] - y[i, j]) ** 2).mean() for i, j in spots]))


def visible_score_mse(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> float:
    x, y = array(a), array(b)
    spots = [(i, j, k) for i in range(B) for j in range(S) for k in range(S) if mask[i, j] and mask[i, k]]
    return float(np.mean([((x[i, :, j, k] - y[i, :, j, k]) ** 2).mean() for i, j, k in spots]))


def close(found: torch.Tensor, expected: float) -> None:
    assert float(found.detach()) == pytest.approx(expected, rel=2e-5, abs=1e-7)


# --- logits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1.0, 5.0])
def test_kd_is_the_divergence_times_the_square_of_the_temperature(t: float) -> None:
    student, teacher = outputs(2, 1), outputs(2, 2)
    close(VanillaKd(Common(t))({"full": student}, {"full": teacher}, NOW), kd(student, teacher, t))


def test_kd_of_half_precision_is_taken_in_full() -> None:
    student, teacher = torch.randn(2, 3).half() * 50, torch.randn(2, 3).half() * 50
    found = divergence(student, teacher, 5.0)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_mkd_weighs_its_views() -> None:
    shares = {"full": 0.5, "text": 0.25, "image": 0.25, "none": 0.0}
    views = [view for view in shares if shares[view]]
    mine = {view: outputs(2, n) for n, view in enumerate(views)}
    theirs = {view: outputs(2, n + 10) for n, view in enumerate(views)}
    term = Mkd(Common(3.0, shares))
    assert term.views == ("full", "text", "image")
    close(term(mine, theirs, NOW), sum(shares[v] * kd(mine[v], theirs[v], 3.0) for v in views))


@pytest.mark.parametrize(
    ("mine", "theirs", "rows"),
    [
        ([True, False, True], None, [0, 2]),
        ([True, True, True], [False, True, True], [1, 2]),
        ([False, True, True], [True, True, False], [1]),
        ([False, False, False], None, []),
    ],
)
def test_rows_that_see_nothing_do_not_count(mine: list[bool], theirs: list[bool] | None, rows: list[int]) -> None:
    student = outputs(2, 1, valid=torch.tensor(mine))
    teacher = outputs(2, 2, valid=None if theirs is None else torch.tensor(theirs))
    close(VanillaKd(Common(2.0))({"full": student}, {"full": teacher}, NOW), kd(student, teacher, 2.0, rows))


def test_other_labels_are_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match="same labels"):
        VanillaKd(Common())({"full": outputs(2, 1)}, {"full": outputs(2, 2, classes=5)}, NOW)


def test_soft_cross_entropy_is_a_mean_over_rows_and_classes() -> None:
    student, teacher = outputs(2, 1), outputs(2, 2)
    p, q = softmax(array(teacher.logits) / 5), softmax(array(student.logits) / 5)
    close(SoftCrossEntropy(Common(5.0))({"full": student}, {"full": teacher}, NOW), float((-p * np.log(q)).mean()))


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1 / 7), (0.3, 4 / 7), (0.599, 1.0)])
def test_annealing_raises_the_teachers_voice(progress: float, share: float) -> None:
    student, teacher = outputs(2, 1), outputs(2, 2)
    term = AnnealingKd(Common())
    expected = float(((array(student.logits) - array(teacher.logits) * share) ** 2).mean())
    close(term({"full": student}, {"full": teacher}, Moment(progress)), expected)
    assert not term.over(progress)
    assert term.over(0.6)


@pytest.mark.parametrize("wrong", [{"max_temperature": 0}, {"phase": 0.0}, {"phase": 1.5}])
def test_annealing_refuses_what_cannot_be_meant(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"terms akd\.{next(iter(wrong))}: "):
        own_keys(objectives, "akd", wrong, "run.distill.terms akd")


# --- layers ---------------------------------------------------------------------------------------------------------


def test_layers_are_spread_evenly() -> None:
    assert hidden_pairs(6, 12) == [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]
    assert hidden_pairs(4, 12) == [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]
    assert hidden_pairs(5, 12)[-1] == (5, 12)
    with pytest.raises(ConfigError, match="deeper"):
        hidden_pairs(12, 6)


@pytest.mark.parametrize("width", [H, H + 3])
def test_pkd_compares_directions_of_cls(width: int) -> None:
    student, teacher = outputs(2, 1), outputs(4, 2, width=width)
    assert student.hidden is not None
    assert teacher.hidden is not None
    squares = []
    for i, j in ((0, 0), (1, 2)):
        for row in range(B):
            a, b = array(student.hidden[i])[row, 0], array(teacher.hidden[j])[row, 0]
            a = np.concatenate([a, np.zeros(width - H)])
            squares += list((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2)
    close(PatientKd(Common())({"full": student}, {"full": teacher}, NOW), float(np.mean(squares)))


def test_tinybert_adds_states_and_scores_of_visible_tokens() -> None:
    student, teacher = outputs(2, 1), outputs(4, 2)
    assert student.hidden and teacher.hidden and student.attentions and teacher.attentions
    assert student.mask is not None
    expected = sum(visible_mse(student.hidden[i], teacher.hidden[j], student.mask) for i, j in ((0, 0), (1, 2), (2, 4)))
    expected += sum(
        visible_score_mse(student.attentions[i], teacher.attentions[j], student.mask) for i, j in ((0, 1), (1, 3))
    )
    close(TinyBert(Common())({"full": student}, {"full": teacher}, NOW), expected)


def test_other_heads_are_compared_by_their_mean() -> None:
    student, teacher = outputs(1, 1), outputs(1, 2, heads=4)
    assert student.attentions and teacher.attentions and student.hidden and teacher.hidden
    assert student.mask is not None
    expected = sum(visible_mse(s, t, student.mask) for s, t in zip(student.hidden, teacher.hidden, strict=True))
    means = [x.mean(1, keepdim=True) for x in (student.attentions[0], teacher.attentions[0])]
    close(
        TinyBert(Common())({"full": student}, {"full": teacher}, NOW),
        expected + visible_score_mse(*means, student.mask),
    )


def test_a_narrower_student_gets_zeros_behind() -> None:
    a, b = of_one_width(torch.ones(2, 3), torch.ones(2, 5))
    assert a.tolist() == [[1, 1, 1, 0, 0]] * 2
    assert b.tolist() == [[1] * 5] * 2


def test_a_model_without_states_is_told() -> None:
    bare = Outputs(torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="vanilla_kd"):
        TinyBert(Common())({"full": bare}, {"full": bare}, NOW)


# --- transport ------------------------------------------------------------------------------------------------------


def cheapest(cost: np.ndarray) -> float:
    """By trying every permutation: the optimum between equal weights of as many points (Birkhoff)."""
    size = len(cost)
    return min(sum(cost[i, p[i]] for i in range(size)) for p in itertools.permutations(range(size))) / size


def test_transport_is_the_cheapest_assignment_of_equal_weights() -> None:
    cost = np.random.default_rng(4).random((5, 5))
    flow = transport(np.full(5, 0.2), np.full(5, 0.2), cost)
    assert (flow * cost).sum() == pytest.approx(cheapest(cost))


def test_transport_keeps_its_sums() -> None:
    rng = np.random.default_rng(5)
    supply, demand = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(12))
    flow = transport(supply, demand, rng.random((6, 12)))
    assert np.allclose(flow.sum(1), supply)
    assert np.allclose(flow.sum(0), demand)
    assert (flow >= 0).all()


def test_emd_of_two_layers_is_written_out() -> None:
    student, teacher = outputs(2, 1), outputs(2, 2)
    assert student.hidden and teacher.hidden and student.attentions and teacher.attentions
    assert student.mask is not None
    states = np.array([[visible_mse(s, t, student.mask) for t in teacher.hidden[1:]] for s in student.hidden[1:]])
    scores = np.array([[visible_score_mse(s, t, student.mask) for t in teacher.attentions] for s in student.attentions])
    expected = visible_mse(student.hidden[0], teacher.hidden[0], student.mask) + cheapest(states) + cheapest(scores)
    close(EarthMover(Common())({"full": student}, {"full": teacher}, NOW), expected)


def test_cheap_layers_gain_weight_once_a_batch() -> None:
    cost = np.array([[1.0, 4.0], [4.0, 2.0]])
    flow = np.array([[0.5, 0.0], [0.0, 0.5]])
    assert attend(np.array([0.5, 0.5]), flow, cost) == pytest.approx([2 / 3, 1 / 3])  # 1/1 : 1/2
    term, views = EarthMover(Common()), ({"full": outputs(2, 1)}, {"full": outputs(4, 2)})
    term(*views, Moment(moves=False))
    assert term.layers is None
    term(*views, NOW)
    assert term.layers is not None
    student, teacher = term.layers
    assert student.sum() == pytest.approx(1) and teacher.sum() == pytest.approx(1)
    other = EarthMover(Common())
    other.load_state_dict(term.state_dict())
    assert float(other(*views, NOW)) == float(term(*views, NOW))


def test_equal_models_do_not_break_the_weights() -> None:
    same = outputs(2, 1)
    term = EarthMover(Common())
    for _ in range(2):
        assert float(term({"full": same}, {"full": same}, NOW)) == pytest.approx(0, abs=1e-9)
    assert term.layers is not None
    assert np.isfinite(np.concatenate(term.layers)).all()


# --- structure ------------------------------------------------------------------------------------------------------


def smooth_l1(d: float) -> float:
    return 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5


def angle(at: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    def unit(v: np.ndarray) -> np.ndarray:
        return v / max(float(np.linalg.norm(v)), 1e-12)

    return float(unit(a - at) @ unit(b - at))


def sample_loss(student: torch.Tensor, teacher: torch.Tensor, mask: np.ndarray, heads: int) -> float:
    found = []
    pooled = [
        np.stack([array(x)[i][mask[i]].mean(0) for i in range(B)]).reshape(B, heads, -1) for x in (student, teacher)
    ]
    for h, i, j, k in itertools.product(range(heads), range(B), range(B), range(B)):
        s, t = (angle(p[i, h], p[j, h], p[k, h]) for p in pooled)
        found.append(smooth_l1(s - t))
    return float(np.mean(found))


def token_loss(student: torch.Tensor, teacher: torch.Tensor, mask: np.ndarray, heads: int, k1: int, k2: int) -> float:
    s, t, width = array(student), array(teacher), H // heads
    squares, shares = [], np.zeros((B, S, S))
    for i in range(B):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            mine, theirs = (x[i, :, part] @ x[i, :, part].T / math.sqrt(width) for x in (s, t))
            seen = np.outer(mask[i], mask[i])
            squares.append(((mine - theirs) ** 2 * seen).sum())
            weights = np.where(seen, np.exp(theirs), 0.0)
            shares[i] += weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    pairs = sum(squares) / (heads * sum(int(m.sum()) ** 2 for m in mask))
    bent, count = 0.0, 0
    for i in range(B):
        for centre in np.argsort(-shares[i].sum(0), kind="stable")[:k1]:
            row = shares[i][centre].copy()
            row[centre] = 0
            near = np.argsort(-row, kind="stable")[:k2]
            for a, b in itertools.product(near, near):
                if a != b and centre not in (a, b) and mask[i, [a, b, centre]].all():
                    bent += smooth_l1(angle(s[i, centre], s[i, a], s[i, b]) - angle(t[i, centre], t[i, a], t[i, b]))
                    count += 1
    return float(pairs + bent / max(count, 1))


def test_mgskd_is_tokens_below_and_samples_above() -> None:
    student, teacher = outputs(2, 1), outputs(4, 2)
    assert student.hidden and teacher.hidden and student.mask is not None
    mask = student.mask.numpy()
    term = StructuredKd(Common(), MgskdKeys(heads=4, central=3, near=3, token_layers=1))
    pairs = [(student.hidden[i], teacher.hidden[j]) for i, j in ((0, 0), (1, 2), (2, 4))]
    expected = token_loss(*pairs[0], mask, 4, 3, 3) + 4 * sum(sample_loss(*pair, mask, 4) for pair in pairs[1:])
    close(term({"full": student}, {"full": teacher}, NOW), expected)


def test_heads_divide_the_width() -> None:
    assert relation_heads(768) == 64
    assert relation_heads(24) == 24
    assert relation_heads(100, 64) == 50


def test_salient_tokens_are_visible_ones() -> None:
    hidden, mask = torch.randn(1, 6, 8), torch.tensor([[True, True, True, False, False, False]])
    central, near = salient(token_scores(hidden, mask, 2), mask, 3, 2)
    assert set(central[0].tolist()) == {0, 1, 2}
    assert near.shape == (1, 3, 2)


# --- all of them ----------------------------------------------------------------------------------------------------

NAMES = ["akd", "emd", "mgskd", "mkd", "pkd", "soft_ce", "td", "tinybert", "vanilla_kd"]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_student_and_are_right(name: str) -> None:
    """A step against the gradient lowers the term; only terms that learn from the teacher move the student."""
    term = registry.get_objective_class(name)(Common(2.0, {"full": 1.0}))
    student, teacher = outputs(2, 1), outputs(4, 2)
    leaves = [student.logits, *(student.hidden or ()), *(student.attentions or ())]
    for leaf in leaves:
        leaf.requires_grad_()
    still = Moment(moves=False)
    before = term({"full": student}, {"full": teacher}, still)
    grads = torch.autograd.grad(before, leaves, allow_unused=True)
    assert any(grad is not None and grad.abs().max() > 0 for grad in grads)
    with torch.no_grad():
        for leaf, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                leaf -= 1e-2 * grad / grad.norm().clamp(min=1e-9)
    assert float(term({"full": student}, {"full": teacher}, still).detach()) < float(before.detach())


def test_all_names_are_registered() -> None:
    assert {*NAMES, "ft", "itc", "itm", "lm"} <= set(registry.list_objectives())
    assert registry.get_objective_class("td") is registry.get_objective_class("tinybert")


def test_nothing_is_taught_by_ft() -> None:
    term = registry.get_objective_class("ft")(Common())
    assert term.over(0.0)
    assert term.views == ()


def test_mgskd_makes_nothing_on_another_device_than_the_states() -> None:
    """On torch's device without memory, as on a card: a mask on the processor cannot be mixed in."""

    def away(found: Outputs) -> Outputs:
        assert found.hidden is not None
        return replace(found, hidden=tuple(state.to("meta") for state in found.hidden), mask=None)

    term = StructuredKd(Common(), MgskdKeys(heads=4, central=3, near=3, token_layers=1))
    loss = term({"full": away(outputs(2, 1))}, {"full": away(outputs(4, 2))}, NOW)
    assert loss.device.type == "meta"
