"""What is wrong with a `distill:` section, all of it at once, before a teacher is read."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lavis_ext.config import cache_root
from lavis_ext.errors import ConfigError, LavisExtError, Problem, nearest
from lavis_ext.objectives import Common, Term
from lavis_ext.registry import models, objectives, tasks
from lavis_ext.schema import Config, DistillConfig, ModelConfig, RunConfig, TermConfig
from lavis_ext.tasks.distill.mapping import layer_pairs

AT = "run.distill"
WHOLE = "a teacher that moves needs its student's parameters whole on every rank"


def run_problems(config: Config) -> Iterator[Problem]:
    """Everything that `check` can know of a run of `task: distill`, the wrapped task's own problems included."""
    run = config.run
    if run.distill is None:
        yield Problem(AT, "is missing", "say `task` and `teacher` under it")
        return
    yield from section_problems(run, config.model)
    wrapped = run.distill.task
    if wrapped in tasks and wrapped != "distill":
        yield from tasks.get(wrapped).problems(replace(config, run=replace(run, task=wrapped, distill=None)))


def section_problems(run: RunConfig, student: ModelConfig | None) -> Iterator[Problem]:
    """What is wrong with `run.distill` and what it is put together with."""
    config = run.distill
    if config is None:
        return
    if config.task == "distill" or config.task not in tasks:
        known = [name for name in tasks.names() if name != "distill"]
        yield Problem(f"{AT}.task", f"no task named '{config.task}' that could be taught", nearest(config.task, known))
    yield from number_problems(config)
    yield from term_problems(config)
    yield from cache_problems(config)
    yield from moving_problems(run, config)
    if student is not None:
        yield from model_problems(config, student)


def number_problems(config: DistillConfig) -> Iterator[Problem]:
    """Numbers out of their range."""
    if not 0 <= config.alpha <= 1:
        yield Problem(f"{AT}.alpha", f"{config.alpha} is no share", "give a number from 0 to 1")
    if not 0 < config.temperature < math.inf:
        yield Problem(f"{AT}.temperature", f"{config.temperature} is not positive", "give for example 5")
    shares = config.kd_weights
    if any(not 0 <= share < math.inf for share in shares.values()) or not sum(shares.values()):
        yield Problem(f"{AT}.kd_weights", f"{shares} are no weights", "give each view a number from 0 on, not all 0")
    if config.inner_steps < 1:
        yield Problem(f"{AT}.inner_steps", f"{config.inner_steps} is below 1", "give a whole number from 1 on")
    for key in ("inner_lr", "teacher_lr", "meta_lr"):
        value = getattr(config, key)
        limit = 1 if key == "meta_lr" else math.inf
        if value is not None and not 0 <= value <= limit:
            way_out = "give a share of the way, from 0 to 1" if key == "meta_lr" else "give a number from 0 on"
            yield Problem(f"{AT}.{key}", f"{value} is no rate", way_out)
    for key in ("inner_clip", "meta_clip"):
        value = getattr(config, key)
        if value is not None and not value > 0:
            yield Problem(f"{AT}.{key}", f"{value} is not positive", "give for example 1.0, or leave it out")


def term_problems(config: DistillConfig) -> Iterator[Problem]:
    """Terms that there are not, or that take other arguments."""
    names = [term.name for term in config.terms]
    if not names:
        yield Problem(f"{AT}.terms", "names none", f"known: {', '.join(term_names())}; without a teacher: ft")
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem(f"{AT}.terms", f"'{name}' is there twice", "give it one weight")
    for term in config.terms:
        where = f"{AT}.terms {term.name}"
        if term.name not in term_names():
            yield Problem(where, f"no term of distillation named '{term.name}'", nearest(term.name, term_names()))
            continue
        if term.weight is not None and not 0 <= term.weight < math.inf:
            yield Problem(where, f"weight {term.weight} is below 0", "give a number from 0 on")
        known = [key for key in inspect.signature(objectives.get(term.name)).parameters if key != "common"]
        unknown = [key for key in term.args if key not in known]
        for key in unknown:
            yield Problem(where, f"takes no '{key}'", nearest(key, [*known, "weight"]))
        if not unknown:
            yield from making_problems(term)


def making_problems(term: TermConfig) -> Iterator[Problem]:
    """What a term itself says of its arguments."""
    try:
        objectives.get(term.name)(Common(), **term.args)
    except LavisExtError as error:
        yield from error.problems
    except (TypeError, ValueError) as error:
        yield Problem(f"{AT}.terms {term.name}", str(error), "give numbers")


def term_names() -> list[str]:
    """The registered objectives that are terms of distillation."""
    return [name for name in objectives.names() if is_term(objectives.get(name))]


def is_term(item: Any) -> bool:
    """Whether a registered objective is a term of distillation."""
    return isinstance(item, type) and issubclass(item, Term)


def build_terms(config: DistillConfig) -> dict[str, tuple[float, Term]]:
    """Name → weight and term, in the order of the run file; the section must be sound."""
    common = Common(config.temperature, config.kd_weights)
    found: dict[str, tuple[float, Term]] = {}
    for term in config.terms:
        made: Term = objectives.get(term.name)(common, **term.args)
        found[term.name] = (made.weight if term.weight is None else term.weight, made)
    return found


def cache_problems(config: DistillConfig) -> Iterator[Problem]:
    """Logits can be kept only of a teacher that stands still, for terms that read nothing else."""
    if config.cache == "none":
        return
    if config.teacher_update != "none":
        what = f"a teacher under teacher_update: {config.teacher_update} gives other logits after every step"
        yield Problem(f"{AT}.cache", what, "set cache: none, or teacher_update: none")
    for term in config.terms:
        kind: Any = objectives.get(term.name) if term.name in term_names() else Term
        if kind.hidden or kind.attentions:
            yield Problem(f"{AT}.cache", f"'{term.name}' reads more of the teacher than its logits", "set cache: none")


def moving_problems(run: RunConfig, config: DistillConfig) -> Iterator[Problem]:
    """What a teacher that moves cannot go with."""
    if config.teacher_update == "none":
        return
    if run.precision == "fp16":
        what = "fp16 gradients of the inner step would vanish, nothing scales them"
        yield Problem("run.precision", what, "set precision: bf16 or no, or run.distill.teacher_update: none")
    if getattr(run, "parallel", None) == "fsdp":
        yield Problem("run.parallel", WHOLE, "set parallel: ddp, or run.distill.teacher_update: none")


def model_problems(config: DistillConfig, student: ModelConfig) -> Iterator[Problem]:
    """What the two model sections tell: labels, views, and whether the strategy fits the depths that are known."""
    if student.layers and config.student_init in ("first", "last", "skip"):
        what = f"'{config.student_init}' and model.layers both choose layers of model.pretrained"
        yield Problem(f"{AT}.student_init", what, "keep one of them")
    if config.inner_steps > 1 and config.teacher_update != "none" and student.use_grad_checkpoint:
        what = "activations of the second step on would be computed again at the weights of the first"
        yield Problem("model.use_grad_checkpoint", what, f"set it to False, or {AT}.inner_steps: 1")
    if isinstance(config.teacher, ModelConfig):
        mine, theirs = student.num_labels, config.teacher.num_labels
        if None not in (mine, theirs) and mine != theirs:
            what = f"the teacher has {theirs} labels, the student {mine}"
            yield Problem(f"{AT}.teacher.num_labels", what, "take a teacher that was trained for this data set")
    yield from view_problems(config, student)
    depths = known_depth(student), teacher_depth(config.teacher, student)
    if None in depths:
        return
    for strategy in strategies(config):
        try:
            layer_pairs(strategy, *depths)  # type: ignore[arg-type]
        except ConfigError as error:
            yield from error.problems


def strategies(config: DistillConfig) -> Iterator[Any]:
    """The strategies that will be asked for."""
    if config.teacher_update != "none":
        yield config.strategy
    origin, _, strategy = config.student_init.rpartition("-")
    if origin == "teacher" and strategy != config.strategy:
        yield strategy


def view_problems(config: DistillConfig, student: ModelConfig) -> Iterator[Problem]:
    """Views that the architecture of the student has not."""
    if student.arch not in models or not any(term.name == "mkd" for term in config.terms):
        return
    known = models.get(student.arch).views
    for view, share in config.kd_weights.items():
        if share and view not in known:
            what = f"'{student.arch}' has no view '{view}'"
            yield Problem(f"{AT}.kd_weights.{view}", what, f"its views: {', '.join(known)}; or use vanilla_kd")


def teacher_depth(teacher: ModelConfig | str, student: ModelConfig) -> int | None:
    """The teacher's number of layers, as far as it is written down."""
    if isinstance(teacher, ModelConfig):
        return known_depth(teacher)
    return known_depth(replace(student, num_hidden_layers=None, layers=[], pretrained=teacher, sizes={}))


def known_depth(model: ModelConfig) -> int | None:
    """The number of layers that a model section, or the `config.json` beside its weights, gives; None: not said."""
    if model.num_hidden_layers is not None:
        return model.num_hidden_layers
    sizes = model.sizes.get("qformer_config") or model.sizes.get("text_config") or {}
    found: Any = sizes.get("num_hidden_layers")
    given = Path(model.pretrained or "").expanduser()
    places = [place / "config.json" for place in (cache_root() / given, given)]
    path = next((place for place in places if place.is_file()), None)
    if found is None and model.pretrained and path is not None:
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("num_hidden_layers")
        except (OSError, ValueError, AttributeError):
            return None
    return found if isinstance(found, int) else None
