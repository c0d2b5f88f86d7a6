"""A toy run for `torchrun`: `python -m torch.distributed.run … ranks.py FOLDER JSON` trains and leaves its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lavis_ext.runner import checkpoint
from tests.support.runs import toy_runner, weights


def main() -> None:
    """Train, or go on, with the keys given as JSON; rank 0 writes the weights."""
    folder, keys = Path(sys.argv[1]), json.loads(sys.argv[2])
    poisoned = keys.pop("poisoned", None)
    runner = toy_runner(folder, **keys)
    runner.model.drop.p = 0.0
    runner.model.poisoned = poisoned
    saved = checkpoint.load_newest(folder / "job")
    if saved is not None:
        runner.restore(saved)
    runner.train()
    if runner.is_main:
        (folder / "weights.json").write_text(json.dumps(weights(runner)))


if __name__ == "__main__":
    main()
