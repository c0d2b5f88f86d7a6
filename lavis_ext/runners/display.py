"""What a person, or a program, sees of a run while it goes on: what runs, then a live bar, plain lines, or JSON."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lavis_ext.common.secrets import printable, redact_tree
from lavis_ext.common.wording import counted, displayed, measured
from lavis_ext.runners.microbatch import Step

if TYPE_CHECKING:
    from lavis_ext.runners.runner_base import RunnerBase

log = logging.getLogger(__name__)
Record = dict[str, Any]
SMOOTHING = 0.9
"""Of the loss that the bar shows: about the mean of the last ten steps."""


class Display:
    """Plain lines in the log: what runs, then a line a record. Rank 0 alone calls it."""

    def opened(self, facts: Mapping[str, Any]) -> None:
        """The run begins; see `facts_of`."""
        for line in opening_lines(facts):
            log.info("%s", line)

    def step(self, runner: RunnerBase, step: Step) -> None:
        """After each step."""

    def evaluating(self, split: str, done: int, total: int) -> None:
        """After each batch of an evaluation."""

    def record(self, record: Record, epochs: int) -> None:
        """What `log.jsonl` has got."""
        log.info("%s", summary(record, epochs))

    def close(self) -> None:
        """The run is over, or ended by an error."""


class Stream(Display):
    """The same lines, and objects for a program: `{"kind": "start", …}`, then each record of `log.jsonl`."""

    def __init__(self, write: Callable[[Record], None]) -> None:
        self.write = write

    def opened(self, facts: Mapping[str, Any]) -> None:
        super().opened(facts)
        self.write({"kind": "start", **facts})

    def record(self, record: Record, epochs: int) -> None:
        super().record(record, epochs)
        self.write(redact_tree(record))


class Bar(Display):
    """A bar by rich with loss, rate and time left; evaluations stay as lines above it."""

    def __init__(self, stream: TextIO, colour: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(file=stream, no_color=not colour)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(None), MofNCompleteColumn())
        shown = TextColumn("{task.fields[shown]}", markup=False)
        self._bars = Progress(*columns, shown, TimeRemainingColumn(True), console=console, transient=True, expand=True)
        self._task: Any = None
        self._loss: float | None = None
        self._last: tuple[Record, int] | None = None

    # one line throughout: where the height changes, rich's own thread draws over lines that are printed meanwhile
    def _update(self, total: int, **fields: Any) -> None:
        if self._task is None:
            self._bars.start()
            self._task = self._bars.add_task("", total=total, shown="")
        self._bars.update(self._task, total=total, **fields)

    def step(self, runner: RunnerBase, step: Step) -> None:
        at, plan = runner.progress, runner.plan
        loss = step.losses.get("loss", 0.0)
        self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        speed = measured(step.samples / max(step.spent_s, 1e-9), 3)
        shown = f"loss {measured(self._loss)}  lr {measured(runner.rate, 2)}  {speed}/s"
        where = f"epoch {at.epoch + 1}/{plan.epochs}"
        self._update(plan.steps, completed=at.step, description=where, shown=shown)

    def evaluating(self, split: str, done: int, total: int) -> None:
        name = printable(split, kept="")
        if self._loss is None:
            self._update(total, completed=done, description=f"evaluate {name}", shown="batches")
        else:
            self._bars.update(self._task, shown=f"evaluate {name}: batch {done + 1} of {total}")

    def record(self, record: Record, epochs: int) -> None:
        if record["kind"] == "eval":
            super().record(record, epochs)
        self._last = (record, epochs) if record["kind"] != "eval" else None

    def close(self) -> None:
        self._bars.stop()
        if self._last:
            super().record(*self._last)
            self._last = None


def display_for(stream: TextIO | None = None) -> Display:
    """A bar where `stream` (default: standard error) is a terminal that can draw one, else plain lines."""
    out = stream or sys.stderr
    if out.isatty() and os.environ.get("TERM") != "dumb" and os.environ.get("RANK", "0") == "0":
        return Bar(out, colour=not os.environ.get("NO_COLOR"))
    return Display()


def facts_of(task: Any, feeds: Mapping[str, Any], accelerator: Any, runner: RunnerBase | None = None) -> Record:
    """What runs: model, parameters, data sets and samples by split, device, precision, and the steps of a training."""
    config, run = getattr(task.model, "config", None), task.run
    counts = [(p.numel(), p.requires_grad) for p in task.model.parameters()]
    trained = sum(count for count, wanted in counts if wanted)
    facts: Record = {
        "task": run.task,
        "model": {name: getattr(config, name, "") for name in ("arch", "model_type")},
        "parameters": {"trained": trained, "frozen": sum(count for count, _ in counts) - trained},
        "data": {split: samples_of(feed) for split, feed in feeds.items()},
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
    }
    if runner is None:
        return facts
    plan = runner.plan
    facts |= {"epochs": plan.epochs, "steps": plan.steps, "done": runner.progress.step}
    return {**facts, "batch_size": run.batch_size_train, "accumulated": plan.window}


def samples_of(feed: Any) -> dict[str, int | None]:
    """Data set → samples; of a stream those of an epoch, None where that is not known."""
    found: dict[str, int | None] = {}
    for name, dataset in getattr(feed, "datasets", {}).items():
        found[name] = len(dataset) if hasattr(dataset, "__len__") else getattr(dataset, "epoch_size", None)
    return found


def device_name(device: Any) -> str:
    """`cpu`, or `cuda:0 (NVIDIA H200)`."""
    if device.type != "cuda":
        return str(device)
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def opening_lines(facts: Mapping[str, Any]) -> list[str]:
    """The first lines of a run, from `facts_of`."""
    model, parameters = facts["model"], facts["parameters"]
    name = "/".join(part for part in (model["arch"], model["model_type"]) if part) or facts["task"]
    of = f"{short(parameters['trained'])} parameters trained, {short(parameters['frozen'])} frozen"
    lines = [f"model   {name}: {of}"]
    for split, counts in facts["data"].items():
        sets = ", ".join(f"{name} {'?' if n is None else format(n, ',')}" for name, n in counts.items())
        lines.append(f"data    {split}: {sets or 'none'} sample{'' if list(counts.values()) == [1] else 's'}")
    many = f"{facts['processes']} × " if facts["processes"] > 1 else ""
    where = f"on {many}{facts['device']}, {facts['precision']}"
    if "steps" not in facts:
        return [*lines, f"run     {facts['task']}, evaluation {where}"]
    size = facts["batch_size"] * facts["accumulated"] * facts["processes"]
    done = f", {facts['done']:,} of them done" if facts["done"] else ""
    epochs = f"{facts['epochs']} epoch{'s' if facts['epochs'] > 1 else ''}"
    steps = f"{counted(facts['steps'], 'step')} of {counted(size, 'sample')}"
    return [*lines, f"run     {facts['task']}, {epochs}, {steps}{done}, {where}"]


def closing_lines(job: Path) -> list[str]:
    """The last lines of a run: its folder, and its report where it has one."""
    report = job / "report.html"
    return [f"run: {job}", *([f"report: {report}"] if report.is_file() else [])]


def short(count: int) -> str:
    """`512`, `1.3k`, `107.1M`, `3.6B`."""
    value, unit = float(count), ""
    for larger in ("k", "M", "B"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"


def summary(record: Record, epochs: int) -> str:
    """A record as one line for the terminal."""
    values = record.get("metrics") or {k: record[k] for k in ("loss", "lr", "samples_per_s") if k in record}
    numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    shown = "  ".join(f"{key} {measured(displayed(key, value))}" for key, value in numbers.items())
    return f"{record.get('split', 'train')}  epoch {record['epoch'] + 1}/{epochs}  step {record['step']}  {shown}"
