"""What starts several processes, and how each learns which it is: what SLURM says is put as torchrun says it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

from lavis_ext.errors import ConfigError

FIRST_PORT, PORTS = 20_000, 20_000
RANGES = re.compile(r"^(?P<head>[^\[,]+)(?:\[(?P<first>\d+)[^\]]*\](?P<tail>[^\[,]*))?")


def first_host(nodes: str) -> str:
    """The first of `SLURM_JOB_NODELIST`: `gpu[007-010,12],login1` → `gpu007`; raises ConfigError for no list."""
    found = RANGES.match(nodes.strip())
    if found is None:
        raise ConfigError("SLURM_JOB_NODELIST", f"'{nodes}' names no host", "set MASTER_ADDR and MASTER_PORT")
    return f"{found['head']}{found['first'] or ''}{found['tail'] or ''}"


def from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """torch.distributed's variables for a task that `srun` started; {} where another launcher or none did.

    `MASTER_PORT` follows from the job's number, so that all tasks find the same one and two jobs of a node another.
    Raises ConfigError for variables that are no numbers.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    if "RANK" in environment or "SLURM_PROCID" not in environment or tasks == "1":
        return {}
    given = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": local_tasks(environment, tasks),
    }
    for name, value in given.items():
        if not value.isdigit():
            raise ConfigError(f"SLURM {name}", f"'{value}' is no number", "start it with srun, or with torchrun")
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    job = int("".join(filter(str.isdigit, environment.get("SLURM_JOB_ID", ""))) or "0")
    place = {"MASTER_ADDR": first_host(nodes), "MASTER_PORT": str(FIRST_PORT + job % PORTS)}
    return {**given, **{name: environment.get(name, value) for name, value in place.items()}}


def local_tasks(environment: Mapping[str, str], tasks: str) -> str:
    """How many tasks run on this node, from `SLURM_NTASKS_PER_NODE` or the first of `2(x3),1`; all of them else."""
    told = environment.get("SLURM_NTASKS_PER_NODE", environment.get("SLURM_STEP_TASKS_PER_NODE", tasks))
    found = re.match(r"\d+", told)
    return found[0] if found else tasks


def translate_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Add torch.distributed's variables where `srun` started this process."""
    environment.update(from_slurm(environment))
