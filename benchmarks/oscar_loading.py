"""Training tokens a second of an Oscar on VQA-like data: our loader and collater beside upstream's way of feeding it.

    python benchmarks/oscar_loading.py [--steps 20] [--rounds 3] [--batch 32] [--size small] [--device cpu]

Upstream's way is written here as its code does it (oscar/run_vqa.py): features in a dictionary of tensors, each item
padded to 128 tokens and 50 regions by itself, its target a list of 3,129 numbers, `default_collate`. Ours reads the
same records from a store and pads to the longest of the batch; a third way is ours with `run.group_by_length`. All
feed the same model, forward and backward and a step of AdamW, in turns; a token is one that is no padding. There are
200 batches of records, so that windows of 50 are whole, as in any published data set. `--size` is tiny (the demo's),
small (4 layers of 256) or base (BERT's). Prints a table, and writes it to `oscar_loading.md` with `--write`.

On a machine that others use too, OMP_NUM_THREADS=1 and short rounds keep the ratios fair: where one thread waits for
another, the way that does more in torch loses more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from lavis_ext.common.config.schema import AnnotationConfig, BuildInfo, DatasetConfig
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.collate import to_device
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.features import FeatureRow, create_store, open_store
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.oscar.model import Oscar
from lavis_ext.oscar.wordpiece import WordPiece, find_vocab, load_wordpiece

REPORT = Path(__file__).with_suffix(".md")
VOCAB = "models/oscar/tokenizer-tiny/vocab.txt"
LABELS, COLUMNS = 3129, 2054
MAX_TEXT, MAX_REGIONS = 128, 50
BATCHES = 200
SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4},
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}


# --- what is read --------------------------------------------------------------------------------------------------


def write_world(root: Path, images: int, questions: int, words: list[str]) -> None:
    """A store of images with about 30 regions, questions of 4 to 14 words with 5 to 20 tags, and labels."""
    rng, numbers = random.Random(0), np.random.default_rng(0)
    block = np.maximum(numbers.standard_normal((400, COLUMNS), np.float32), 0)
    with create_store(root / "store") as writer:
        for image in range(images):
            count, begin = min(max(round(rng.gauss(30, 9)), 10), 60), rng.randrange(300)
            writer.append(FeatureRow(str(image), block[begin : begin + count]))
    rows = [
        {
            "q": " ".join(rng.choices(words, k=rng.randint(4, 14))),
            "o": ";".join(rng.choices(words, k=rng.randint(5, 20))),
            "an": [rng.randrange(LABELS)],
            "s": [1.0],
            "img_id": rng.randrange(images),
        }
        for _ in range(questions)
    ]
    (root / "train.json").write_text(json.dumps(rows))
    (root / "labels.json").write_text(json.dumps([{"id": n, "answer": f"answer {n}"} for n in range(LABELS)]))


# --- upstream's way ------------------------------------------------------------------------------------------------


class FixedDataset(Dataset[tuple[Tensor, ...]]):
    """oscar/run_vqa.py's VQADataset: one padded tensor for each input of each item."""

    def __init__(self, root: Path, words: WordPiece) -> None:
        self.rows = json.loads((root / "train.json").read_text())
        store = open_store(root / "store")
        self.features = {int(name): torch.from_numpy(store[name].features.copy()) for name in store}
        self.labels = {n: n for n in range(LABELS)}
        self.words = words

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        row, words = self.rows[index], self.words
        first, second = words.encode(row["q"]), words.encode(row["o"].replace(";", " "))
        while len(first) + len(second) > MAX_TEXT - 3:
            (first if len(first) > len(second) else second).pop()
        ids = [words.cls, *first, words.sep]
        types = [0] * len(ids) + [1] * (len(second) + 1)
        ids += [*second, words.sep]
        mask = [1] * len(ids)
        while len(ids) < MAX_TEXT:
            ids.append(0)
            types.append(0)
            mask.append(0)
        features = self.features[row["img_id"]][:MAX_REGIONS]
        mask += [1] * len(features) + [0] * (MAX_REGIONS - len(features))
        features = torch.cat([features, torch.zeros(MAX_REGIONS - len(features), COLUMNS)])
        target = [0.0] * LABELS
        for label, score in zip(row["an"], row["s"], strict=True):
            target[self.labels[label]] = score
        return torch.tensor(ids), torch.tensor(mask), torch.tensor(types), torch.tensor(target), features


def fixed_batches(root: Path, batch: int, workers: int, words: WordPiece) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Batches by torch's loader."""
    data = FixedDataset(root, words)

    def batches(seed: int) -> Iterator[dict[str, Any]]:
        order = torch.Generator().manual_seed(seed)
        loader = DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=workers, generator=order)
        for ids, mask, types, target, features in loader:
            named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            yield {**named, "targets": target, "img_feats": features}

    return batches


# --- our way -------------------------------------------------------------------------------------------------------


def our_batches(root: Path, batch: int, workers: int, group: bool) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Batches of the shape `region_vqa` through the mixture."""
    args: dict[str, Any] = {"features": str(root / "store"), "label_file": str(root / "labels.json"), "vocab": VOCAB}
    args |= {"max_seq_length": MAX_TEXT, "max_img_seq_length": MAX_REGIONS}
    info = BuildInfo(annotations={"train": AnnotationConfig(storage=["train.json"])})
    config = DatasetConfig(name="bench", builder="region_vqa", data_type="features", build_info=info, args=args)
    data = build_datasets(config, BuildContext(root))["train"]

    def batches(seed: int) -> Iterator[dict[str, Any]]:
        policy: dict[str, Any] = {"batch_size": batch, "seed": seed, "num_workers": workers, "group_by_length": group}
        return iter(Mixture({"bench": data}, drop_last=True, **policy))

    return batches


# --- measuring -----------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What one contender did in each round: real tokens a second alone and with the model, and its padded width."""

    feeding: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    width: list[float] = field(default_factory=list)


def measure(
    batches: Callable[[int], Iterator[dict[str, Any]]], model: Oscar | None, steps: int, seed: int, device: torch.device
) -> tuple[float, float]:
    """Real tokens a second over some batches after two to warm up, and their mean width with padding."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5) if model else None
    tokens = widths = 0
    begin = 0.0
    stream = batches(seed)
    for number in range(steps + 2):
        if number == 2:
            synchronise(device)
            begin = time.perf_counter()
        batch = next(stream)
        if number >= 2:
            tokens += int(batch["attention_mask"].sum())
            widths += batch["attention_mask"].shape[1]
        if model is not None and optimizer is not None:
            loss = model(to_device(batch, device))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    synchronise(device)
    return tokens / (time.perf_counter() - begin), widths / steps


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def make_model(size: str, device: torch.device) -> Oscar:
    """A classifier of VQA's answers with random weights."""
    sizes = {"text_config": SIZES[size]}
    head: dict[str, Any] = {"num_labels": LABELS, "loss_type": "bce", "sizes": sizes}
    config = OscarConfig(arch="oscar", model_type=size, load_pretrained=False, tokenizer=VOCAB, **head)
    torch.manual_seed(0)
    model = Oscar.from_config(config)
    model.to(device).train()
    return model


def compare(args: argparse.Namespace, root: Path) -> dict[str, Run]:
    """All ways in turns."""
    words = load_wordpiece(find_vocab(VOCAB))
    write_world(
        root, args.images, args.batch * max(BATCHES, args.steps + 4), [word for word in words.tokens if word.isalpha()]
    )
    device = torch.device(args.device)
    ways = {
        "upstream's way": fixed_batches(root, args.batch, args.workers, words),
        "ours": our_batches(root, args.batch, args.workers, group=False),
        "ours, group_by_length": our_batches(root, args.batch, args.workers, group=True),
    }
    runs = {name: Run() for name in ways}
    for seed in range(args.rounds):
        for name, batches in ways.items():
            model = make_model(args.size, device)
            feeding, width = measure(batches, None, args.steps, seed, device)
            training, _ = measure(batches, model, args.steps, seed, device)
            runs[name].feeding.append(feeding)
            runs[name].training.append(training)
            runs[name].width.append(width)
            print(f"round {seed + 1}: {name}: {training:,.0f} tokens/s in training", file=sys.stderr)
    return runs


def table(runs: dict[str, Run]) -> list[str]:
    """Medians, and medians of the ratios of each round."""
    base = runs["upstream's way"]
    lines = [
        "| way | padded width | tokens/s fed | ratio | tokens/s in training | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        fed, trained = (
            median(one / other for one, other in zip(mine, theirs, strict=True))
            for mine, theirs in ((run.feeding, base.feeding), (run.training, base.training))
        )
        figures = f"{median(run.feeding):,.0f} | {fed:.2f} | {median(run.training):,.0f} | {trained:.2f}"
        lines.append(f"| {name} | {median(run.width):.0f} | {figures} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="of all: processes of torch's loader, threads of ours")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = table(compare(args, Path(folder)))
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{os.cpu_count()} cores"
    threads = f"{torch.get_num_threads()} of its threads"
    where = f"{name} ({platform.machine()}), torch {torch.__version__}, {threads}, load {os.getloadavg()[1]:.1f}"
    used = f"`python benchmarks/oscar_loading.py --size {args.size} --device {args.device} --batch {args.batch}`"
    told = f"{used}, {args.workers} workers, medians of {args.rounds} rounds in turns of {args.steps} steps; {where}."
    text = "\n".join(["# Feeding an Oscar", "", told, "", *lines, ""])
    print(text)
    if args.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
