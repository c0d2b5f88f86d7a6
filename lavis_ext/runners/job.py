"""The folder of a run: its name, its owner, `run.json` and report; and whether a configuration fits its checkpoint."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from lavis_ext.browse import write_run_report
from lavis_ext.common.config.schema import Config, DatasetConfig
from lavis_ext.common.errors import ConfigError, DiskError, LavisExtError, OwnedError, Problem
from lavis_ext.common.files import decode_json, expanded
from lavis_ext.common.secrets import identity, redact, redact_tree
from lavis_ext.fetch import Policy
from lavis_ext.fetch.lock import Ownership
from lavis_ext.runners.distributed import broadcast_from_main, lost_ranks
from lavis_ext.runners.files import disk_errors, write_atomic, write_json
from lavis_ext.runners.microbatch import Step
from lavis_ext.runners.runner_base import Hook, RunnerBase

log = logging.getLogger(__name__)


@dataclass
class Job:
    """A run in its folder; `facts` is what `run.json` holds."""

    config: Config
    dir: Path
    accelerator: Accelerator
    facts: dict[str, Any] = field(default_factory=dict)
    owner: Ownership | None = None
    """Of the folder, on the rank that writes."""
    began: float = field(default_factory=time.monotonic)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return bool(self.accelerator.is_main_process)

    def begin(self, data: Mapping[str, Any] | None, evaluation: bool = False) -> None:
        """Write the configuration and the first facts; called once the run is known to fit this folder.

        An evaluation in the folder of a training run leaves that run's `config.yaml` and facts as they are, for they
        say what its checkpoints are; its own configuration is `evaluate.yaml`.
        """
        before = read_json(self.dir / "run.json")
        beside = evaluation and (self.dir / "latest.json").is_file()
        kept: dict[str, Any] = {key: before[key] for key in ("started", "seconds", "best") if key in before}
        if beside:
            kept = {key: value for key, value in before.items() if key not in ("error", "exit_code", "weights")}
        self.facts = {"job": self.dir.name, "started": now(), **kept, **({} if beside else about(self.config))}
        if self.is_main:
            name, tree = "evaluate.yaml" if beside else "config.yaml", self.config.resolved or asdict(self.config)
            write_atomic(self.dir / name, redact_config(tree, self.config.hidden))
            write_json(self.dir / "data.json", dict(data or {}))
        self.note(status="running")

    def note(self, **facts: Any) -> None:
        """Add facts to `run.json`; rank 0 writes."""
        self.facts |= facts
        if self.is_main:
            self.require_owner()
            write_json(self.dir / "run.json", self.facts)

    def require_owner(self) -> None:
        """Raise OwnedError if another process has taken the folder over, while this one stood still."""
        if self.owner is not None and not self.owner.holds():
            what = "another process has taken this run over, while this one stood still"
            raise OwnedError(str(self.dir), what, "leave it to that one, or use another run.job_id")

    def end(self, **facts: Any) -> None:
        """Write the last facts, with the seconds spent in all starts of the job, and the report."""
        spent = round(self.facts.get("seconds", 0) + time.monotonic() - self.began, 2)
        self.note(seconds=spent, ended=now(), **facts)
        if self.is_main and self.config.run.report:
            write_report(self.dir)


@contextmanager
def opened_job(config: Config, accelerator: Accelerator) -> Iterator[Job]:
    """The folder of the run, owned for the block; an error after `begin` goes to its `run.json` with the exit code.

    A run that fails before `begin` leaves an existing folder as it was, and creates none.
    """
    with lost_ranks(accelerator):
        job = Job(config, choose_folder(config, accelerator), accelerator)
    try:
        with ExitStack() as stack, errors_noted(job), lost_ranks(accelerator):
            broadcast_from_main(accelerator, partial(hold, stack, job), config.run.wait_minutes)
            yield job
    finally:
        if job.is_main and job.dir.is_dir() and not any(job.dir.iterdir()):
            with suppress(OSError):  # a disk that cannot be written was told already
                job.dir.rmdir()


def hold(stack: ExitStack, job: Job) -> None:
    """Own the folder of a job until `stack` is closed; raises OwnedError."""
    job.owner = stack.enter_context(owned(job.dir))


AT_ONCE = Policy(owner_wait=0, owner_stall=0)


@contextmanager
def owned(folder: Path) -> Iterator[Ownership]:
    """Own `folder` for the block, by the owner file with heartbeat that guards downloads too.

    Raises OwnedError at once if another live process owns it.
    """
    file = folder / "owner.json"
    with disk_errors(file):
        folder.mkdir(parents=True, exist_ok=True)
    owner = Ownership(file, file, AT_ONCE)
    try:
        with disk_errors(file):
            owner.__enter__()
    except OwnedError as error:
        what = error.problems[0].what
        way_out = f"wait for it, or use another run.job_id; if there is no such process, delete {file}"
        raise OwnedError(str(folder), what, way_out) from error
    try:
        yield owner
    finally:
        owner.__exit__()


class OwnerHook(Hook):
    """Ends a run that was taken over before it writes anything of a step: logs, results, checkpoints."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def after_step(self, runner: RunnerBase, step: Step) -> None:
        self.job.require_owner()

    def after_epoch(self, runner: RunnerBase) -> None:
        self.job.require_owner()


@contextmanager
def errors_noted(job: Job) -> Iterator[None]:
    """Write an error of the block to `run.json`, if the job had begun."""
    try:
        yield
    except BaseException as error:
        if job.facts and not isinstance(error, OwnedError):  # else the folder is another's
            code = error.exit_code if isinstance(error, LavisExtError) else None
            with suppress(DiskError):  # there may be no room for it; `error` is raised all the same
                job.end(status="stopped", error=redact(str(error) or type(error).__name__), exit_code=code)
        raise


def now() -> str:
    """The local time with its offset."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def about(config: Config) -> dict[str, Any]:
    """Task, model and data sets, for the head of the report."""
    model = config.model
    return {
        "task": config.run.task,
        "model": {"arch": model.arch, "model_type": model.model_type} if model else {},
        "datasets": sorted(config.datasets),
        "path": config.path,
    }


def choose_folder(config: Config, accelerator: Accelerator) -> Path:
    """`output_dir/<job id>`, the same on all ranks; without `run.job_id` the start time, made unique."""
    root = expanded(config.run.output_dir).absolute()
    name = config.run.job_id or time.strftime("%Y%m%d-%H%M%S")
    if not config.run.job_id:
        taken = {path.name for path in root.glob(f"{name}*")}
        name = next(n for n in (name, *(f"{name}-{i}" for i in range(2, 1000))) if n not in taken)
    shared = [str(root / name)]
    if accelerator.num_processes > 1:
        broadcast_object_list(shared)
    return Path(shared[0])


def redact_config(tree: Mapping[str, Any], hidden: Mapping[str, str] | None = None) -> str:
    """A configuration as YAML, with secrets removed; `hidden` values are replaced by what they were made from."""
    return yaml.safe_dump(redact_tree(tree, hidden=hidden or {}), sort_keys=False, allow_unicode=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} if the file is missing, cut off or something else."""
    try:
        found = decode_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_report(folder: Path) -> None:
    """`report.html` from what the folder holds; a failure is a warning, not the end of the run."""
    try:
        write_run_report(folder)
    except Exception as error:
        log.warning("no report: %s", error)


# Before a resume the configuration is compared with the checkpoint's, by the keys that decide a run's numbers.

HARMLESS = frozenset(
    {"device", "num_workers", "log_freq", "output_dir", "job_id", "resume_ckpt_path", "tensorboard", "wandb", "report"}
    | {"save_freq", "save_steps", "save_last", "keep_checkpoints", "allow_config_drift", "evaluate", "test_splits"}
    | {"parallel", "wait_minutes", "check_shards"}
)
"""Keys of `run:` that do not change the numbers of a run."""
ABSENT = "(not there)"


def fingerprint(config: Config) -> dict[str, Any]:
    """The values that decide the numbers, flat: `run.init_lr` → 1e-4, `datasets.coco_caption.weight` → …"""
    run = {key: value for key, value in asdict(config.run).items() if key not in HARMLESS}
    tree = {
        "run": run,
        "model": asdict(config.model) if config.model else {},
        "datasets": {name: asdict(dataset) for name, dataset in config.datasets.items()},
    }
    return comparable(json.loads(json.dumps(dict(flatten(tree)), default=str)), config)


def comparable(flat: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Flat settings without secrets, in which another object at a URL, or another value of the environment, shows."""
    found = {key: redact_tree(value, key, config.hidden) for key, value in flat.items()}
    for key, value in flat.items():
        if isinstance(value, str) and value in config.hidden:
            found[key] += f" ({sha256(value.encode()).hexdigest()[:8]})"
        elif isinstance(value, str) and "://" in value and (mark := identity(value).partition("#")[2]):
            found[key] += f" ({mark})"
    return found


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a tree with dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any], where: str, config: Config) -> None:
    """Raise ConfigError that names every key that differs from the checkpoint's.

    An older checkpoint may lack a key: it was made with the key's default. It may also hold keys that its task or
    architecture never read: they are ignored.
    """
    known_names = {key.split(".")[1] for key in now if key.startswith(("run.", "model."))}
    read = {k: v for k, v in saved.items() if not k.startswith(("run.", "model.")) or k.split(".")[1] in known_names}
    # checkpoints of earlier versions hold addresses as they were given
    was = {**{key: default_of(key, config) for key in now}, **comparable(read, config)}
    changed = [key for key in sorted(was.keys() | now.keys()) if was.get(key, ABSENT) != now.get(key, ABSENT)]
    if not changed:
        return
    way_out = "restore it, name another run.job_id, or set run.allow_config_drift=true"
    problems = [
        Problem(f"{where}: {key}", f"was {was.get(key, ABSENT)!r}, now {now.get(key, ABSENT)!r}", way_out)
        for key in changed
    ]
    raise ConfigError.of(problems)


def default_of(key: str, config: Config) -> Any:
    """The default of a flat key of a run, a model or a data set, as JSON has it; `ABSENT` where it has none."""
    section, _, rest = key.partition(".")
    kinds = {"run": type(config.run), "model": type(config.model), "datasets": DatasetConfig}
    name = rest.rpartition(".")[2] if section == "datasets" else rest
    kind = kinds.get(section)
    found = {one.name: one for one in fields(kind)}.get(name) if is_dataclass(kind) else None
    if found is None:
        return ABSENT
    if found.default is not MISSING:
        return found.default
    return plain(found.default_factory()) if found.default_factory is not MISSING else ABSENT


def plain(value: Any) -> Any:
    """`value` after a round trip through JSON."""
    return json.loads(json.dumps(value, default=asdict))
