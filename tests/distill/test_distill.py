"""distill: what must hold whatever the numbers are, and that a run which was cut off goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_ext.common.config.decode import ConfigDecoder
from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.distill.settings import layer_pairs
from lavis_ext.oscar.model import Oscar
from lavis_ext.runners.microbatch import Step
from lavis_ext.runners.runner_base import Hook, RunnerBase
from lavis_ext.tasks import setup_task
from tests.support.distilling import (
    Regions,
    distill_runner,
    distilled,
    moved,
    oscar,
    resumed,
    run_section,
)
from tests.support.runs import log_lines

DATA = Regions(bare=(5,))
MOVING = {"teacher_update": "reptile", "meta_lr": 0.3, "strategy": "skip"}


def batch(*indices: int) -> dict[str, Any]:
    return DATA.batch(*(indices or (0, 1, 2, 3)))


def values(model: Oscar) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained(task: Any, steps: int = 4, seed: int = 3) -> dict[str, torch.Tensor]:
    """The student after some steps of SGD on different batches; dropout is drawn by `seed`."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(task.network.parameters(), lr=0.05)
    for number in range(steps):
        loss = task.step(batch(*range(number, number + 4)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return values(task.network)


# --- (a) … (f) of the specification --------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["none", "reptile", "reptile_adamw"])
def test_without_a_share_it_is_plain_fine_tuning(update: str) -> None:
    plain = setup_task(run_section().__class__(task="oscar_gqa"), oscar(2, 1, drop_out=0.3).train())
    task = distilled(oscar(2, 1, drop_out=0.3), oscar(4, 2), alpha=0.0, teacher_update=update)
    assert same(trained(plain), trained(task))


@pytest.mark.parametrize("terms", [["mkd"], ["vanilla_kd", "pkd"]])
def test_a_step_of_length_zero_is_a_frozen_teacher(terms: list[str]) -> None:
    found = []
    for keys in ({"teacher_update": "none"}, {**MOVING, "meta_lr": 0.0}):
        task = distilled(oscar(2, 1, drop_out=0.3), oscar(4, 2), terms=terms, **keys)
        found.append((trained(task), values(task.teacher)))
    assert same(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])
    assert same(found[1][1], values(oscar(4, 2)))


def test_a_whole_step_towards_a_student_that_stays_makes_the_teacher_the_student() -> None:
    keys = {"teacher_update": "reptile", "strategy": "first", "meta_lr": 1.0, "inner_lr": 0.0}
    task = distilled(oscar(3, 1), oscar(3, 2), **keys)
    told = task.step(batch())
    assert same(values(task.teacher), values(task.network))
    assert float(told["teacher_distance"]) == 0.0
    before, after = (torch.cat([v.flatten() for v in values(m).values()]) for m in (oscar(3, 2), oscar(3, 1)))
    assert float(told["teacher_moved"]) == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)
    assert float(told["loss_mkd"].detach()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["vanilla_kd", "mkd", "pkd", "tinybert", "td", "emd", "mgskd"])
def test_nothing_is_left_to_learn_from_oneself(name: str) -> None:
    task = distilled(oscar(2, 4), oscar(2, 4), terms=[name], alpha=1.0)
    loss = task.step(batch(0, 1, 5, 7))["loss"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    largest = max(float(p.grad.abs().max()) for p in task.network.parameters() if p.grad is not None)
    assert largest == pytest.approx(0.0, abs=1e-4)


def test_a_view_sees_one_modality() -> None:
    model, seen, other = oscar(3, 6).eval(), batch(), batch()
    other["img_feats"] = torch.randn_like(other["img_feats"])
    assert torch.allclose(model.outputs(seen, "text").logits, model.outputs(other, "text").logits, atol=1e-6)
    assert not torch.allclose(model.outputs(seen, "image").logits, model.outputs(other, "image").logits, atol=1e-3)
    other = batch()
    other["input_ids"][:, 1:] = 7
    assert torch.allclose(model.outputs(seen, "image").logits, model.outputs(other, "image").logits, atol=1e-6)
    assert not torch.allclose(model.outputs(seen, "text").logits, model.outputs(other, "text").logits, atol=1e-3)


@pytest.mark.parametrize(
    ("strategy", "layers"),
    [("first", {0, 1}), ("last", {2, 3}), ("skip", {1, 3}), ("both", {0, 1, 2, 3}), ([[0, 2]], {2})],
)
def test_a_strategy_moves_its_layers_and_no_other(strategy: Any, layers: set[int]) -> None:
    task = distilled(oscar(2, 1), oscar(4, 2), **{**MOVING, "strategy": strategy})
    before = values(task.teacher)
    task.step(batch())
    after = values(task.teacher)
    prefix = "network.bert.encoder.layer."
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {int(name.removeprefix(prefix).split(".")[0]) for name in changed if name.startswith(prefix)} == layers
    outside = {name for name in before if not name.startswith(prefix)}
    assert outside - changed == set()


@pytest.mark.parametrize(
    ("strategy", "pairs"),
    [
        ("first", [(i, i) for i in range(6)]),
        ("last", [(0, 6), (1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]),
        ("skip", [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9), (5, 11)]),
        ("both", [(i // 2, i) for i in range(12)]),
        ([[0, 11], [5, 0]], [(0, 11), (5, 0)]),
    ],
)
def test_layers_of_twelve_for_six(strategy: Any, pairs: list[tuple[int, int]]) -> None:
    assert layer_pairs(strategy, 6, 12) == pairs


@pytest.mark.parametrize(
    ("strategy", "depths", "said"),
    [
        ("skip", (5, 12), "multiple of 5"),
        ("both", (5, 12), "multiple of 5"),
        ("first", (13, 12), "13 layers and its teacher 12"),
        ([[0, 12]], (6, 12), "not there"),
        ([[6, 0]], (6, 12), "not there"),
        ([[0, 1, 2]], (6, 12), "no.? .*pair"),
        ([[0, 3], [1, 3]], (6, 12), "two partners"),
    ],
)
def test_a_strategy_that_does_not_fit_says_why(strategy: Any, depths: tuple[int, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        layer_pairs(strategy, *depths)


def test_all_wrong_pairs_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        layer_pairs([[9, 1], [0, 99], [1, 1]], 6, 12)
    assert len(caught.value.problems) == 3


# --- the update, against its formulas -------------------------------------------------------------------------------


def flat(model: Oscar, names: list[str]) -> list[torch.Tensor]:
    mine = dict(model.named_parameters())
    return [mine[name] for name in names]


def test_the_update_is_sgd_and_then_a_share_of_the_way() -> None:
    """θ' = θ_s − λ∇L(θ_s; θ_t), θ_t ← θ_t − μ(θ_t − θ'), then L(θ_s; θ_t new), written out."""
    task = distilled(oscar(2, 1), oscar(4, 2), **{**MOVING, "inner_lr": 0.1, "temperature": 2.0})
    reference, teacher = oscar(2, 1).train(), oscar(4, 2).eval()

    def loss(student: Oscar) -> torch.Tensor:
        full = student.outputs(batch())
        total = 0.5 * student.losses(full, batch())["loss"]
        for view, share in (("full", 0.5), ("text", 0.25), ("image", 0.25)):
            p = (teacher.outputs(batch(), view).logits.detach() / 2).softmax(-1)
            q = (student.outputs(batch(), view).logits / 2).softmax(-1)
            total = total + 0.5 * share * 4 * (p * (p / q).log()).sum(-1).mean()
        return total

    names = [name for name, _ in reference.named_parameters()]
    grads = torch.autograd.grad(loss(reference), flat(reference, names), allow_unused=True)
    there = {
        n: p.detach() - (0 if g is None else 0.1 * g)
        for (n, p), g in zip(reference.named_parameters(), grads, strict=True)
    }
    prefix = "network.bert.encoder.layer."
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            partner = name
            if name.startswith(prefix):
                layer, rest = name.removeprefix(prefix).split(".", 1)
                if int(layer) not in (1, 3):
                    continue
                partner = f"{prefix}{int(layer) // 2}.{rest}"
            parameter -= 0.3 * (parameter - there[partner])
    told = task.step(batch())
    for (name, mine), theirs in zip(task.teacher.named_parameters(), teacher.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-6), name
    assert float(told["loss"].detach()) == pytest.approx(float(loss(reference).detach()), rel=1e-5)
    told["loss"].backward()
    expected = torch.autograd.grad(loss(reference), flat(reference, names), allow_unused=True)
    for parameter, grad in zip(flat(task.network, names), expected, strict=True):
        assert torch.allclose(parameter.grad, grad, atol=1e-5)


def test_several_inner_steps_follow_each_other() -> None:
    """Two inner steps of 0.1 end where the second gradient is taken at the first step's end."""
    keys = {"teacher_update": "reptile", "strategy": "first", "meta_lr": 1.0, "inner_lr": 0.1, "alpha": 0.0}
    task = distilled(oscar(2, 1), oscar(2, 2), inner_steps=2, **keys)
    task.step(batch())
    reference = oscar(2, 1).train()
    for _ in range(2):
        loss = reference.losses(reference.outputs(batch()), batch())["loss"]
        grads = torch.autograd.grad(loss, list(reference.parameters()), allow_unused=True)
        with torch.no_grad():
            for parameter, grad in zip(reference.parameters(), grads, strict=True):
                parameter -= 0.1 * (torch.zeros_like(parameter) if grad is None else grad)
    for mine, theirs in zip(task.teacher.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-6)


def test_a_fresh_inner_adamw_moves_by_its_rate() -> None:
    """The first step of Adam is lr · g / (|g| + eps): as far whatever the gradient, and the same batch after batch."""
    keys = {"teacher_update": "reptile", "strategy": "first", "meta_lr": 1.0, "inner_lr": 0.01, "alpha": 0.0}
    task = distilled(oscar(2, 1), oscar(2, 2), inner_optimizer="adamw", weight_decay=0.0, **keys)
    for _ in range(2):
        task.step(batch())
        name = "network.bert.pooler.dense.weight"
        apart = (values(task.teacher)[name] - values(task.network)[name]).abs()
        assert float(apart.median()) == pytest.approx(0.01, rel=1e-3)


def test_the_way_to_the_student_can_be_clipped() -> None:
    keys = {"teacher_update": "reptile", "strategy": "first", "meta_lr": 1.0, "inner_lr": 0.0, "meta_clip": 0.5}
    task = distilled(oscar(2, 1), oscar(2, 2), **keys)
    before = values(task.teacher)
    task.step(batch())
    gone = torch.stack([(p.detach() - before[n]).norm() for n, p in task.teacher.named_parameters()]).norm()
    assert float(gone) == pytest.approx(0.5, rel=1e-4)


def test_a_teacher_that_has_arrived_has_no_way_to_clip() -> None:
    keys = {"teacher_update": "reptile", "strategy": "first", "meta_lr": 1.0, "inner_lr": 0.0, "meta_clip": 0.5}
    task = distilled(oscar(2, 1), oscar(2, 1), **keys)
    before = values(task.teacher)
    task.step(batch())
    assert same(before, values(task.teacher))


def test_adamw_takes_the_gap_for_a_gradient() -> None:
    keys = {"teacher_update": "reptile_adamw", "strategy": "first", "teacher_lr": 0.002, "inner_lr": 0.0}
    task = distilled(oscar(2, 1), oscar(2, 2), weight_decay=0.0, **keys)
    before, student = values(task.teacher), values(task.network)
    task.step(batch())
    for name, parameter in task.teacher.named_parameters():
        gap = before[name] - student[name]
        expected = before[name] - 0.002 * gap / (gap.abs() + 1e-8)
        assert torch.allclose(parameter, expected, atol=1e-6), name


def test_a_linear_schedule_ends_at_rest() -> None:
    task = distilled(oscar(2, 1), oscar(4, 2), **MOVING, meta_schedule="linear")
    task.before_train(None, 2)
    task.step(batch())
    task.seen = 2
    before = values(task.teacher)
    task.step(batch())
    assert same(before, values(task.teacher))


def test_the_next_batch_answers_for_the_inner_step_of_this_one() -> None:
    task = distilled(oscar(2, 1), oscar(4, 2), **MOVING, meta_batch="next")
    before = values(task.teacher)
    task.step(batch(0, 1, 2, 3))
    assert same(before, values(task.teacher))
    task.step(batch(4, 6, 7, 8))
    other = distilled(oscar(2, 1), oscar(4, 2), **MOVING)
    other.step(batch(0, 1, 2, 3))
    for mine, theirs in zip(task.teacher.parameters(), other.teacher.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_frozen_parts_of_the_student_do_not_move_their_partner() -> None:
    student = oscar(2, 1)
    name = "network.bert.embeddings.word_embeddings.weight"
    student.freeze(dict(student.named_parameters())[name])
    task = distilled(student, oscar(4, 2), **MOVING)
    before = values(task.teacher)
    task.step(batch())
    assert torch.equal(before[name], values(task.teacher)[name])


# --- what the student starts from -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "layers"), [("teacher-first", (0, 1)), ("teacher-last", (2, 3)), ("teacher-skip", (1, 3))]
)
def test_the_student_starts_from_layers_of_its_teacher(start: str, layers: tuple[int, int]) -> None:
    task = distilled(oscar(2, 1), oscar(4, 2), student_init=start)
    mine, theirs = values(task.network), values(task.teacher)
    prefix = "network.bert.encoder.layer."
    for number, layer in enumerate(layers):
        inside = [name for name in mine if name.startswith(f"{prefix}{number}.")]
        assert inside
        assert all(
            torch.equal(mine[name], theirs[name.replace(f"{prefix}{number}", f"{prefix}{layer}")]) for name in inside
        )
    assert torch.equal(mine["network.head.weight"], theirs["network.head.weight"])


# --- bad input ------------------------------------------------------------------------------------------------------


def test_a_moving_teacher_of_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="another shape"):
        distilled(oscar(2, 1), oscar(4, 2, hidden=20), **MOVING)


def test_a_frozen_teacher_may_be_wider() -> None:
    task = distilled(oscar(2, 1), oscar(4, 2, hidden=20), terms=["mkd", "pkd", "tinybert", "emd", "mgskd"])
    told = task.step(batch())
    assert "teacher_distance" not in told
    assert all(torch.isfinite(value) for value in told.values())


def test_other_labels_are_refused() -> None:
    with pytest.raises(ConfigError, match="knows 9 labels, the student 4"):
        distilled(oscar(2, 1), oscar(4, 2, labels=9))


def test_everything_wrong_with_the_section_is_told_at_once() -> None:
    wrong = {
        "task": "oscar_gqa",
        "teacher": "somewhere",
        "kd_weights": {"full": -1.0},
        "alpha": 1.5,
        "temperature": 0.0,
        "inner_steps": 0,
        "meta_lr": 2.0,
        "inner_clip": 0.0,
        "terms": ["mkt", "itc"],
    }
    door = ConfigDecoder()
    door.build(RunConfig, {"task": "distill", "distill": wrong}, "run")
    told = "\n".join(map(str, door.problems))
    for key in ("alpha", "temperature", "inner_steps", "meta_lr", "inner_clip", "mkt", "itc", "kd_weights"):
        assert key in told, key
    assert "did you mean 'mkd'" in told


def test_a_view_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="no view 'sound'"):
        distilled(oscar(2, 1), oscar(4, 2), kd_weights={"full": 1.0, "sound": 1.0})


def test_a_run_that_only_evaluates_reads_no_teacher() -> None:
    run = run_section(evaluate=True, distill=None)
    run = run_section(evaluate=True, teacher="/nowhere")
    task = setup_task(run, oscar(2, 1))
    assert task.evaluates
    rows = task.valid_step(batch())
    assert [row["question_id"] for row in rows] == ["0", "1", "2", "3"]


# --- a run ----------------------------------------------------------------------------------------------------------


class Cut(Hook):
    """Ends a run after a step, as a crash would."""

    def __init__(self, step: int) -> None:
        self.at = step

    def after_step(self, runner: RunnerBase, step: Step) -> None:
        if runner.progress.step == self.at:
            raise RuntimeError("cut")


RUNS: dict[str, dict[str, Any]] = {
    "frozen": {"terms": ["mkd", "emd"]},
    "reptile": {**MOVING, "meta_schedule": "linear"},
    "adamw": {**MOVING, "teacher_update": "reptile_adamw", "inner_optimizer": "adamw", "clip_grad_norm": 1.0},
    "next": {**MOVING, "meta_batch": "next", "accum_grad_iters": 2},
    "annealed": {"terms": ["akd"], "alpha": 1.0},
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_cut_leaves_no_trace(kind: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {**RUNS[kind], "save_steps": 1, "log_freq": 2}
    straight = distill_runner(tmp_path / "whole", **keys)
    straight.train()
    with pytest.raises(RuntimeError, match="cut"):
        distill_runner(tmp_path / "cut", extra=[Cut(3)], **keys).train()
    runner = resumed(tmp_path / "cut", **keys)
    assert runner.progress.step == 3
    runner.train()
    assert moved(runner) == moved(straight)
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "whole")


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    found = []
    for name, seed in (("one", 4), ("two", 4), ("three", 5)):
        runner = distill_runner(tmp_path / name, **MOVING, seed=seed)
        runner.train()
        found.append(moved(runner))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_the_loss_of_the_teacher_is_told_where_it_looked() -> None:
    task = distilled(oscar(2, 1), oscar(4, 2))
    told, theirs = task.step(batch()), oscar(4, 2).eval()
    assert told["teacher_loss"].item() == pytest.approx(theirs(batch())["loss"].item(), rel=1e-5)
    assert "teacher_moved" not in told, "it stands still"
    assert "teacher_loss" not in distilled(oscar(2, 1), oscar(4, 2), terms=["ft"]).step(batch())


def test_the_state_of_the_task_that_is_wrapped_is_kept() -> None:
    """A script's own task may have one."""
    first, second = (distilled(oscar(2, 1), oscar(4, 2)) for _ in range(2))
    told: dict[str, Any] = {}
    first.wrapped = SimpleNamespace(state_dict=lambda: {"seen": 3}, rank_state=lambda: {"drawn": 4})
    second.wrapped = SimpleNamespace(load_state_dict=told.update, load_rank_state=told.update)
    second.load_state_dict(first.state_dict())
    second.load_rank_state(first.rank_state())
    assert told == {"seen": 3, "drawn": 4}


def test_the_way_of_a_teacher_is_measured_from_its_start_after_a_resume() -> None:
    first, second = (distilled(oscar(2, 1), oscar(4, 2), **MOVING) for _ in range(2))
    first.step(batch())
    first.step(batch())
    second.load_state_dict(first.state_dict())
    assert first.update is not None and second.update is not None
    assert float(second.update.way()) == float(first.update.way()) > 0


def test_the_ways_are_in_every_line(tmp_path: Path) -> None:
    runner = distill_runner(tmp_path, **MOVING, log_freq=2)
    runner.train()
    lines = [line for line in log_lines(tmp_path) if line["kind"] == "train"]
    assert len(lines) > 2
    assert all(line["teacher_distance"] > 0 for line in lines)
    assert lines[-1]["teacher_distance"] < lines[0]["teacher_distance"]
    assert lines[-1]["teacher_moved"] > lines[0]["teacher_moved"] > 0


def test_another_teacher_at_the_resume_is_refused(tmp_path: Path) -> None:
    distill_runner(tmp_path).train()
    runner = distill_runner(tmp_path)
    runner.task.digest = "another"
    state = {**runner.task.state_dict(), "digest": "the one before"}
    with pytest.raises(IntegrityError, match="is not the teacher"):
        runner.task.load_state_dict(state)


@pytest.mark.parametrize(("kind", "counts"), [("frozen", True), ("reptile", True), ("annealed", True)])
def test_what_moves_with_every_batch_wants_the_same_ranks(kind: str, counts: bool, tmp_path: Path) -> None:
    assert distill_runner(tmp_path, **RUNS[kind]).task.counts_batches is counts
    assert not distill_runner(tmp_path).task.counts_batches


def test_a_frozen_teacher_leaves_nothing_for_a_rank_alone(tmp_path: Path) -> None:
    assert distill_runner(tmp_path).task.rank_state() == {}


def test_the_student_is_what_is_evaluated_and_saved(tmp_path: Path) -> None:
    runner = distill_runner(tmp_path, valid_splits=["val"])
    runner.train()
    told = [line for line in log_lines(tmp_path) if line["kind"] == "eval"]
    assert told
    assert all("overall" in line["metrics"] for line in told)
    names = set(runner.model.trainable_state())
    assert names == {name for name, _ in oscar(2, 1).named_parameters()}
