"""LAVIS' `Config(args)`: a run file as nodes that a script reads and changes, checked when it is read and when used."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_ext.common.config.check import load_checked, rechecked
from lavis_ext.common.config.schema import Config as RunFile
from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.config.yamlio import shown
from lavis_ext.common.errors import ConfigError, Problem, nearest
from lavis_ext.common.registry import registry

log = logging.getLogger(__name__)


class Config:
    """A run file with the defaults of its model and data sets, under `run_cfg`, `model_cfg` and `datasets_cfg`.

    `args` has `cfg_path` and `options` (a list of `a.b=c`, or None), as `argparse` gives them. Raises ConfigError with
    every mistake at once, where LAVIS takes unknown keys in silence.
    """

    def __init__(self, args: Any) -> None:
        self.args = args
        self._hold(load_checked(args.cfg_path, list(getattr(args, "options", None) or [])))

    @classmethod
    def of(cls, file: RunFile) -> Config:
        """The same over a run file that is read already."""
        config = cls.__new__(cls)
        config.args = None
        config._hold(file)
        return config

    def _hold(self, file: RunFile) -> None:
        self._file = file
        self.config: DictConfig = OmegaConf.create(file.resolved)
        registry.register("configuration", self)

    def typed(self) -> RunFile:
        """The run file as the runner takes it, with what the script changed; raises ConfigError as at first."""
        tree = self.to_dict()
        kind = type(self._file.run)
        # what init_distributed_mode of a script writes; a task that writes text reads keys that others ignore
        unread = set(kind.ignored) - {one.name for one in fields(kind)}
        run = {key: value for key, value in tree["run"].items() if key not in unread}
        return rechecked({**tree, "run": run}, self._file)

    @property
    def run_cfg(self) -> Any:
        """The `run:` section."""
        return self.config.run

    @property
    def datasets_cfg(self) -> Any:
        """The `datasets:` section."""
        return self.config.datasets

    @property
    def model_cfg(self) -> Any:
        """The `model:` section."""
        return self.config.model

    def get_config(self) -> DictConfig:
        """All sections."""
        return self.config

    def to_dict(self) -> dict[str, Any]:
        """All sections as plain values."""
        return node_to_dict(self.config)

    def pretty_print(self) -> None:
        """Log the sections as JSON."""
        for name in ("run", "datasets", "model"):
            log.info("===== %s =====\n%s", name, json.dumps(self.to_dict().get(name), indent=4, sort_keys=True))


class ConfigValidator:
    """LAVIS' list of the arguments that a section may have. Sections of ours have dataclasses, which say more."""

    class _Argument(SimpleNamespace):
        def __str__(self) -> str:
            told = f"{self.name}={self.val}"
            told += "" if self.type is None else f", ({self.type})"
            told += "" if self.choices is None else f", choices: {self.choices}"
            return told if self.help is None else f"{told}, ({self.help})"

    def __init__(self, description: str) -> None:
        self.description = description
        self.arguments: dict[str, Any] = {}
        self.parsed_args: Mapping[str, Any] | None = None

    def __getitem__(self, key: str) -> Any:
        if self.parsed_args is None:
            raise ConfigError(str(self.description), "nothing was validated yet", "call `validate(config)` first")
        return self.parsed_args[key]

    def __str__(self) -> str:
        return self.format_help()

    def add_argument(self, name: str, choices: Any = None, type: Any = None, help: str | None = None) -> None:
        """Allow an argument; `type` is called with its value, and raises ValueError for a wrong one."""
        self.arguments[name] = self._Argument(name=name, val=None, choices=choices, type=type, help=help)

    def validate(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The section as it is; raises ConfigError with every unknown key, wrong type and wrong choice."""
        problems = []
        for key, value in config.items():
            argument = self.arguments.get(key)
            if argument is None:
                problems.append(Problem(key, "is not known", nearest(key, self.arguments)))
                continue
            try:
                argument.val = value if argument.type is None or value is None else argument.type(value)
            except (TypeError, ValueError):
                problems.append(Problem(key, f"{shown(value)} is no {argument.type.__name__}", "give one"))
            if argument.choices is not None and value not in argument.choices:
                problems.append(Problem(key, f"{shown(value)} is not served", nearest(str(value), argument.choices)))
        if problems:
            raise ConfigError.of(problems)
        self.parsed_args = config
        return config

    def format_arguments(self) -> str:
        """The names, as a list in text."""
        return str(sorted(self.arguments))

    def format_help(self) -> str:
        """The description, and the names."""
        return f"{self.description}, available arguments: {self.format_arguments()}"

    def print_help(self) -> None:
        """Print that."""
        print(self.format_help())  # noqa: T201


def create_runner_config_validator() -> ConfigValidator:
    """LAVIS' validator of `run:`, with the keys that all tasks share; tasks may read more, and `check` knows them."""
    validator = ConfigValidator("Runner configurations")
    choices = {"runner": registry.list_runners, "task": registry.list_tasks, "lr_sched": registry.list_lr_schedulers}
    for one in fields(RunConfig):
        known = choices.get(one.name)
        validator.add_argument(one.name, choices=known and known())
    return validator


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Say where a key belongs that a class in LAVIS' manner reads, and a section does not have; raises ConfigError."""
    try:
        yield
    except OmegaConfBaseException as error:
        absent = isinstance(error, AttributeError | KeyError) and error.key is not None
        what = "is missing, and the class that reads it has no default" if absent else str(error).splitlines()[0]
        raise ConfigError(f"{where}.{error.key}" if absent else where, what, "give it a value") from error


def node_to_dict(node: Any) -> dict[str, Any]:
    """A node as plain values, interpolations resolved."""
    plain: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    return plain
