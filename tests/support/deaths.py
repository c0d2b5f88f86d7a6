"""Trainings that end at a chosen place of a chosen step: `lavis-ext train` in processes forked from a warm one."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lavis_ext.cli import main
from lavis_ext.runners import checkpoint, run
from lavis_ext.runners.evaluation import Evaluator
from lavis_ext.runners.runner_base import RunnerBase
from tests.support.pictures import encoded, pixels
from tests.support.processes import forked, free_port, leave

PLACES = ("before_step", "after_step", "tensors", "published", "pruning")
"""Gradients are there, not yet applied; applied, not saved; half a checkpoint written; written, not yet pointed to;
about to delete an old one. The last three are places of rank 0, which writes."""
Death = tuple[int, str, BaseException | signal.Signals]
"""Step, counted from 1, and place; and the signal that the process gets there, or the error that is raised."""
LIMIT_S = 120
CLOCKED = ("samples_per_s", "data_wait", "peak_memory_mb")


def write_birds(base: Path, train: int = 24, val: int = 2) -> None:
    """A data set `birds` below `base`, and the folder of its YAML, `base/configs`."""
    (base / "photos").mkdir(parents=True)
    for number in range(train + val):
        (base / "photos" / f"{number}.jpg").write_bytes(encoded(pixels(number, 24, 32)))
    for split, numbers in (("train", range(train)), ("val", range(train, train + val))):
        rows = [{"image": f"{n}.jpg", "caption": f"a red circle above {n} stars", "image_id": n} for n in numbers]
        (base / f"{split}.json").write_text(json.dumps(rows))
    processors = {"train": {"name": "blip2_image_train"}, "eval": {"name": "blip_image_eval"}}
    card = {
        "builder": "image_caption",
        "build_info": {
            "annotations": {split: {"storage": f"{base}/{split}.json"} for split in ("train", "val")},
            "images": {"storage": f"{base}/photos"},
        },
        "vis_processor": {split: {**one, "image_size": 16} for split, one in processors.items()},
        "text_processor": {"train": {"name": "blip_caption"}, "eval": {"name": "blip_caption"}},
    }
    folder = base / "configs" / "datasets" / "birds"
    folder.mkdir(parents=True)
    (folder / "defaults.yaml").write_text(yaml.safe_dump({"datasets": {"birds": card}}))


def write_run(base: Path, **keys: Any) -> Path:
    """A run file that trains the tiny BLIP-2, with dropout, on the birds for two epochs of six steps."""
    section = {
        "task": "captioning", "train_splits": ["train"], "valid_splits": ["val"], "output_dir": str(base / "runs"),
        "init_lr": 1e-3, "warmup_steps": 3, "clip_grad_norm": 1.0, "max_epoch": 2, "batch_size_train": 2,
        "batch_size_eval": 2, "accum_grad_iters": 2, "num_workers": 1, "save_steps": 1, "log_freq": 1, "device": "cpu",
        "num_beams": 1, "max_len": 2, "tensorboard": False, "report": False, "wait_minutes": 1.0,
    }  # fmt: skip
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = {"arch": "blip2_opt", "model_type": "tiny", "image_size": 16, "sizes": {"qformer_config": dropout}}
    path = base / "run.yaml"
    path.write_text(yaml.safe_dump({"model": model, "datasets": {"birds": {}}, "run": {**section, **keys}}))
    return path


def start(
    base: Path, job: str, ranks: int = 1, dies: Mapping[int, Death] | None = None, options: Sequence[str] = ()
) -> list[Any]:
    """The processes of one training, of which rank r ends as `dies[r]` says."""
    port = free_port()
    words = ["train", "--cfg-path", str(base / "run.yaml"), "--configs", str(base / "configs"), "--options"]
    words += [f"run.job_id={job}", *options]
    processes = [
        forked().Process(
            target=one, args=(words, base / f"{job}_{rank}.txt", rank, ranks, port, (dies or {}).get(rank))
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def ended(processes: Sequence[Any]) -> list[int]:
    """Their exit codes, -9 for one that was killed; one that hangs is killed, and fails the test."""
    for process in processes:
        process.join(LIMIT_S)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
        process.join()
    assert not hung, "a process hung"
    return [int(process.exitcode) for process in processes]


def one(words: list[str], said: Path, rank: int, ranks: int, port: int, dies: Death | None) -> None:
    """What a process does; what it says goes to a file."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if ranks > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    with said.open("a") as file:
        sys.stdout = sys.stderr = file
        if dies is not None:
            arm(*dies)
        code = main(words)
        leave()
        file.flush()
        os._exit(code)


def arm(step: int, place: str, cause: BaseException | signal.Signals) -> None:
    """Let this process end at a place of PLACES in a step; at "open", where it opens its data, the step is 0.

    "filled" is after a step, when the disk of the job has no room left; "evaluating" is in the evaluation after it.
    """
    at: dict[str, int] = {"step": 0}
    notify = RunnerBase.notify

    def die() -> None:
        if isinstance(cause, BaseException):
            raise cause
        os.kill(os.getpid(), cause)

    def notified(self: RunnerBase, moment: str, *args: Any) -> None:
        at["step"] = self.progress.step + (moment == "before_step")
        if at["step"] == step and (moment, place) == ("after_step", "filled"):
            fill(self.job_dir)
            die()
        if moment == place and at["step"] == step:
            die()
        notify(self, moment, *args)

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **keys: Any) -> Any:
            if at["step"] == step:
                die()
            return real(*args, **keys)

        return called

    RunnerBase.notify = notified  # type: ignore[method-assign]
    inside = {
        "tensors": (checkpoint, "sha256_of"),
        "published": (checkpoint, "_point"),
        "pruning": (checkpoint, "prune"),
        "open": (run, "open_datasets"),
        "evaluating": (Evaluator, "_rows"),
    }
    if place in inside:
        module, name = inside[place]
        setattr(module, name, before(getattr(module, name)))


def fill(folder: Path) -> None:
    """Use up what is free on the disk of a folder."""
    with suppress(OSError), (folder / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


def require_same_end(one: Path, other: Path) -> None:
    """Fail unless two jobs ended with the same weights and state, to the bit, the same best, and the same log."""
    last, same = (checkpoint.candidates(job)[0] for job in (one, other))
    assert last.name == same.name
    for name in (checkpoint.MODEL, checkpoint.TENSORS):
        assert (last / name).read_bytes() == (same / name).read_bytes(), name
    states = [json.loads((folder / checkpoint.STATE).read_text()) for folder in (last, same)]
    for state in states:
        for hook in state["hooks"].values():
            hook.pop("size", None)  # bytes of a log that holds times
    assert states[0]["progress"] == states[1]["progress"]
    assert states[0]["ranks"] == states[1]["ranks"]
    assert states[0]["optimizer"] == states[1]["optimizer"]
    assert lines(one) == lines(other)


def lines(job: Path) -> list[dict[str, Any]]:
    """The records of a run, without those that depend on the clock."""
    found = map(json.loads, (job / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in found]
