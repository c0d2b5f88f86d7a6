"""Steps of distillation beside steps of plain fine-tuning: what a teacher costs, as ratios in one table.

    python benchmarks/distill.py [--hidden 256] [--layers 12 6] [--steps 6] [--rounds 3] [--threads N] [--device cpu]

One student (an Oscar of half the depth) learns from the same batches of 60 words and 40 regions by itself, by
vanilla KD, by MKD with the logits from a cache, by MKD with a teacher that stands still, and by MKD + Reptile.
A step is all of it: losses, backward pass, clipping, AdamW. Rounds are interleaved, and the best of each is compared,
which other load on the machine disturbs least. Writes `distill.md`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from lavis_ext.common.config.schema import TermConfig, run_config
from lavis_ext.distill.settings import DistillConfig
from lavis_ext.distill.task import Distill
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.oscar.model import Oscar
from lavis_ext.processors.image import Normalizer
from lavis_ext.runners.schedule import build_optimizer
from lavis_ext.tasks import setup_task

TEXT, REGIONS, WIDTH, LABELS, WORDS, BATCH = 60, 40, 2054, 1853, 30522, 16
REPORT = Path(__file__).with_suffix(".md")
LIMITS = {"vanilla KD": None, "MKD, cached teacher": 2.2, "MKD, frozen teacher": None, "MKD + Reptile": 6.0}
CONTENDERS: dict[str, dict[str, Any] | None] = {
    "fine-tuning": None,
    "vanilla KD": {"terms": [TermConfig(name="vanilla_kd")]},
    "MKD, cached teacher": {"cache": "float16"},
    "MKD, frozen teacher": {},
    "MKD + Reptile": {"teacher_update": "reptile", "strategy": "skip"},
}


@dataclass
class Rows:
    """Questions about regions, all of full length."""

    size: int = 4 * BATCH
    name: str = "rows"
    split: str = "train"

    def __len__(self) -> int:
        return self.size

    def load(self, index: int, rng: torch.Generator) -> dict[str, Any]:
        """One sample, made from its number."""
        own = torch.Generator().manual_seed(index)
        words = torch.randint(1, WORDS, (TEXT,), generator=own)
        return {"input_ids": words, "img_feats": torch.rand(REGIONS, WIDTH, generator=own), "index": index}

    def collater(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch under the keys of the region data sets."""
        ids = torch.stack([sample["input_ids"] for sample in samples])
        names = [str(sample["index"]) for sample in samples]
        return {
            "input_ids": ids,
            "token_type_ids": torch.zeros_like(ids),
            "attention_mask": torch.ones(len(ids), TEXT + REGIONS, dtype=torch.int64),
            "img_feats": torch.stack([sample["img_feats"] for sample in samples]),
            "labels": torch.tensor([sample["index"] % LABELS for sample in samples]),
            "instance_id": names,
            "question_id": names,
        }


def model(hidden: int, layers: int, seed: int) -> Oscar:
    """An Oscar from scratch."""
    sizes = {"hidden_size": hidden, "num_attention_heads": max(hidden // 64, 1), "intermediate_size": 4 * hidden}
    sizes |= {"vocab_size": WORDS, "num_hidden_layers": layers}
    torch.manual_seed(seed)
    return Oscar.from_config(
        OscarConfig(
            arch="oscar", model_type="base", load_pretrained=False, num_labels=LABELS, sizes={"text_config": sizes}
        )
    )


def contender(keys: dict[str, Any] | None, args: argparse.Namespace, folder: str) -> Callable[[], float]:
    """A function that makes some steps and returns the steps a second."""
    depth, small = args.layers
    student = model(args.hidden, small, 1).to(args.device).train()
    settings: dict[str, Any] = {"output_dir": folder, "init_lr": 5e-5, "num_workers": 0, "batch_size_eval": BATCH}
    data = Rows()
    batches = [
        data.collater([data.load(i, torch.Generator()) for i in range(k, k + BATCH)])
        for k in range(0, len(data), BATCH)
    ]
    batches = [
        {k: v.to(args.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()} for batch in batches
    ]
    if keys is None:
        task: Any = setup_task(run_config(task="oscar_gqa", **settings), student)
    else:
        run = run_config(task="distill", distill=DistillConfig(task="oscar_gqa", teacher="given", **keys), **settings)
        task = Distill(student, run, model(args.hidden, depth, 2).requires_grad_(False).eval())
        task.before_train(SimpleNamespace(datasets={data.name: data}, normalizer=Normalizer()), 10**6)
    optimizer = build_optimizer(student, task.run)

    def step(batch: Mapping[str, Any]) -> None:
        loss = task.step(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def measure() -> float:
        settle(args.device)
        began = time.perf_counter()
        for number in range(args.steps):
            step(batches[number % len(batches)])
        settle(args.device)
        return args.steps / (time.perf_counter() - began)

    step(batches[0])
    return measure


def settle(device: str) -> None:
    """Wait for what was asked of a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def table(rates: Mapping[str, Sequence[float]], args: argparse.Namespace) -> str:
    """The report."""
    plain = max(rates["fine-tuning"])
    depth, small = args.layers
    lines = [
        "# Distillation beside fine-tuning",
        "",
        f"Oscar of {small} layers learning from one of {depth}, width {args.hidden}, batches of {BATCH} x"
        f" ({TEXT} words + {REGIONS} regions), {args.device}, {torch.get_num_threads()} threads,"
        f" torch {torch.__version__}, {platform.machine()}. Best of {args.rounds} interleaved rounds"
        f" of {args.steps} steps.",
        "",
        "| | steps/s | time of a step, fine-tuning = 1 | at most |",
        "|---|---|---|---|",
    ]
    for name, found in rates.items():
        limit = LIMITS.get(name)
        lines.append(f"| {name} | {max(found):.2f} | {plain / max(found):.2f} | {limit or ''} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, nargs=2, default=[12, 6], metavar=("TEACHER", "STUDENT"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the rates of each round, and leave the page alone")
    parser.add_argument("--no-report", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        measures = {name: contender(keys, args, folder) for name, keys in CONTENDERS.items()}
        rates: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(args.rounds):
            for name, measure in measures.items():
                rates[name].append(measure())
    if args.json:
        print(json.dumps(rates))
        return
    report = table(rates, args)
    print(report)
    if not args.no_report:
        REPORT.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
