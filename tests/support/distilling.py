"""A small Oscar and a smaller one that learns from it, on region rows that are made from a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lavis_ext.common.config.schema import ModelConfig, RunConfig, TermConfig, run_config
from lavis_ext.distill.settings import DistillConfig
from lavis_ext.distill.task import Distill
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.oscar.model import Oscar
from lavis_ext.runners import checkpoint
from lavis_ext.runners.checkpoint import seed_everything
from lavis_ext.runners.device import build_accelerator
from lavis_ext.runners.evaluation import Evaluator
from lavis_ext.runners.hooks import CheckpointHook, EvaluateHook, ScheduleHook, SignalHook
from lavis_ext.runners.logs import JsonLog, LogHook
from lavis_ext.runners.runner_base import Hook, RunnerBase
from tests.support.oscar_tasks import Words
from tests.support.toys import ToyFeed

LABELS, WORDS, WIDTH = 4, 30, 6


def section(layers: int, hidden: int = 16, labels: int = LABELS, **keys: Any) -> ModelConfig:
    """The model section of a small Oscar from scratch, without dropout unless `keys` say so."""
    sizes = {
        "hidden_size": hidden, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": WORDS,
        "num_hidden_layers": layers, "max_position_embeddings": 12, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    base: dict[str, Any] = {"img_feature_dim": WIDTH, "num_labels": labels, "drop_out": 0.0, "load_pretrained": False}
    return OscarConfig(arch="oscar", model_type="base", sizes={"text_config": sizes}, **{**base, **keys})


def oscar(layers: int, seed: int = 0, **keys: Any) -> Oscar:
    """A small Oscar with random weights of its own seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Oscar.from_config(section(layers, **keys))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)  # so that what a model says depends on what it sees
    return model


@dataclass
class Regions:
    """`size` samples: words and regions drawn by the sample's number; the label is its number modulo LABELS."""

    size: int = 12
    name: str = "toy"
    split: str = "train"
    bare: tuple[int, ...] = ()
    """Samples without a single region."""
    drawn: bool = False
    """Whether each loading draws other regions."""
    labels: Words = field(default_factory=lambda: Words([f"answer {n}" for n in range(LABELS)]))

    def __len__(self) -> int:
        return self.size

    def load(self, index: int, rng: torch.Generator) -> dict[str, Any]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(index)
        words = torch.randint(5, WORDS, (3 + index % 2,), generator=generator)
        regions = torch.randn(0 if index in self.bare else 2 + index % 3, WIDTH, generator=generator)
        if self.drawn:
            regions = regions + torch.randn(regions.shape, generator=rng)
        return {"input_ids": words, "img_feats": regions, "labels": index % LABELS, "instance_id": str(index)}

    def collater(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([s["input_ids"] for s in samples], batch_first=True)
        longest = max(max(len(s["img_feats"]) for s in samples), 1)
        regions = torch.zeros(len(samples), longest, WIDTH)
        seen = torch.zeros(len(samples), longest, dtype=torch.int64)
        for row, sample in enumerate(samples):
            regions[row, : len(sample["img_feats"])] = sample["img_feats"]
            seen[row, : len(sample["img_feats"])] = 1
        names = [sample["instance_id"] for sample in samples]
        return {
            "input_ids": ids, "token_type_ids": torch.zeros_like(ids), "img_feats": regions,
            "attention_mask": torch.cat([(ids > 0).long(), seen], 1), "instance_id": names, "question_id": names,
            "labels": torch.tensor([sample["labels"] for sample in samples]),
        }  # fmt: skip

    def batch(self, *indices: int) -> dict[str, Any]:
        return self.collater([self.load(i, torch.Generator()) for i in indices])


def run_section(folder: Path | str = "output", **keys: Any) -> RunConfig:
    """A run of three epochs on the CPU; keys of `distill` go to its own section."""
    own = {name: keys.pop(name) for name in list(keys) if name in DistillConfig.__dataclass_fields__}
    own["terms"] = [TermConfig(**t) if isinstance(t, dict) else TermConfig(name=t) for t in own.get("terms", ["mkd"])]
    distill = DistillConfig(**{"task": "oscar_gqa", "teacher": "given", **own})
    base: dict[str, Any] = {
        "task": "distill", "output_dir": str(folder), "job_id": "job", "device": "cpu", "max_epoch": 3, "init_lr": 0.01,
        "batch_size_train": 4, "batch_size_eval": 4, "log_freq": 1, "tensorboard": False, "report": False,
        "train_splits": ["train"], "num_workers": 0, "lr_sched": "constant_lr",
    }  # fmt: skip
    return run_config(**{**base, **keys, "distill": distill})


def distilled(student: Oscar, teacher: Oscar, **keys: Any) -> Distill:
    """The task over two models that are there."""
    return Distill(student.train(), run_section(**keys), teacher.requires_grad_(False).eval())


def distill_runner(
    folder: Path, extra: Sequence[Hook] = (), drop_out: float = 0.2, data: Regions | None = None, **keys: Any
) -> RunnerBase:
    """A runner of a 2-layer student and a 4-layer teacher, at its start."""
    torch.set_num_threads(1)
    run = run_section(folder, **keys)
    seed_everything(run.seed)
    task = Distill(oscar(2, 1, drop_out=drop_out), run, oscar(4, 2).requires_grad_(False).eval())
    accelerator = build_accelerator(run)
    job = folder / "job"
    job.mkdir(parents=True, exist_ok=True)
    feeds = {split: ToyFeed(Regions(8, split=split), 4, shuffle=False) for split in run.valid_splits}  # type: ignore[arg-type]
    hooks = [SignalHook(), ScheduleHook(), LogHook(JsonLog(job / "log.jsonl")), EvaluateHook(), CheckpointHook()]
    rank, world = accelerator.process_index, accelerator.num_processes
    feed = ToyFeed(data or Regions(), run.batch_size_train, rank=rank, world=world)  # type: ignore[arg-type]
    return RunnerBase.of(
        run, task, feed, Evaluator(task, feeds, job, accelerator, run.seed), [*hooks, *extra], accelerator
    )


def resumed(folder: Path, **keys: Any) -> RunnerBase:
    """A new runner that goes on from the newest checkpoint of the folder."""
    runner = distill_runner(folder, **keys)
    saved = checkpoint.load_newest(folder / "job")
    assert saved is not None
    runner.restore(saved)
    return runner


def moved(runner: RunnerBase) -> list[Any]:
    """Everything that training moves, of student and teacher, comparable bit by bit."""
    tensors = [*runner.model.state_dict().values(), *runner.task.teacher.state_dict().values()]
    states = [runner.optimizer.state]
    update = runner.task.update
    if update is not None and update.outer.optimizer is not None:
        states.append(update.outer.optimizer.state)
    tensors += [v for state in states for held in state.values() for v in held.values() if isinstance(v, torch.Tensor)]
    return [tensor.tolist() for tensor in tensors]
