"""A runner over toys in a folder, with the hooks of a real run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lavis_ext.datasets.mixture import Mixture
from lavis_ext.models import load_model
from lavis_ext.models.base_model import whole
from lavis_ext.runners import checkpoint
from lavis_ext.runners.checkpoint import seed_everything
from lavis_ext.runners.device import build_accelerator
from lavis_ext.runners.evaluation import Evaluator
from lavis_ext.runners.hooks import CheckpointHook, EvaluateHook, ScheduleHook, SignalHook
from lavis_ext.runners.logs import JsonLog, LogHook
from lavis_ext.runners.runner_base import Hook, RunnerBase
from tests.support.toys import ToyDataset, ToyFeed, ToyModel, ToyTask, toy_run


def toy_runner(
    folder: Path,
    extra: Sequence[Hook] = (),
    size: int = 12,
    metrics: Sequence[float] = (0.5,),
    arch: str = "",
    edge: int = 4,
    mixed: bool = False,
    **keys: Any,
) -> RunnerBase:
    """A runner that stands at its start; `keys` go to the run section, `arch` names a tiny model instead of the toy.

    With `mixed` the batches are a mixture's.
    """
    torch.set_num_threads(1)
    run = toy_run(folder, **keys)
    seed_everything(run.seed)
    task = ToyTask(load_model(arch, "tiny") if arch else ToyModel(), run)
    task.remaining = list(metrics)
    accelerator = build_accelerator(run)
    job = folder / "job"
    job.mkdir(parents=True, exist_ok=True)
    splits = dict.fromkeys([*run.valid_splits, *run.test_splits])
    feeds = {split: EvaluationFeed(ToyDataset(4, split=split, edge=edge)) for split in splits}
    evaluator = Evaluator(task, feeds, job, accelerator, run.seed)
    hooks = [
        SignalHook(),
        ScheduleHook(),
        LogHook(JsonLog(job / "log.jsonl")),
        EvaluateHook(),
        CheckpointHook(),
        *extra,
    ]
    share = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    dataset, count = ToyDataset(size, edge=edge), run.batch_size_train
    batches = (
        Mixture({"toy": dataset}, batch_size=count, seed=run.seed, num_workers=0, drop_last=True, **share)
        if mixed
        else ToyFeed(dataset, count, **share)
    )
    return RunnerBase.of(run, task, batches, evaluator, hooks, accelerator)


class EvaluationFeed(ToyFeed):
    """All samples in order, every time."""

    def __init__(self, dataset: ToyDataset) -> None:
        super().__init__(dataset, shuffle=False)


def resumed(folder: Path, **keys: Any) -> RunnerBase:
    """A new runner that goes on from the newest checkpoint of the folder."""
    runner = toy_runner(folder, **keys)
    saved = checkpoint.load_newest(folder / "job")
    assert saved is not None
    runner.restore(saved)
    return runner


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The records of a run without those that depend on the clock."""
    lines = (folder / "job" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    clocked = {"samples_per_s", "data_wait", "peak_memory_mb"}
    return [{k: v for k, v in json.loads(line).items() if k not in clocked} for line in lines]


def weights(runner: RunnerBase) -> list[Any]:
    """Everything that training moves, comparable bit by bit."""
    tensors = [*runner.model.state_dict().values()]
    tensors += [v for state in runner.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return [whole(t).tolist() for t in tensors]


LINEAR: dict[str, Any] = {"adam_epsilon": 1.0, "init_lr": 0.1}
"""Keys of runs whose weights are compared though their sums are taken in another order (ranks, shards).

Adam's step is lr·m / (√v + ε). With the usual ε of 1e-8 it is ±lr wherever the gradient is zero but for rounding (a key
projection's bias: softmax does not see it), so two such runs differ by whole steps. With ε = 1, far above every
gradient here, it is lr·m to first order, as under SGD with momentum: what rounding does to a gradient reaches a weight
times lr and no more.
"""


def require_close_weights(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Fail unless the weights of two runs under `LINEAR`, of at most some twenty steps, agree.

    A gradient here has entries of at most 1 (norms are clipped to 1, or losses are that small) and is a sum of up to a
    thousand terms: its float32 error is some ten units of 2^-24 ≈ 6e-7. Twenty steps of lr 0.1, and what the earlier
    ones change in the gradients of the later ones, make that 1e-5 at most. A single step of a gradient that is wrong by
    a part in a hundred moves a weight by more.
    """
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        told = f"{name}: {float((other[name] - tensor).abs().max())} apart"
        torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-5, msg=told)
