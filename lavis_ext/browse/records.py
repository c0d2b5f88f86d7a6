"""What a job folder says about its run, read with patience: a missing or torn file is an empty answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]
CLOCKED = ("samples_per_s", "data_wait", "peak_memory_mb")
NO_LOSS = {"kind", "step", "epoch", "lr", "grad_norm", "skipped", *CLOCKED}


@dataclass(frozen=True)
class RunRecords:
    """A run as its report shows it."""

    folder: Path
    facts: Record = field(default_factory=dict)
    data: Record = field(default_factory=dict)
    faults: Record = field(default_factory=dict)
    steps: list[Record] = field(default_factory=list)
    evaluations: list[Record] = field(default_factory=list)
    galleries: list[Record] = field(default_factory=list)
    answers: list[Record] = field(default_factory=list)
    """How answers fared, one a split."""
    config: str = ""

    @property
    def name(self) -> str:
        """The id of the job."""
        return str(self.facts.get("job", self.folder.name))

    @property
    def best(self) -> Record:
        """`metric`, `step`, `epoch` and `split` of the best evaluation; {} without one."""
        return dict(self.facts.get("best") or {})

    @property
    def loss_names(self) -> list[str]:
        """The losses that were logged, `loss` first."""
        names = {key for record in self.steps for key in record if key not in NO_LOSS}
        return sorted(names, key=lambda name: (name != "loss", name))


def read_run(folder: Path, data: Mapping[str, Any] | None = None) -> RunRecords:
    """All that the report needs; `data` replaces the folder's `data.json`."""
    lines = read_lines(folder / "log.jsonl")
    config = folder / "config.yaml"
    return RunRecords(
        folder=folder,
        facts=read_object(folder / "run.json"),
        data=dict(data) if data is not None else read_object(folder / "data.json"),
        faults=read_object(folder / "faults.json"),
        steps=[line for line in lines if line.get("kind") == "train"],
        evaluations=[line for line in lines if line.get("kind") == "eval" and isinstance(line.get("metrics"), dict)],
        galleries=[
            read_object(file) | {"folder": str(file.parent)}
            for file in sorted(folder.glob("result/gallery/*/index.json"))
        ],
        answers=[read_object(file) for file in sorted(folder.glob("result/breakdown/*.json"))],
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )


def read_lines(path: Path) -> list[Record]:
    """The JSON objects of a file of lines; torn lines are left out."""
    if not path.is_file():
        return []
    found = (parse(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [line for line in found if line]


def read_object(path: Path) -> Record:
    """A JSON object; {} if there is none."""
    return parse(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}


def parse(text: str) -> Record:
    """A JSON object from text; {} for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float:
    """A float, nan for what is none."""
    return float(value) if isinstance(value, (int, float)) else math.nan
