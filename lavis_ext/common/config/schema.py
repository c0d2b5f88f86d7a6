"""The sections of a YAML as dataclasses, with the keys that all of a kind share.

A model, task, shape, processor, term or metric with more keys registers a dataclass of its own (`registry.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from lavis_ext.common.config.decode import (
    Bound,
    ConfigDecoder,
    Count,
    Natural,
    Positive,
    Rate,
    Share,
    join,
    require_bounds,
)
from lavis_ext.common.config.yamlio import shown
from lavis_ext.common.errors import ConfigError, Problem, nearest
from lavis_ext.common.files import checked_path
from lavis_ext.common.lavis import WAY_OUT, out_of_scope
from lavis_ext.common.registry import (
    Registry,
    builders,
    lr_schedulers,
    metrics,
    models,
    objectives,
    processors,
    runners,
    tasks,
)
from lavis_ext.common.secrets import url_fault


def examine_name(decoder: ConfigDecoder, kind: Registry[Any], name: str, key: str) -> bool:
    """Whether `name` at `key` is registered; notes a problem where it is not."""
    if name not in kind and (outside := out_of_scope(kind.kind, name)):
        decoder.note(key, f"'{name}' {outside}", WAY_OUT)
    elif name not in kind:
        decoder.note(key, f"no {kind.kind} named '{name}'", nearest(name, kind.names()))
    return name in kind


def examine_args(decoder: ConfigDecoder, kind: Registry[Any], name: str, args: Mapping[str, Any], where: str) -> None:
    """Note arguments that the registered object of that name does not take."""
    keys = kind.config(name)
    if keys is not None:
        decoder.build(keys, args, where)


def examine_url(decoder: ConfigDecoder, url: str, key: str) -> None:
    """Note a text that is no address."""
    fault = url_fault(re.sub(r"\{part[^{}]*\}", "0", url))
    if fault:
        decoder.note(key, f"{shown(url)} is {fault}", "write the URL as a browser has it")


def own_keys(kind: Registry[Any], name: str, args: Mapping[str, Any], where: str) -> Any:
    """The arguments as an instance of the object's dataclass of keys, None where it has none; raises ConfigError."""
    keys = kind.config(name)
    if keys is None:
        return None
    decoder = ConfigDecoder()
    built = decoder.build(keys, args, where)
    decoder.close()
    return built


@dataclass(frozen=True, kw_only=True)
class Named:
    """A registered thing and its arguments: `{name: blip2_image_train, image_size: 224}`, or the bare name."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    kind: ClassVar[Registry[Any]]

    def __post_init__(self) -> None:
        require_bounds(self)

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note an unknown name, and arguments that it does not take."""
        if examine_name(decoder, self.kind, self.name, join(key, "name")):
            examine_args(decoder, self.kind, self.name, self.args, key)

    @classmethod
    def accept(cls, value: Any) -> Any:
        """LAVIS' flat form: all keys beside those of the class are arguments."""
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict) or "args" in value:
            return value
        own = {key: item for key, item in value.items() if key in (one.name for one in fields(cls))}
        return {**own, "args": {key: item for key, item in value.items() if key not in own}}


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig(Named):
    """A processor of pictures or texts."""

    kind: ClassVar[Registry[Any]] = processors


@dataclass(frozen=True, kw_only=True)
class MetricConfig(Named):
    """A metric of a task."""

    kind: ClassVar[Registry[Any]] = metrics


@dataclass(frozen=True, kw_only=True)
class TermConfig(Named):
    """A term of a loss: `{name: pkd, weight: 1000}`."""

    weight: Rate | None = None
    """Its share of the loss; None: the published one."""

    kind: ClassVar[Registry[Any]] = objectives


@dataclass(frozen=True, kw_only=True)
class ProcessorPair:
    """The processors of the train split and of all others; None leaves the item as it is read."""

    train: ProcessorConfig | None = None
    eval: ProcessorConfig | None = None

    def of(self, split: str) -> ProcessorConfig | None:
        """The processor for a split: `train` for the split of that name, else `eval`."""
        return self.train if split == "train" else self.eval


@dataclass(frozen=True, kw_only=True)
class AnnotationConfig:
    """Annotation files of one split; `storage` is relative to cache_root, `url`/`md5` as in LAVIS.

    A file is named by an artifact of the card, `name`, `name!member` for a file out of an archive, or `family/name` for
    one of another card; or by its path below cache_root, which is what has a suffix and no `!`.
    """

    artifact: list[str] = field(default_factory=list)
    instead: list[str] = field(default_factory=list)
    """The same split in another published form, taken where a mirror or the disk has that and not `artifact`."""
    url: list[str] = field(default_factory=list)
    storage: list[str] = field(default_factory=list)
    md5: list[str] = field(default_factory=list)

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note addresses that are none."""
        for url in self.url:
            examine_url(decoder, url, join(key, "url"))


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Folder of the images (relative to cache_root), and which artifacts each split needs (`name` or `family/name`)."""

    storage: str = ""
    artifacts: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BuildInfo:
    """LAVIS' `build_info`: annotations per split, images, or the storage of shards."""

    annotations: dict[str, AnnotationConfig] = field(default_factory=dict)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    storage: list[str] = field(default_factory=list)
    """Shards or folders of data sets without annotation files: a path, a brace or glob pattern, or a list of them."""

    @staticmethod
    def accept(value: Any) -> Any:
        """LAVIS names the folder of the images by `data_type`: `videos:` and `features:` mean the same as `images:`."""
        if not isinstance(value, dict):
            return value
        return {("images" if key in ("videos", "features") else key): item for key, item in value.items()}


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What a complete split holds."""

    samples: Natural | None = None
    images: Natural | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One data set of a run: its shape (`builder`), files and processors, and its weight in the mixture."""

    name: str
    builder: str = ""
    type: str = "default"
    family: str = ""
    dataset_card: str = ""
    manual: str = ""
    """What no command can fetch, and how a person gets it; shown where it is missing."""
    on_request: bool = False
    """`prepare` of the family skips this config type, as does `prepare` of the name unless it is `default`; only
    `name[type]` asks for it."""
    data_type: Literal["images", "videos", "features"] = "images"
    build_info: BuildInfo = field(default_factory=BuildInfo)
    vis_processor: ProcessorPair = field(default_factory=ProcessorPair)
    text_processor: ProcessorPair = field(default_factory=ProcessorPair)
    counts: dict[str, SplitCounts] = field(default_factory=dict)
    weight: Positive | None = None
    """Share of the batches in a mixture; None: in proportion to its length."""
    max_samples: dict[str, Count] = field(default_factory=dict)
    """Use only the first N samples of a split."""
    tolerance: Share = 0.01
    """Share of samples that may be missing or corrupt before a run stops with exit code 8."""
    args: dict[str, Any] = field(default_factory=dict)
    """What the shape reads beside these."""

    ignored: ClassVar[Mapping[str, str]] = {"kw_processor": "no processor of ours takes it"}

    def __post_init__(self) -> None:
        require_bounds(self)

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note wrong arguments of the shape. An unknown shape is for `check`: `prepare` needs none."""
        if self.builder in builders:
            examine_args(decoder, builders, self.builder, self.args, join(key, "args"))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every model has, under LAVIS' keys; each architecture extends it by what it reads."""

    arch: str
    model_type: str
    load_pretrained: bool = True
    pretrained: str | None = None
    """A local folder or hub name in transformers' form."""
    load_finetuned: bool = False
    finetuned: str | None = None
    """A checkpoint of ours (`checkpoint_*/`), or a folder in transformers' form, put over `pretrained`."""
    tokenizer: str | None = None
    """A folder in transformers' form (as given, or below a configs folder) or hub name; None: `pretrained`'s."""
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For models built from scratch: transformers' arguments of `vision_config`, `qformer_config`, `text_config`."""

    views: ClassVar[tuple[str, ...]] = ("full",)
    """What `outputs` of the model can be asked for: the whole input, or one modality of it."""
    ignored: ClassVar[Mapping[str, str]] = {
        "freeze_qformer": "upstream ignores it; `only_proj` freezes the Q-Former",
        "prompt_path": "upstream ignores it",
        "prompt_template": "upstream ignores it",
        "low_resource": "upstream ignores it",
        "model": "a leftover of upstream",
    }

    def __post_init__(self) -> None:
        require_bounds(self)

    @classmethod
    def variant(cls, value: Mapping[str, Any]) -> tuple[Any, bool]:
        """The keys of the architecture that the section names, and whether there is one of that name."""
        arch = value.get("arch")
        known = isinstance(arch, str) and arch in models
        return (models.config(str(arch)) or cls if known and cls is ModelConfig else cls), known

    @staticmethod
    def readers(key: str) -> list[str]:
        """The architectures that read a key."""
        return models.readers(key)

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note an unknown architecture, unless its missing defaults were noted already."""
        if join(key, "arch") not in decoder.faulty:
            examine_name(decoder, models, self.arch, join(key, "arch"))

    def problems(self, where: str = "model") -> Iterator[Problem]:
        """Keys that cannot work together, each with its place."""
        yield from ()

    def require_sound(self) -> None:
        """Raise ConfigError with what cannot work together."""
        if found := list(self.problems()):
            raise ConfigError.of(found)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, `default` for one that this architecture does not have (LAVIS' `cfg.get`)."""
        return getattr(self, key, default)


@dataclass(frozen=True, kw_only=True)
class OpenModelConfig(ModelConfig):
    """The section of a model in LAVIS' manner, which declares no keys: `given` is what its `from_config` gets."""

    given: dict[str, Any] = field(default_factory=dict)
    rest: ClassVar[str] = "given"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run trains and evaluates, whatever its task: LAVIS' `run:` keys, and ours; a task extends it by its own."""

    task: str
    runner: str = "runner_base"
    output_dir: str = "output"
    """Relative to the working directory; each run makes `output_dir/<job id>/`."""
    job_id: str | None = None
    """Default: the start time. Naming it makes a second start of the same command resume the first."""
    seed: Natural = 42
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""
    evaluate: bool = False
    train_splits: list[str] = field(default_factory=list)
    valid_splits: list[str] = field(default_factory=list)
    test_splits: list[str] = field(default_factory=list)

    lr_sched: str = "linear_warmup_cosine_lr"
    init_lr: Rate = 1e-4
    min_lr: Rate = 0.0
    warmup_lr: Annotated[float, Bound(-1)] = -1.0
    """Start of the warm-up; -1: init_lr."""
    warmup_steps: Natural = 0
    lr_decay_rate: Rate | None = None
    lr_granularity: Literal["epoch", "iter"] = "epoch"
    """epoch: LAVIS' rule, one rate an (inner) epoch and the warm-up in epoch 0; iter: with every micro-batch."""
    lr_layer_decay: Share = 1.0
    """Share of the rate that each block of the image encoder has of the one above it."""
    weight_decay: Rate = 0.05
    optimizer: Literal["adamw", "adamax"] = "adamw"
    beta2: Share = 0.999
    adam_epsilon: Rate = 1e-8

    max_epoch: Count | None = None
    max_iters: Count | None = None
    """Micro-batches in all (LAVIS' runner_iter)."""
    iters_per_inner_epoch: Count | None = None
    batch_size_train: Count = 64
    batch_size_eval: Count = 64
    num_workers: Natural = 2
    """Loader threads."""
    check_shards: bool = False
    """Compare each sample of a tar shard with its manifest as it is read: it then is read twice."""
    group_by_length: bool = False
    """Training batches of samples of like length, within windows of 50 shuffled batches, of data sets that know lengths
    (docs/region-datasets.md): less padding, but other batches than those that published values came from."""
    accum_grad_iters: Count = 1
    amp: bool = False
    use_dist_eval_sampler: bool = True
    log_freq: Count = 50
    save_freq: Annotated[int, Bound(-1)] = 1
    """Epochs between checkpoints; -1, as LAVIS has it, or 0: only the last and the best."""
    val_freq: Count = 1
    save_last: bool = True
    resume_ckpt_path: str | None = None

    precision: Literal["no", "fp16", "bf16"] | None = None
    """None: fp16 on a GPU when `amp` is set, bf16 on a CPU, else no."""
    clip_grad_norm: Positive | None = None
    save_steps: Count | None = None
    """Optimizer steps between checkpoints, besides those of `save_freq`."""
    keep_checkpoints: Count = 2
    allow_config_drift: bool = False
    """Resume although keys that change the numbers differ from the checkpoint's."""
    parallel: Literal["ddp", "fsdp"] | None = None
    """Several processes: each holds all parameters (ddp) or a shard (fsdp); None: as accelerate has it, else ddp."""
    wait_minutes: Positive = 60.0
    """How long processes wait for the first one while it prepares data, writes or scores."""
    find_unused_parameters: bool = False
    """For distributed training of a model whose loss does not reach every trained parameter."""
    tensorboard: bool = True
    wandb: bool = False
    report: bool = True

    ignored: ClassVar[Mapping[str, str]] = {
        "world_size": "the launcher knows it",
        "dist_url": "the launcher knows it",
        "dist_backend": "chosen by the device",
        "distributed": "seen from the launcher",
        "rank": "the launcher knows it",
        "gpu": "the launcher knows it",
        "iters_per_epoch": "upstream ignores it",
        # LAVIS' files carry them in runs of classification and retrieval too, whose tasks write nothing
        **dict.fromkeys(("max_len", "min_len", "num_beams"), "this task writes no text"),
    }

    def __post_init__(self) -> None:
        require_bounds(self)
        name = self.job_id
        try:
            plain = not name or (name == checked_path(Path(name)).name != ".." and "\\" not in name)
            one = plain and (name or "").isprintable()
        except ValueError:
            one = False
        if not one:  # it is the name of a folder, and nothing is written outside output_dir
            raise ConfigError("job_id", f"{shown(name)} is not the name of a folder", "write a plain name, as exp-1")

    @classmethod
    def variant(cls, value: Mapping[str, Any]) -> tuple[Any, bool]:
        """The keys of the task that the section names, and of those that this one runs; and whether all are known."""
        names = list(cls.tasks_of(value))
        kinds: list[Any] = [tasks.config(name) or cls for name in names if name in tasks]
        return (joined(*kinds) if kinds and cls is RunConfig else cls), len(kinds) == len(names)

    @classmethod
    def tasks_of(cls, value: Mapping[str, Any]) -> Iterator[str]:
        """The task of a section, and the tasks that it runs in turn."""
        name = str(value.get("task", ""))
        yield name
        if name in tasks:
            yield from (tasks.config(name) or cls).also(value)

    @classmethod
    def also(cls, value: Mapping[str, Any]) -> Iterator[str]:
        """Other tasks that a task runs, whose keys are in the same section."""
        yield from ()

    @staticmethod
    def readers(key: str) -> list[str]:
        """The tasks that read a key."""
        return [f"task {name}" for name in tasks.readers(key)]

    def problems(self, config: Config) -> Iterator[Problem]:
        """What `check` can know to be wrong with a run of this task, before anything is read."""
        yield from ()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, `default` for one that this task does not have (LAVIS' `cfg.run_cfg.get`)."""
        return getattr(self, key, default)

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note an unknown task, runner or schedule."""
        for kind, field_name in ((tasks, "task"), (runners, "runner"), (lr_schedulers, "lr_sched")):
            examine_name(decoder, kind, getattr(self, field_name), join(key, field_name))


@dataclass(frozen=True, kw_only=True)
class OpenRunConfig(RunConfig):
    """The section of a task in LAVIS' manner, which declares no keys: `others` are those that no run has."""

    others: dict[str, Any] = field(default_factory=dict)
    rest: ClassVar[str] = "others"

    def __post_init__(self) -> None:
        known = {one.name for one in fields(self)}
        object.__setattr__(self, "others", {key: item for key, item in self.others.items() if key not in known})

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["others"][name]
        except KeyError:
            raise AttributeError(f"run.{name} is not given") from None


def run_config(task: str, **keys: Any) -> Any:
    """A `run:` section made in code: the keys of its task; raises RegistryError for an unknown task.

    Numbers out of their range are a ConfigError; the types are not checked.
    """
    tasks.config(task)
    return RunConfig.variant({"task": task, **keys})[0](task=task, **keys)


@cache
def joined(*kinds: Any) -> Any:
    """One dataclass with the keys of all; a class that another extends adds none."""
    own = [
        one for one in dict.fromkeys(kinds) if not any(other is not one and issubclass(other, one) for other in kinds)
    ]
    if len(own) == 1:
        return own[0]
    more = {
        "ignored": {key: why for one in own for key, why in one.ignored.items()},
        # no module holds the class, so pickle has to make it again
        "__reduce__": lambda self: (remade, (tuple(own), dict(vars(self)))),
    }
    name = "+".join(one.__name__ for one in own)
    return make_dataclass(name, [], bases=tuple(own), namespace=more, frozen=True, kw_only=True)


def remade(kinds: tuple[Any, ...], values: Mapping[str, Any]) -> Any:
    """A joined section with its values."""
    return joined(*kinds)(**values)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment: a run, its model, its data sets, and the file that it came from."""

    run: RunConfig
    model: ModelConfig | None
    datasets: dict[str, DatasetConfig]
    cache_root: str
    path: str = ""
    resolved: dict[str, Any] = field(default_factory=dict)
    """The merged tree as plain values, written to `config.yaml` of the run."""
    hidden: dict[str, str] = field(default_factory=dict)
    """Values that came from the environment, and the `${oc.env:NAME}` that is written in their place."""
    places: dict[str, str] = field(default_factory=dict)
    """`dotted.key` → `file:line` or `--options`, for messages."""
    faulty: tuple[str, ...] = ()
    """Keys whose value did not fit, and which have their defaults: only `check` gets such a configuration."""
