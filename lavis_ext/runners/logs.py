"""The log of a run: `log.jsonl`, which a resume continues without a gap or a repeated line, TensorBoard and wandb."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import resource
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Protocol

import torch

from lavis_ext.common.errors import ConfigError
from lavis_ext.runners.display import Display
from lavis_ext.runners.files import disk_errors
from lavis_ext.runners.microbatch import Step
from lavis_ext.runners.runner_base import Hook, RunnerBase

Record = dict[str, Any]


class JsonLog:
    """One JSON object a line, appended; `truncate` goes back to an earlier size."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Record) -> None:
        """Append a line, without fsync; raises DiskError."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def sync(self) -> int:
        """Force all lines to the disk; returns the size in bytes."""
        if not self.path.exists():
            return 0
        with disk_errors(self.path), self.path.open("rb+") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def truncate(self, size: int) -> None:
        """Drop everything after `size` bytes: a resume writes the lines after its checkpoint again."""
        if self.path.exists() and self.path.stat().st_size > size:
            os.truncate(self.path, size)


class LogSink(Protocol):
    """Where records go besides `log.jsonl`."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """No more records."""


def numbers(record: Record) -> dict[str, float]:
    """The plottable values of a record: `train/loss`, `val/CIDEr`."""
    values = record.get("metrics", record)
    prefix = record.get("split", "train")
    plottable = {key: v for key, v in values.items() if isinstance(v, (int, float)) and key not in ("step", "epoch")}
    return {f"{prefix}/{key}": float(value) for key, value in plottable.items()}


class TensorBoardSink:
    """Event files in `tensorboard/` of the job; steps that a resume repeats replace the earlier ones."""

    def __init__(self, job_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = job_dir / "tensorboard"
        with disk_errors(self.folder):
            self.writer: Any = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def write(self, record: Record) -> None:
        """One scalar a value; raises DiskError, also for what a thread of the writer met since the last one."""
        with disk_errors(self.folder):
            for name, value in numbers(record).items():
                self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close; raises DiskError."""
        with disk_errors(self.folder):
            self.writer.close()


class WandbSink:
    """A Weights & Biases run under the job's id; `WANDB_MODE` and friends apply."""

    def __init__(self, job_dir: Path, config: dict[str, Any]) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "run.wandb", "the package wandb is not installed", "pip install wandb, or set run.wandb=false"
            )
        import wandb

        self.handle: Any = wandb.init(
            project="lavis_ext", id=job_dir.name, dir=str(job_dir), config=config, resume="allow"
        )

    def write(self, record: Record) -> None:
        """One row."""
        self.handle.log(numbers(record), step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        self.handle.finish()


class LogHook(Hook):
    """Writes a line every `log_freq` steps and one for each evaluation; losses are averaged since the last line."""

    name = "log"

    def __init__(self, file: JsonLog, display: Display | None = None) -> None:
        self.file, self.display = file, display or Display()
        self.sinks: list[LogSink] = []
        self.offset = 0
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.costs: dict[str, float] = defaultdict(float)

    def before_train(self, runner: RunnerBase) -> None:
        """Truncate the file to the size that the checkpoint recorded, then open the sinks."""
        if not runner.is_main:
            return
        self.file.truncate(self.offset if runner.in_place else 0)
        if runner.run.tensorboard and importlib.util.find_spec("tensorboard"):
            self.sinks.append(TensorBoardSink(self.file.path.parent, runner.progress.step))
        if runner.run.wandb:
            self.sinks.append(WandbSink(self.file.path.parent, runner.settings))

    def after_step(self, runner: RunnerBase, step: Step) -> None:
        """Add up the numbers; write a line at every `log_freq`-th step."""
        for name, value in (*step.losses.items(), ("grad_norm", step.norm)):
            if math.isfinite(value):  # the norm overflows where fp16 skips a step
                self.sums[name] += value
                self.counts[name] += 1
        for name, value in (("samples", step.samples), ("wait", step.wait_s), ("spent", step.spent_s)):
            self.costs[name] += value
        if runner.is_main:
            self.display.step(runner, step)
        if runner.progress.step % max(runner.run.log_freq, 1) == 0:
            self.flush(runner)

    def after_epoch(self, runner: RunnerBase) -> None:
        """Write the last steps of the epoch, so that no line mixes two epochs."""
        self.flush(runner)

    def flush(self, runner: RunnerBase) -> None:
        """Write the line of the steps since the last one, if there were any."""
        if not self.sums:
            return
        at = runner.progress
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        record = {"kind": "train", "step": at.step, "epoch": at.epoch, "lr": runner.rate, **means}
        self.write(runner, {**record, **self._speed(), **({"skipped": at.skipped} if at.skipped else {})})
        for kept in (self.sums, self.counts, self.costs):
            kept.clear()

    def _speed(self) -> dict[str, float]:
        spent = max(self.costs["spent"], 1e-9)
        share = min(self.costs["wait"] / spent, 1.0)
        return {
            "samples_per_s": round(self.costs["samples"] / spent, 3),
            "data_wait": round(share, 4),
            "peak_memory_mb": peak_memory_mb(),
        }

    def after_evaluation(self, runner: RunnerBase, split: str, label: str, metrics: dict[str, Any]) -> None:
        """One line with all metrics of a split."""
        epoch = min(runner.progress.epoch, runner.plan.epochs - 1)
        record = {"kind": "eval", "split": split, "label": label, "step": runner.progress.step, "epoch": epoch}
        self.write(runner, {**record, "metrics": metrics})

    def write(self, runner: RunnerBase, record: Record) -> None:
        """To the file, the sinks and the display; rank 0 only."""
        if not runner.is_main:
            return
        self.file.write(record)
        for sink in self.sinks:
            sink.write(record)
        self.display.record(record, runner.plan.epochs)

    def state_dict(self) -> Record:
        """The sums of steps not written yet, and the size of the file."""
        return {"sums": dict(self.sums), "counts": dict(self.counts), "offset": self.file.sync()}

    def load_state_dict(self, state: Record) -> None:
        """Restore the sums; `before_train` truncates the file to the recorded size."""
        self.sums, self.counts = defaultdict(float, state["sums"]), defaultdict(int, state["counts"])
        self.offset = state["offset"]

    def after_train(self, runner: RunnerBase) -> None:
        """Close the sinks and the display."""
        self.display.close()
        for sink in self.sinks:
            sink.close()
        self.sinks.clear()


def peak_memory_mb() -> float:
    """Largest memory use so far in MiB: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+)", status.read_text())):
        return round(int(found[1]) / 2**10, 1)  # ru_maxrss begins with that of the program that started this one
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
