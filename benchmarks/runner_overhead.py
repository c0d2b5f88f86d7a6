"""A step under the runner beside a bare PyTorch loop over the same model and batches: what the loop costs, in per cent.

    [torchrun --standalone --nproc-per-node 2] benchmarks/runner_overhead.py [--arch blip2_opt] [--type tiny] [--large]
        [--batch 32] [--steps 10] [--rounds 7] [--device auto] [--precision no] [--threads N]

All normalise the pictures, run the model forwards and backwards and move the same AdamW; the runner also sets the
rate, takes the norm of the gradient, judges losses, counts and logs. A loop over accelerate's parts, as its examples
have it, runs beside. Several processes average gradients by DistributedDataParallel. Rounds are interleaved, medians
compared. The target is 2 % at most. Prints a table with the machine's name, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))

from lavis_ext.common.config.schema import RunConfig, run_config
from lavis_ext.common.types import Batch
from lavis_ext.datasets.collate import to_device
from lavis_ext.models.zoo import build_model, default_config
from lavis_ext.processors.image import Normalizer
from lavis_ext.runners.device import build_accelerator
from lavis_ext.runners.hooks import ScheduleHook
from lavis_ext.runners.logs import JsonLog, LogHook
from lavis_ext.runners.runner_base import RunnerBase
from lavis_ext.runners.schedule import build_optimizer
from lavis_ext.tasks import setup_task

LIMIT_PERCENT = 2.0
WIDE = {"hidden_size": 512, "num_attention_heads": 8}
LARGE = {
    "vision_config": {**WIDE, "intermediate_size": 2048, "num_hidden_layers": 8},
    "qformer_config": {**WIDE, "intermediate_size": 2048, "num_hidden_layers": 2},
    "text_config": {**WIDE, "word_embed_proj_dim": 512, "ffn_dim": 2048, "num_hidden_layers": 8},
}
"""About 60 M parameters in the place of the tiny type's 0.6 M."""
CAPTION = "a small red circle to the left of two green triangles above a yellow star"


@dataclass
class Batches:
    """The same few batches in memory, over and over, with the interface of a mixture."""

    batches: list[Batch]
    normalizer: Normalizer

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self.batches


def make_batches(size: int, edge: int, count: int = 4) -> Batches:
    """Batches of noise, uint8 [size, 3, edge, edge], with one caption."""
    generator = torch.Generator().manual_seed(0)
    pixels = [
        torch.randint(0, 256, (size, 3, edge, edge), generator=generator, dtype=torch.uint8) for _ in range(count)
    ]
    texts = {
        "text_input": [CAPTION] * size,
        "image_id": list(range(size)),
        "instance_id": [str(i) for i in range(size)],
    }
    return Batches([{"image": image, **texts} for image in pixels], Normalizer())


def make_runner(run: RunConfig, model: Any, batches: Batches, folder: Path) -> RunnerBase:
    """A runner that stands before its first step."""
    evaluator: Any = SimpleNamespace(job_dir=folder)
    hooks = [ScheduleHook(), LogHook(JsonLog(folder / "log.jsonl"))]
    runner = RunnerBase.of(run, setup_task(run, model), batches, evaluator, hooks, build_accelerator(run))
    runner.task.model.train()
    runner.notify("before_train")
    return runner


def runner_step(runner: RunnerBase) -> None:
    """One step as in `RunnerBase.run_epoch`."""
    runner.notify("after_step", runner.run_step(1))


def bare_loop(model: nn.Module, feed: Iterator[Batch], run: RunConfig, device: torch.device) -> Callable[[], None]:
    """One step as a tutorial has it."""
    optimizer = build_optimizer(model, run)  # type: ignore[arg-type]
    wrapped = DistributedDataParallel(model) if torch.distributed.is_initialized() else model
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.precision or "no")

    def step() -> None:
        moved = to_device(next(feed), device, Normalizer())
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            loss = wrapped(moved)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def accelerate_loop(
    model: nn.Module, feed: Iterator[Batch], run: RunConfig, device: torch.device
) -> Callable[[], None]:
    """One step as accelerate's examples have it: a schedule, and the sum of the losses for the log."""
    accelerator = Accelerator(cpu=device.type == "cpu")
    made = build_optimizer(model, run)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1.0)
    wrapped, optimizer, scheduler = accelerator.prepare(model, made, schedule)
    total = torch.zeros((), device=device)

    def step() -> None:
        loss = wrapped(to_device(next(feed), device, Normalizer()))["loss"]
        total.add_(loss.detach().float())
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None], count: int, device: torch.device) -> float:
    """Of one step, the mean over `count`."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds a step of each round, for the bare loop and the runner."""
    keys = {"tensorboard": False, "report": False, "max_iters": 10**6, "iters_per_inner_epoch": 10**6}
    run = run_config(task="image_text_pretrain", device=args.device, precision=args.precision, init_lr=1e-4, **keys)
    config = default_config(args.arch, args.type)
    for part, sizes in LARGE.items() if args.large else ():
        config.sizes[part].update(sizes)
    torch.manual_seed(0)
    model: Any = build_model(config)
    twins = deepcopy(model), deepcopy(model)
    batches = make_batches(args.batch, config.image_size)
    runner = make_runner(run, model, batches, folder)
    device = runner.accelerator.device
    loops = zip((bare_loop, accelerate_loop), twins, strict=True)
    bare, peer = (make(twin.to(device).train(), iter(batches), run, device) for make, twin in loops)

    def ours() -> None:
        runner_step(runner)

    order: list[tuple[str, Callable[[], None]]] = [("bare loop", bare), ("runner", ours), ("accelerate's loop", peer)]
    found: dict[str, list[float]] = {name: [] for name, _ in order}
    for number in range(args.rounds + 1):  # the first warms up
        for name, step in order if number % 2 else order[::-1]:
            taken = seconds(step, args.steps if number else 1, device)
            found[name] += [taken] if number else []
    return found


def machine(device: str) -> str:
    """What the figures are of."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() and device != "cpu" else "no GPU"
    name = f"{platform.node()}, {platform.machine()}, {torch.get_num_threads()} threads, {gpu}"
    return f"{name}; torch {torch.__version__}"


def table(found: dict[str, list[float]], args: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    medians = {name: median(values) for name, values in found.items()}
    percent = median(100 * (a / b - 1) for a, b in zip(found["runner"], found["bare loop"], strict=True))
    verdict = "within" if percent <= LIMIT_PERCENT else "beyond"
    return [
        f"{machine(args.device)}",
        f"{args.arch} {'of 60 M parameters' if args.large else args.type}, batch {args.batch}, "
        f"precision {args.precision}, {args.rounds} rounds of {args.steps} steps",
        "",
        "| | ms a step (median) | least | most |",
        "|---|---|---|---|",
        *(f"| {n} | {1e3 * medians[n]:.2f} | {1e3 * min(v):.2f} | {1e3 * max(v):.2f} |" for n, v in found.items()),
        "",
        f"overhead: {percent:+.2f} % (median of the rounds), {verdict} {LIMIT_PERCENT:g} %",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="blip2_opt")
    parser.add_argument("--type", default="tiny")
    parser.add_argument("--large", action="store_true", help="60 M parameters in the place of blip2_opt's tiny ones")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print the seconds of each step")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found) if args.json else "\n".join(table(found, args)))


if __name__ == "__main__":
    main()
