"""Devices of a run: one Accelerator for CPU, GPU and ranks, SLURM's variables as torchrun's, deterministic kernels."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

from lavis_ext.common.config.schema import RunConfig
from lavis_ext.common.errors import ConfigError, TrainingError
from lavis_ext.runners.distributed import USED, wants_fsdp

log = logging.getLogger(__name__)

FIRST_PORT, PORTS = 20_000, 20_000
RANGES = re.compile(r"^(?P<head>[^\[,]+)(?:\[(?P<first>\d+)[^\]]*\](?P<tail>[^\[,]*))?")


def first_host(nodes: str) -> str:
    """The first of `SLURM_JOB_NODELIST`: `gpu[007-010,12],login1` → `gpu007`; raises ConfigError for no list."""
    found = RANGES.match(nodes.strip())
    if found is None:
        raise ConfigError("SLURM_JOB_NODELIST", f"'{nodes}' names no host", "set MASTER_ADDR and MASTER_PORT")
    return f"{found['head']}{found['first'] or ''}{found['tail'] or ''}"


def from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """torch.distributed's variables for a task that `srun` started; {} where another launcher or none started it.

    `MASTER_PORT` is derived from the job id: the same for all tasks of a job, different for two jobs on one node.
    Raises ConfigError for a variable that is not a number.
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
    """How many tasks run on this node, from `SLURM_NTASKS_PER_NODE` or the first of `2(x3),1`, else all."""
    per_node = environment.get("SLURM_NTASKS_PER_NODE", environment.get("SLURM_STEP_TASKS_PER_NODE", tasks))
    found = re.match(r"\d+", per_node)
    return found[0] if found else tasks


def translate_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Add torch.distributed's variables where `srun` started this process."""
    environment.update(from_slurm(environment))


LOAD_ON_ONE = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def build_accelerator(run: RunConfig) -> Accelerator:
    """The Accelerator of `run.device` and `run.precision`.

    Raises ConfigError for what this machine lacks, TrainingError where the other processes do not come.

    Several processes are those that torchrun, `accelerate launch` or srun started; one process needs no process group.
    `run.accum_grad_iters` alone says how many micro-batches make a step; `distributed.wrap` handles `run.parallel`.
    """
    translate_slurm()
    if LOAD_ON_ONE in os.environ:  # transformers would leave the weights of all ranks but the first empty
        os.environ[LOAD_ON_ONE] = "false"
    use_cpu = choose_cpu(run.device)
    precision = choose_precision(run, use_cpu)
    forget_previous()
    ddp = DistributedDataParallelKwargs(find_unused_parameters=run.find_unused_parameters)
    whole_steps = GradientAccumulationPlugin(num_steps=1)
    try:
        with without(USED):
            accelerator = Accelerator(
                cpu=use_cpu, mixed_precision=precision, kwargs_handlers=[ddp], gradient_accumulation_plugin=whole_steps
            )
    except torch.distributed.DistError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        what = f"the processes of the run did not meet at {place}: {str(error).splitlines()[0]}"
        raise TrainingError("run", what, "start all of them at once, with MASTER_PORT a free port") from error
    if accelerator.num_processes > 1:
        atexit.unregister(leave_group)
        atexit.register(leave_group)
    return accelerator


def leave_group() -> None:
    """Leave the process group while its threads can still be joined: gloo aborts a process that exits with them."""
    gc.collect()  # wrapped models are in reference cycles and hold the group
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def choose_cpu(device: str) -> bool:
    """Whether `auto | cpu | cuda | cuda:N` means the CPU; selects GPU N otherwise."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError("run.device", f"'{device}' is no device", "auto, cpu, cuda or cuda:N")
    prefers_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    if kind == "cpu" or (kind == "auto" and (prefers_cpu or not torch.cuda.is_available())):
        return True
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise ConfigError("run.device", f"'{device}' is not there, this machine has {count} GPUs", "auto or cpu")
    if number and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(int(number))
    return False


def choose_precision(run: RunConfig, use_cpu: bool) -> str:
    """`run.precision`, else what `run.amp` means here: fp16 on a GPU, bf16 on a CPU and under FSDP; else accelerate's.

    Raises ConfigError for a precision that this device or `run.parallel` does not support.
    """
    sharded = wants_fsdp(run)
    default = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = run.precision or (("bf16" if use_cpu or sharded else "fp16") if run.amp else default)
    if precision == "fp16" and (use_cpu or sharded):
        what = "needs unsharded parameters: run.parallel is fsdp" if sharded else "needs a GPU"
        raise ConfigError("run.precision", f"fp16 {what}", "use bf16")
    if precision not in ("no", "fp16", "bf16"):
        raise ConfigError("accelerate mixed_precision", f"'{precision}' is not offered", "use no, fp16 or bf16")
    return precision


@contextmanager
def without(name: str) -> Iterator[None]:
    """Unset an environment variable for the block."""
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


def forget_previous() -> None:
    """Let a second run of one process choose its own device and precision; accelerate keeps the first one's."""
    if AcceleratorState._shared_state:
        AcceleratorState._reset_state()
    if PartialState._shared_state and not torch.distributed.is_initialized():
        PartialState._reset_state()


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Deterministic kernels for the block where they cost nothing: cuDNN without autotuning, all operators on a CPU."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    settings.fill_uninitialized_memory = False
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill
