"""The verb `watch`: a run that goes on elsewhere, in the terminal; plain lines where there is none."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_ext.browse.html import figure
from lavis_ext.browse.run_report import (
    Record,
    best_record,
    duration,
    finite,
    headline,
    moment,
    parse,
    read_facts,
    read_run,
)
from lavis_ext.browse.runs_page import find_runs, flat, is_run, parsed
from lavis_ext.cli.verb import REQUIRED, Answer, examples, flag, to_stdout
from lavis_ext.common.errors import TrainingError, UsageError
from lavis_ext.common.files import expanded, not_there, read_errors
from lavis_ext.common.secrets import printable
from lavis_ext.common.wording import displayed

SPARKS = "▁▂▃▄▅▆▇█"
RUNS = "name the folder of a run, or the one that holds runs"
CURVE = 60
"""Losses that the curve in the terminal shows."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Flags of `watch`."""

    run: Path = flag(
        REQUIRED, positional=True, metavar="RUN", help="the folder of a run, or one that holds runs: the newest"
    )
    every: float = flag(1.0, metavar="S", help="look every S seconds (default: 1)")
    json: bool = False


@examples("watch output/my-run", "watch output", "watch output/my-run --json")
def watch(args: Watch) -> Answer:
    """Show how a run goes on until it ends; with its exit code, 11 where its process is gone."""
    if not 0 < args.every <= 3600:
        raise UsageError("--every", f"is {args.every:g} seconds", "give more than 0 and at most 3600")
    folder = newest(args.run)
    seen = Seen(folder)
    with read_errors(folder):
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not args.json:
            live(seen, args.every)
        else:
            for record in seen.follow(args.every):
                to_stdout(json.dumps(record, ensure_ascii=False) if args.json else printable(line_of(record)))
    facts, best = read_facts(folder), best_record(read_run(folder))
    code = 0 if facts.get("status") in ("finished", "evaluated") else facts.get("exit_code")
    code = code if isinstance(code, int) else TrainingError.exit_code
    lines = [f"{facts.get('status')}: {facts['error']}" if facts.get("error") else str(facts.get("status"))]
    if best:
        name, value = headline(best["metrics"])
        lines.append(f"best {name} {figure(value)} on {best.get('split')}, step {best.get('step')}")
    row = {"run": str(folder), "status": facts.get("status"), "best": best}
    return Answer([*lines, f"run: {folder}"], [row], code)


def newest(path: Path) -> Path:
    """The folder of a run: `path`, or the one below it that was written last; raises UsageError."""
    folder = expanded(path)
    if is_run(folder):
        return folder
    if not folder.is_dir():
        found_not = ("is a file", RUNS) if folder.exists() else not_there(path, "folder", otherwise=RUNS)
        raise UsageError(str(path), *found_not)
    found = [one for one in find_runs(folder) if (one / "log.jsonl").is_file() or (one / "run.json").is_file()]
    if not found:
        raise UsageError(str(path), "holds no run", RUNS)
    return max(found, key=changed)


def changed(run: Path) -> float:
    """When a file of a run was last written; those that are just being given their name are passed over."""
    times = [run.stat().st_mtime]
    for file in run.iterdir():
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times)


@dataclass
class Seen:
    """What was seen of a run so far."""

    folder: Path
    offset: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=CURVE))
    last: Record = field(default_factory=dict)
    evaluated: list[Record] = field(default_factory=list)

    def follow(self, every: float) -> Iterator[Record]:
        """The records of the log as they come, until the run ends."""
        while True:
            running = self.running  # asked before the log is read: what it wrote last is seen
            yield from self.more()
            if not running:
                return
            time.sleep(every)

    @property
    def running(self) -> bool:
        """Whether the run says so, and its process is there."""
        return str(read_facts(self.folder).get("status", "running")) == "running"

    def more(self) -> list[Record]:
        """The whole lines that the log has got; from its beginning where a resume has cut it."""
        path = self.folder / "log.jsonl"
        if not path.is_file():
            return []
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self.offset:
                self.offset = 0
            file.seek(self.offset)
            whole = file.read().rpartition(b"\n")[0]
        self.offset += len(whole) + 1 if whole else 0
        records = [record for line in whole.decode("utf-8", "replace").split("\n") if (record := parse(line))]
        for record in records:
            if record.get("kind") == "train":
                self.last = record
                self.losses.extend([loss] if (loss := finite(record.get("loss"))) is not None else [])
            elif isinstance(record.get("metrics"), dict):
                self.evaluated.append(record)
        return records


def line_of(record: Record) -> str:
    """`train  epoch 1  step 20  loss 2.31  lr 0.0001  46.3 samples/s`; of an evaluation its metrics."""
    epoch = f"epoch {int(one) + 1}  " if (one := finite(record.get("epoch"))) is not None else ""
    metrics = record.get("metrics")
    values = metrics if isinstance(metrics, dict) else {key: record.get(key) for key in ("loss", "lr", "samples_per_s")}
    numbers = {name: value for name, one in values.items() if (value := finite(one)) is not None}
    shown = "  ".join(f"{name} {figure(displayed(name, value))}" for name, value in numbers.items())
    kind = record.get("split") if metrics else record.get("kind", "")
    return f"{kind}  {epoch}step {record.get('step', '')}  {shown}"


def live(seen: Seen, every: float) -> None:
    """Show the state in place until the run ends; evaluations stay as lines above it."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    settings = flat(parsed(read_run(seen.folder).config))
    console = Console(no_color=bool(os.environ.get("NO_COLOR")))
    with Live(console=console, transient=True, auto_refresh=False) as shown:
        for _ in ticks(seen, every):
            for record in seen.evaluated:
                console.print(Text(printable(line_of(record), kept="")))
            seen.evaluated.clear()
            shown.update(Text(printable("\n".join(state_lines(seen, settings)))), refresh=True)


def ticks(seen: Seen, every: float) -> Iterator[None]:
    """After each look at the log, until the run ends."""
    while True:
        running = seen.running
        seen.more()
        yield
        if not running:
            return
        time.sleep(every)


def state_lines(seen: Seen, settings: dict[str, Any]) -> list[str]:
    """Name, epoch, step, loss with its curve, rate and time."""
    facts, last = read_facts(seen.folder), seen.last
    epochs, epoch = finite(settings.get("run.max_epoch")), finite(last.get("epoch"))
    start = moment(facts.get("started"))
    passed = f"  {duration(time.time() - start.timestamp())}" if start else ""
    of = f" of {epochs:.0f}" if epochs else ""
    where = f"epoch {epoch + 1:.0f}{of}  step {last.get('step', '')}" if epoch is not None else "no step yet"
    lines = [f"{seen.folder.name}  {facts.get('status', 'running')}  {where}{passed}"]
    if seen.losses:
        speed = finite(last.get("samples_per_s"))
        rate = "" if speed is None else f"  {figure(speed)} samples/s"
        lines.append(f"loss {figure(seen.losses[-1])}  {curve(list(seen.losses))}{rate}")
    return lines


def curve(values: list[float]) -> str:
    """Values as a line of blocks."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(SPARKS[min(int((value - low) / span * len(SPARKS)), len(SPARKS) - 1)] for value in values)
