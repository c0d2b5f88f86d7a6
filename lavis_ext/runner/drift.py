"""Which keys of a configuration decide the numbers of a run, and how they differ from those of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from lavis_ext.errors import ConfigError, Problem
from lavis_ext.schema import Config, DatasetConfig

HARMLESS = frozenset(
    {"device", "num_workers", "log_freq", "output_dir", "job_id", "resume_ckpt_path", "tensorboard", "wandb", "report"}
    | {"save_freq", "save_steps", "save_last", "keep_checkpoints", "allow_config_drift", "evaluate", "test_splits"}
    | {"parallel", "wait_minutes"}
)
"""Keys of `run:` that change where and how often, not what."""
ABSENT = "(not there)"


def fingerprint(config: Config) -> dict[str, Any]:
    """The values that decide the numbers, flat: `run.init_lr` → 1e-4, `datasets.coco_caption.weight` → …"""
    run = {key: value for key, value in asdict(config.run).items() if key not in HARMLESS}
    tree = {
        "run": run,
        "model": asdict(config.model) if config.model else {},
        "datasets": {name: asdict(dataset) for name, dataset in config.datasets.items()},
    }
    return dict(json.loads(json.dumps(dict(flatten(tree)), default=str)))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a tree with dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any], where: str, config: Config) -> None:
    """Raise ConfigError that tells every key that differs from the checkpoint's.

    A checkpoint from before there was a key was made with the key's default; one from before each task and architecture
    had keys of its own holds some that nobody read.
    """
    read = {key.split(".")[1] for key in now if key.startswith(("run.", "model."))}
    kept = {k: v for k, v in saved.items() if not k.startswith(("run.", "model.")) or k.split(".")[1] in read}
    known = {**{key: default_of(key, config) for key in now}, **kept}
    changed = [key for key in sorted(known.keys() | now.keys()) if known.get(key, ABSENT) != now.get(key, ABSENT)]
    if not changed:
        return
    way_out = "put it back, name another run.job_id, or set run.allow_config_drift=true"
    problems = [
        Problem(f"{where}: {key}", f"was {known.get(key, ABSENT)!r}, now {now.get(key, ABSENT)!r}", way_out)
        for key in changed
    ]
    raise ConfigError.of(problems)


def default_of(key: str, config: Config) -> Any:
    """The default of a flat key of a run, a model or a data set, as JSON has it; `ABSENT` where it has none."""
    section, _, rest = key.partition(".")
    kinds = {"run": type(config.run), "model": type(config.model), "datasets": DatasetConfig}
    name = rest.rpartition(".")[2] if section == "datasets" else rest
    kind = kinds.get(section)
    one = {one.name: one for one in fields(kind)}.get(name) if is_dataclass(kind) else None
    if one is None:
        return ABSENT
    if one.default is not MISSING:
        return one.default
    return plain(one.default_factory()) if one.default_factory is not MISSING else ABSENT


def plain(value: Any) -> Any:
    """A value as it is after JSON."""
    return json.loads(json.dumps(value, default=asdict))
