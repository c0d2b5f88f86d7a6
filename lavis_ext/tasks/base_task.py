"""The base of tasks: a training step, an evaluation step, and the metrics of an evaluation.

A task may be written in LAVIS' manner, `valid_step(self, model, samples)` and `after_evaluation(self, val_result,
split_name, epoch)`, or in ours, which knows its model. The parameters say which; either can be called both ways, so
that a class of one manner may extend one of the other.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from functools import wraps
from numbers import Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from omegaconf import OmegaConf
from torch import Tensor, nn

from lavis_ext.common.config.schema import Config, OpenRunConfig, RunConfig, joined
from lavis_ext.common.config.script import reading
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import disk_errors, write_atomic, write_json
from lavis_ext.common.registry import registry, tasks
from lavis_ext.common.types import Batch
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.models.zoo import build_model
from lavis_ext.tasks.loop import LOOP, TrainingLoop, losses_of_step

log = logging.getLogger(__name__)
Row = dict[str, Any]
"""One result: plain values that JSON can hold."""
ONLY_LAVIS = ("setup_task", "train_step", "evaluation", "build_model", "build_datasets", *LOOP)


def parameters_of(method: Any) -> list[str]:
    """The names of a method's parameters, without `self`."""
    return list(inspect.signature(method).parameters)[1:]


def step_both_ways(method: Any) -> Any:
    """`valid_step` or `train_step`, called with a batch or with LAVIS' model and samples."""
    lavis = parameters_of(method)[:1] == ["model"]

    @wraps(method)
    def call(self: BaseTask, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *(kwargs[name] for name in ("model", "samples", "batch") if name in kwargs)]
        *models, batch = given
        if lavis:
            return method(self, models[0] if models else self.model, batch)
        if models:
            self.bind(models[0])
        return method(self, batch)

    return marked(call, lavis)


def before_both_ways(method: Any) -> Any:
    """`before_evaluation`, called with a split and its data sets or with LAVIS' `model` and `dataset`."""
    lavis = parameters_of(method)[:1] == ["model"]

    @wraps(method)
    def call(self: BaseTask, *args: Any, **kwargs: Any) -> Any:
        asked = "dataset" in kwargs or (args and isinstance(args[0], nn.Module))
        if asked:
            model, dataset = [*args, *(kwargs[name] for name in ("model", "dataset") if name in kwargs)]
            datasets = list(dataset) if isinstance(dataset, list | tuple) else [dataset]
            split = str(getattr(datasets[0], "split", ""))
            if not lavis:
                self.bind(model)
        else:
            given = dict(zip(("split", "datasets"), args, strict=False)) | kwargs
            split, datasets = given["split"], list(given["datasets"])
            model, dataset = self.network, datasets[0] if len(datasets) == 1 else datasets
        self._datasets_of[split] = datasets
        return method(self, model=model, dataset=dataset) if lavis else method(self, split, datasets)

    return marked(call, lavis)


def after_both_ways(method: Any) -> Any:
    """`after_evaluation`, called with our five arguments or with LAVIS' `val_result`, `split_name` and `epoch`."""
    names = parameters_of(method)
    more = any(one.kind is one.VAR_KEYWORD for one in inspect.signature(method).parameters.values())
    lavis = bool({"val_result", "split_name"} & set(names)) or (more and len(names) == 1)

    @wraps(method)
    def call(self: BaseTask, *args: Any, **kwargs: Any) -> Any:
        theirs = ("val_result", "split_name", "epoch")
        ours = ("rows", "split", "datasets", "out_dir", "epoch")
        asked = len(args) <= len(theirs) and not set(kwargs) & {"rows", "split", "datasets", "out_dir"}
        given = dict(zip(theirs if asked else ours, args, strict=False)) | kwargs
        if not asked:
            folder = Path(given["out_dir"])
            registry.paths.update(result_dir=str(folder), output_dir=str(folder.parent))
        if lavis and not asked:
            given = {"val_result": given["rows"], "split_name": given["split"], "epoch": given["epoch"]}
            return as_metrics(method(self, **{k: value for k, value in given.items() if more or k in names}))
        if lavis or not asked:
            return method(self, **given)
        split = str(given.get("split_name", ""))
        held, folder = self._datasets_of.get(split, []), Path(registry.get_path("result_dir"))
        return method(self, given.get("val_result"), split, held, folder, given.get("epoch", 0))

    return marked(call, lavis)


def marked(call: Any, lavis: bool) -> Any:
    """The method, with its manner."""
    call.lavis = lavis
    return call


BOTH_WAYS: dict[str, Callable[[Any], Any]] = {
    "valid_step": step_both_ways,
    "before_evaluation": before_both_ways,
    "after_evaluation": after_both_ways,
}


def as_metrics(found: Any) -> dict[str, float]:
    """The numbers of what LAVIS' `after_evaluation` gives, which may be None or hold other things."""
    items = dict(found).items() if isinstance(found, Mapping) else ()
    return {str(k): float(v) for k, v in items if isinstance(v, Real | Tensor) and not isinstance(v, bool)}


class BaseTask(TrainingLoop):
    """Model + loss + metric. `model` may be replaced by a wrapped one (DDP); `network` is always the model itself."""

    Keys: ClassVar[type[RunConfig]] = RunConfig
    evaluates: bool = False
    """Whether `valid_step` and `after_evaluation` do anything."""
    counts_batches: bool = False
    """Whether the task keeps a state that every micro-batch changes, so that a resume needs as many ranks."""
    needs: tuple[str, ...] = ()
    """Methods that the model must have."""
    reports: ClassVar[bool] = False
    """Whether `after_evaluation` scores by LAVIS' `_report_metrics`, which a subclass may define."""
    lavis: ClassVar[bool] = False
    """Whether the class, or one that it extends, is in LAVIS' manner: then it takes any key of `run:`."""
    inst_id_key = "instance_id"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        for name in [name for name in BOTH_WAYS if inspect.isfunction(own.get(name))]:
            setattr(cls, name, BOTH_WAYS[name](own[name]))
        manner = any(getattr(own.get(name), "lavis", False) for name in BOTH_WAYS)
        cls.lavis = cls.lavis or manner or any(name in own for name in ONLY_LAVIS)
        if "evaluates" not in own and ("evaluation" in own or getattr(own.get("valid_step"), "lavis", False)):
            cls.evaluates = True
        if "Keys" not in own:
            keys: Any = tasks.inherited(cls) or cls.Keys
            cls.Keys = keys if not cls.lavis or hasattr(keys, "rest") else joined(OpenRunConfig, keys)

    def __init__(self, model: Any = None, run: Any = None, **given: Any) -> None:
        self.model: Any = None
        self.run: Any = run
        """An instance of `Keys`."""
        self._given = given
        """What a class in LAVIS' manner passed on: values of keys of `run:`, over those of the run file."""
        self._datasets_of: dict[str, list[Any]] = {}
        if isinstance(model, int | float | str):  # LAVIS' `num_beams`, by position
            what = f"{type(self).__name__} takes values of `run:` by name"
            raise ConfigError("run.task", what, "super().__init__(num_beams=num_beams, max_len=max_len, …)")
        if model is not None:
            self.bind(model)

    def __getattr__(self, name: str) -> Any:
        """The keys of `run:` are attributes, as in LAVIS, whose tasks need not call `super().__init__`."""
        if name in ("_given", "_datasets_of"):
            return self.__dict__.setdefault(name, {})
        if name in ("model", "run"):
            return None
        held = [self.__dict__.get("_given", {}), getattr(self.__dict__.get("run"), "__dict__", {})]
        if self.__dict__.get("_given"):  # a task of ours that a script makes has the values that LAVIS gives it
            keys = fields(tasks.inherited(type(self), itself=True) or type(self).Keys)
            held.append({one.name: one.default for one in keys if one.default is not MISSING})
        if not name.startswith("__"):
            for values in held:
                if name in values:
                    return values[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def bind(self, model: Any) -> None:
        """Use this model; raises ConfigError where it lacks a method that the task needs."""
        self.model = model
        lacking = [name for name in self.needs if not hasattr(self.network, name)]
        if lacking:
            what = f"{type(self).__name__} needs `{lacking[0]}` of the model, {type(self.network).__name__} has none"
            raise ConfigError("run.task", what, "choose another task, or another model.arch")

    @classmethod
    def from_config(cls, run: Any, model: Any) -> BaseTask:
        """The task that a `run:` section describes."""
        if not cls.lavis:
            return cls(model, run)
        keys = {**asdict(run), **getattr(run, "others", {})}
        node = OmegaConf.create({key: value for key, value in keys.items() if key != "others"})
        with reading("run"):
            return taken(cls.setup_task(cfg=SimpleNamespace(run_cfg=node)), run, model)

    @classmethod
    def setup_task(cls, cfg: Any = None, **kwargs: Any) -> BaseTask:
        """LAVIS' constructor: the task of a `Config(args)`, without a model until a runner or a call gives one."""
        return cls() if cls.lavis or cfg is None else cls.from_config(cfg.typed().run, None)

    def build_model(self, cfg: Any) -> Any:
        """The model of a `Config(args)` (LAVIS' method)."""
        return build_model(cfg.typed().model)

    def build_datasets(self, cfg: Any) -> dict[str, dict[str, Any]]:
        """{data set: {split: data set}} of a `Config(args)`, of the splits that its run names, else of all."""
        file: Config = cfg.typed()
        splits = [*file.run.train_splits, *file.run.valid_splits, *file.run.test_splits]
        context = BuildContext(Path(file.cache_root), splits or None)
        return {name: build_datasets(dataset, context) for name, dataset in file.datasets.items()}

    @property
    def network(self) -> Any:
        """The model without the wrapper of a distributed run."""
        return getattr(self.model, "module", self.model)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One training batch → named scalars; `loss` is the one to minimise."""
        if type(self).train_step is not BaseTask.train_step:
            return losses_of_step(self.train_step(self.model, batch))
        output: Any = self.model(batch)
        return {k: v for k, v in output.items() if isinstance(v, Tensor) and (v.numel() == 1 or "loss" in k)}

    def train_step(self, model: Any, samples: Batch) -> Any:
        """LAVIS' step: the loss, and all that is named a loss; a subclass may give the loss alone."""
        output = model(samples)
        return output["loss"], {name: value for name, value in output.items() if "loss" in name}

    def before_train(self, batches: Any, total: int) -> None:
        """Called before the first step with the batches of the run and their total number."""
        self.before_training(self.network, getattr(batches, "datasets", None))

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint beside the model, the same on all ranks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; called before `before_train`."""

    def rank_state(self) -> dict[str, Any]:
        """State of this rank for a checkpoint."""
        return {}

    def load_rank_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `rank_state` returned."""

    def before_training(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """LAVIS' call before the first step; the model's own `before_training` by default."""
        getattr(model, "before_training", ignore)(dataset=dataset, task_type=type(self))

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """Called on every rank before the first `valid_step` of a split, with its data sets."""
        dataset = datasets[0] if len(datasets) == 1 else list(datasets)
        getattr(self.network, "before_evaluation", ignore)(dataset=dataset, task_type=type(self))

    def valid_step(self, batch: Batch) -> list[Row]:
        """One evaluation batch → one row a sample; rows of all ranks are gathered before `after_evaluation`."""
        return []

    def share(self, rows: Sequence[Row], split: str, datasets: Sequence[Any], rank: int, world: int) -> Any:
        """This rank's part of expensive work for `after_evaluation`; all ranks have all rows; picklable."""
        return None

    def receive(self, parts: list[Any]) -> None:
        """Take the results of `share` of all ranks, in order of ranks, before `after_evaluation`."""

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Write the result files of a split and return its metrics; `agg_metrics` selects the best checkpoint."""
        return {}

    def evaluation(self, model: Any, data_loader: Iterable[Batch], cuda_enabled: bool = True) -> Any:
        """LAVIS' loop over a split: the rows of all batches. One that a subclass defines is called by the runner."""
        rows: list[Row] = []
        for samples in data_loader:
            moved = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in samples.items()}
            rows += self.valid_step(model=model, samples=moved)  # type: ignore[call-arg]
        return rows

    @staticmethod
    def save_result(result: Sequence[Any], result_dir: str | Path, filename: str, remove_duplicate: str = "") -> str:
        """Write `filename.json`, of rows with the same value under a key the first; returns the path.

        The rows of all processes are there already: process 0 alone comes here.
        """
        kept = {row[remove_duplicate]: row for row in reversed(result)} if remove_duplicate else {}
        path = Path(result_dir) / f"{filename}.json"
        write_result(path, [*reversed(kept.values())] if remove_duplicate else list(result))
        return str(path)


def ignore(**kwargs: Any) -> None:
    """Do nothing."""


for _name, _both in BOTH_WAYS.items():  # the base's own methods, for calls by super()
    setattr(BaseTask, _name, _both(vars(BaseTask)[_name]))


def setup_task(run: Any, model: Any = None) -> BaseTask:
    """The task of `run.task`, or LAVIS' `setup_task(cfg)`; raises RegistryError for an unknown name."""
    if isinstance(run, RunConfig):
        keys = tasks.config(run.task) if type(run) is RunConfig else None
        if keys is not None:  # made in a script, where the task's own keys have their defaults
            run = keys(**{one.name: getattr(run, one.name) for one in fields(run) if one.init})
        task: BaseTask = tasks.get(run.task).from_config(run, model)
        return task
    with reading("run"):
        return taken(tasks.get(run.run_cfg.task).setup_task(cfg=run), run.typed().run, model)


def taken(task: BaseTask, run: RunConfig, model: Any) -> BaseTask:
    """A task that `setup_task` made, with its `run:` section, and its model if there is one."""
    known = {one.name for one in fields(run)}
    task.run = replace(run, **{name: value for name, value in task._given.items() if name in known})
    if model is not None:
        task.bind(model)
    return task


def require_called(task: Any) -> None:
    """Raise ConfigError for a task with a `_report_metrics` that nothing calls."""
    kind = type(task)
    if hasattr(kind, "_report_metrics") and not (kind.reports or getattr(kind.after_evaluation, "lavis", False)):
        what = f"{kind.__name__} defines _report_metrics, which nothing calls"
        raise ConfigError("run.task", what, "define after_evaluation(self, val_result, split_name, epoch)")


def plain_id(value: Any) -> int | str:
    """An id as in result files: an integer for digits (`"000000391895"` → 391895), else text."""
    value = value.item() if isinstance(value, Tensor) else value
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() else text


def require_distinct(split: str, datasets: Sequence[Any]) -> None:
    """Raise ConfigError where two data sets of a split call samples by one id: their results would be one row.

    A sample that both have, with the same texts to compare with, is one.
    """
    seen: dict[int | str, Any] = {}
    known = [dataset for dataset in datasets if hasattr(dataset, "result_ids")]
    for dataset in known if len(known) > 1 else ():
        texts = dataset.references()
        for one in dataset.result_ids():
            other, said = seen.setdefault(plain_id(one), (dataset.name, texts.get(one)))
            if other != dataset.name and (not said or said != texts.get(one)):
                what = f"the id {one} of '{split}' is one of '{other}' too: their results would be one row"
                raise ConfigError(f"datasets.{dataset.name}", what, "evaluate them in separate runs")


def first_by_id(rows: Iterable[Row], key: str) -> list[Row]:
    """Rows with plain ids in `key`, the first of each: a sampler may repeat samples to fill its ranks."""
    kept: dict[int | str, Row] = {}
    for row in rows:
        name = plain_id(row[key])
        kept.setdefault(name, {**row, key: name})
    return list(kept.values())


def write_result(path: Path, value: Any) -> None:
    """Write a JSON file atomically; raises DiskError."""
    with disk_errors(path, "set run.output_dir elsewhere"):
        write_json(path, value)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a JSON list atomically, one line a row, which suits millions of rows; raises DiskError."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with disk_errors(path, "set run.output_dir elsewhere"):
        write_atomic(path, f"[{lines}]\n")


def merged_references(datasets: Sequence[Any]) -> dict[int | str, list[str]]:
    """References of several data sets by plain id; raises ConfigError for an id with different texts."""
    merged: dict[int | str, list[str]] = {}
    for dataset in datasets:
        found: Mapping[Any, Sequence[str]] = dataset.references()
        for key, captions in found.items():
            name = plain_id(key)
            if merged.setdefault(name, list(captions)) != list(captions):
                what = f"image id {name} means another image in another data set of the split"
                raise ConfigError(f"datasets.{dataset.name}", what, "evaluate them in separate runs")
    return merged
