"""The `distill:` section: its keys, the checks that need no teacher, and pairs of layers under a strategy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lavis_ext.common.config.decode import ConfigDecoder, Count, Positive, Rate, Share, join
from lavis_ext.common.config.resolve import cache_root
from lavis_ext.common.config.schema import Config, ModelConfig, RunConfig, TermConfig
from lavis_ext.common.errors import ConfigError, Problem, nearest
from lavis_ext.common.files import decode_json, expanded
from lavis_ext.common.registry import objectives, tasks
from lavis_ext.models.settings import TermKeys

AT = "run.distill"
STRATEGY = "run.distill.strategy"
WHOLE = "a teacher that moves needs its student's parameters whole on every rank"
Pairs = list[tuple[int, int]]
Strategy = Literal["first", "last", "skip", "both"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """`run.distill`: loss = (1 - alpha) * task + alpha * sum of weight * term."""

    task: str
    """The wrapped task, which is trained and evaluated."""
    teacher: ModelConfig | str
    """A model section (what it does not say is the student's), or a folder: a run, a checkpoint, or upstream's."""
    terms: list[TermConfig] = field(default_factory=lambda: [TermConfig(name="mkd")])
    alpha: Share = 0.5
    temperature: Positive = 5.0
    kd_weights: dict[str, Rate] = field(default_factory=lambda: {"full": 0.5, "text": 0.25, "image": 0.25})
    """Share of each view in `mkd`."""
    student_init: Literal["first", "last", "skip", "teacher-first", "teacher-last", "teacher-skip", "none"] = "none"
    """Layers of `model.pretrained` or of the teacher that the student starts from; none: as the model section says."""
    strategy: Strategy | list[list[int]] = "first"
    """Which layers of the teacher each layer of the student moves; or a list of [student, teacher]."""
    teacher_update: Literal["none", "reptile", "reptile_adamw"] = "none"
    """reptile: by meta_lr towards the student after an inner step; reptile_adamw: that step by AdamW, as published."""
    meta_batch: Literal["same", "next"] = "same"
    """Whether the student then learns from the batch of the inner step, or from the one after it."""
    inner_optimizer: Literal["sgd", "adamw"] = "sgd"
    inner_lr: Rate | None = None
    """None: run.init_lr."""
    inner_steps: Count = 1
    inner_clip: Positive | None = None
    """Largest norm of the inner gradient; None: any."""
    teacher_lr: Rate | None = None
    """Rate of reptile_adamw; None: run.init_lr."""
    meta_lr: Share | None = None
    """Step of reptile, a share of the difference; None: teacher_lr."""
    meta_schedule: Literal["constant", "linear"] = "constant"
    """linear: meta_lr or teacher_lr falls to 0 at the end of the run."""
    meta_clip: Positive | None = None
    """Largest norm of the difference from teacher to student; None: any."""
    cache: Literal["none", "float16", "float32"] = "none"
    """Keep the logits of a teacher that does not move in files of this precision, once for all epochs and runs."""

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Checks: weights that are all 0; no terms, unknown ones, or one twice."""
        if not sum(self.kd_weights.values()):
            decoder.note(
                join(key, "kd_weights"), f"{self.kd_weights} are no weights", "give each view a share, not all 0"
            )
        names = [term.name for term in self.terms]
        if not names:
            decoder.note(join(key, "terms"), "names none", f"known: {', '.join(term_names())}; without a teacher: ft")
        for name in sorted({name for name in names if names.count(name) > 1}):
            decoder.note(join(key, "terms"), f"'{name}' is there twice", "give it one weight")
        for name in names:
            if name in objectives and not is_term(name):
                what = f"'{name}' is no term of distillation"
                decoder.note(join(key, "terms"), what, nearest(name, term_names()))


@dataclass(frozen=True, kw_only=True)
class DistillRunConfig(RunConfig):
    """`distill`: the keys of the wrapped task are in the same section."""

    distill: DistillConfig | None = None

    @classmethod
    def also(cls, value: Mapping[str, Any]) -> Iterator[str]:
        """The wrapped task, and those whose keys it takes."""
        section = value.get("distill")
        name = section.get("task") if isinstance(section, Mapping) else getattr(section, "task", None)
        if name and name != "distill":
            yield str(name)
            if name in tasks:
                yield from tasks.config(str(name)).also(value)

    def problems(self, config: Config) -> Iterator[Problem]:
        """Problems of `run.distill`."""
        yield from super().problems(config)
        if self.distill is None:
            yield Problem(AT, "is missing", "say `task` and `teacher` under it")
        else:
            yield from section_problems(self, config.model)


def section_of(run: RunConfig) -> DistillConfig | None:
    """The `distill:` section of a run whose task reads it."""
    return run.distill if isinstance(run, DistillRunConfig) else None


def section_problems(run: RunConfig, student: ModelConfig | None) -> Iterator[Problem]:
    """Problems of `run.distill` by itself, with the run, and with the student's model section."""
    config = section_of(run)
    if config is None:
        return
    if config.task == "distill" or config.task not in tasks:
        known = [name for name in tasks.names() if name != "distill"]
        yield Problem(f"{AT}.task", f"no task named '{config.task}' that can be distilled", nearest(config.task, known))
    yield from cache_problems(config)
    yield from moving_problems(run, config)
    if student is not None:
        yield from model_problems(config, student)


def term_names() -> list[str]:
    """The registered objectives that are terms of distillation."""
    return [name for name in objectives.names() if is_term(name)]


def is_term(name: str) -> bool:
    """Whether a registered objective is a term of distillation."""
    keys = objectives.config(name)
    return isinstance(keys, type) and issubclass(keys, TermKeys)


def cache_problems(config: DistillConfig) -> Iterator[Problem]:
    """A cache of a teacher that moves, or for terms that need more than logits."""
    if config.cache == "none":
        return
    if config.teacher_update != "none":
        what = f"a teacher under teacher_update: {config.teacher_update} gives other logits after every step"
        yield Problem(f"{AT}.cache", what, "set cache: none, or teacher_update: none")
    for term in config.terms:
        if term.name in objectives and is_term(term.name) and objectives.config(term.name).reads_layers():
            yield Problem(f"{AT}.cache", f"'{term.name}' reads more of the teacher than its logits", "set cache: none")


def moving_problems(run: RunConfig, config: DistillConfig) -> Iterator[Problem]:
    """Settings of the run that exclude a teacher that moves."""
    if config.teacher_update == "none":
        return
    if run.precision == "fp16":
        what = "fp16 gradients of the inner step would vanish, nothing scales them"
        yield Problem("run.precision", what, "set precision: bf16 or no, or run.distill.teacher_update: none")
    if run.parallel == "fsdp":
        yield Problem("run.parallel", WHOLE, "set parallel: ddp, or run.distill.teacher_update: none")


def model_problems(config: DistillConfig, student: ModelConfig) -> Iterator[Problem]:
    """Problems between the two model sections: labels, views, layers, and depths as far as they are known."""
    if getattr(student, "layers", None) and config.student_init in ("first", "last", "skip"):
        what = f"'{config.student_init}' and model.layers both choose layers of model.pretrained"
        yield Problem(f"{AT}.student_init", what, "keep one of them")
    if config.inner_steps > 1 and config.teacher_update != "none" and getattr(student, "use_grad_checkpoint", False):
        what = "activations of the second step on would be computed again at the weights of the first"
        yield Problem("model.use_grad_checkpoint", what, f"set it to False, or {AT}.inner_steps: 1")
    if isinstance(config.teacher, ModelConfig):
        mine, theirs = (getattr(section, "num_labels", None) for section in (student, config.teacher))
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
    """The strategies that will be used."""
    if config.teacher_update != "none":
        yield config.strategy
    origin, _, strategy = config.student_init.rpartition("-")
    if origin == "teacher" and strategy != config.strategy:
        yield strategy


def view_problems(config: DistillConfig, student: ModelConfig) -> Iterator[Problem]:
    """Views in `kd_weights` that the student's architecture does not have."""
    if not any(term.name == "mkd" for term in config.terms):
        return
    known = student.views
    for view, share in config.kd_weights.items():
        if share and view not in known:
            what = f"'{student.arch}' has no view '{view}'"
            yield Problem(f"{AT}.kd_weights.{view}", what, f"its views: {', '.join(known)}; or use vanilla_kd")


def teacher_depth(teacher: ModelConfig | str, student: ModelConfig) -> int | None:
    """The teacher's number of layers; None where no file says it."""
    if isinstance(teacher, ModelConfig):
        return known_depth(teacher)
    return known_depth(replace(whole(student), pretrained=teacher, sizes={}))


def whole(student: ModelConfig) -> ModelConfig:
    """The section of the same model with all its layers."""
    depth: dict[str, Any] = {"num_hidden_layers": None, "layers": []}
    return replace(student, **{key: value for key, value in depth.items() if hasattr(student, key)})


def known_depth(model: ModelConfig) -> int | None:
    """The number of layers that a model section, or the `config.json` beside its weights, gives; None: not said."""
    if (count := getattr(model, "num_hidden_layers", None)) is not None:
        return int(count)
    sizes = model.sizes.get("qformer_config") or model.sizes.get("text_config") or {}
    found: Any = sizes.get("num_hidden_layers")
    given = expanded(model.pretrained or "")
    places = [place / "config.json" for place in (cache_root() / given, given)]
    path = next((place for place in places if place.is_file()), None)
    if found is None and model.pretrained and path is not None:
        try:
            found = decode_json(path.read_text(encoding="utf-8")).get("num_hidden_layers")
        except (OSError, ValueError, AttributeError):
            return None
    return found if isinstance(found, int) else None


def layer_pairs(strategy: str | Sequence[Sequence[int]], student: int, teacher: int) -> Pairs:
    """(student layer, teacher layer) for a strategy of K and L layers, or a list of pairs that is checked.

    first: i → i; last: i → i + L − K; skip: i → b·i + b − 1 and both: i → b·i … b·i + b − 1 with b = L / K.
    Raises ConfigError where a strategy or a pair does not fit the two depths.
    """
    if not isinstance(strategy, str):
        return listed_pairs(strategy, student, teacher)
    if student > teacher:
        what = f"the student has {student} layers and its teacher {teacher}"
        raise ConfigError(STRATEGY, what, "give the student as many, or fewer")
    if strategy == "first":
        return [(i, i) for i in range(student)]
    if strategy == "last":
        return [(i, i + teacher - student) for i in range(student)]
    if teacher % student:
        what = f"'{strategy}' wants a teacher with a multiple of {student} layers, this one has {teacher}"
        raise ConfigError(STRATEGY, what, "write first or last, or a list of [student, teacher]")
    block = teacher // student
    if strategy == "skip":
        return [(i, block * i + block - 1) for i in range(student)]
    return [(i, block * i + j) for i in range(student) for j in range(block)]


def listed_pairs(pairs: Sequence[Sequence[int]], student: int, teacher: int) -> Pairs:
    """The pairs of a run file; raises ConfigError with all of their problems."""
    problems = list(pair_problems(pairs, student, teacher))
    if problems:
        raise ConfigError.of(problems)
    return [(pair[0], pair[1]) for pair in pairs]


def pair_problems(pairs: Sequence[Sequence[int]], student: int, teacher: int) -> Iterator[Problem]:
    """Pairs that are none, layers that do not exist, and layers of the teacher with two partners."""
    way_out = f"write [student, teacher] with 0 … {student - 1} and 0 … {teacher - 1}, each teacher layer once"
    for pair in pairs:
        if len(pair) != 2:
            yield Problem(STRATEGY, f"{list(pair)} is not a pair", way_out)
        elif not (0 <= pair[0] < student and 0 <= pair[1] < teacher):
            yield Problem(STRATEGY, f"{list(pair)} names a layer that is not there", way_out)
    moved = [pair[1] for pair in pairs if len(pair) == 2]
    for layer in sorted({layer for layer in moved if moved.count(layer) > 1}):
        yield Problem(STRATEGY, f"layer {layer} of the teacher has two partners", way_out)
