"""A small distillation under torchrun: each rank leaves what training moved, and rank 0 its checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lavis_ext.runner import checkpoint
from lavis_ext.runner.loop import Runner
from tests.support.distilling import distill_runner, moved


def trained(folder: Path, **keys: Any) -> Runner:
    """A run to its end, from the newest checkpoint if there is one; without dropout, which ranks draw apart."""
    runner = distill_runner(folder, drop_out=0.0, **keys)
    saved = checkpoint.load_newest(folder / "job")
    if saved is not None:
        runner.restore(saved)
    runner.train()
    (folder / f"moved_{runner.accelerator.process_index}.json").write_text(json.dumps(moved(runner)))
    return runner


if __name__ == "__main__":
    trained(Path(sys.argv[1]), **json.loads(sys.argv[2]))
