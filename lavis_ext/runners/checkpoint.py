"""`checkpoint_<step>/` folders: written atomically, verified by SHA-256 when read, and pruned; no pickle is involved.

A folder holds `model.safetensors` (trainable parameters and buffers), `tensors.safetensors` and `state.json` (all other
state, see `pack`) and, written last, `manifest.json` with the size and SHA-256 of each. `latest.json` and
`best.json` beside it name the newest and the best one; `checkpoint_best` is a link to the latter.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lavis_ext.common.errors import DiskError, IntegrityError
from lavis_ext.common.files import apply_umask, decode_json, disk_errors, flush_file, flush_folder, sha256_of
from lavis_ext.common.wording import human
from lavis_ext.models.base_model import BaseModel, whole
from lavis_ext.runners.files import WAY_OUT, write_json

log = logging.getLogger(__name__)

FORMAT = 1
NAME = re.compile(r"checkpoint_(\d+)(\.old)?")
MODEL, TENSORS, STATE, MANIFEST = "model.safetensors", "tensors.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """One folder, read: the tensors of the model by name, and the tree of all other state."""

    path: Path
    model: dict[str, Tensor]
    state: dict[str, Any]


def save(
    job_dir: Path,
    step: int,
    model: Mapping[str, Tensor],
    state: Mapping[str, Any],
    best: bool = False,
    beside: Mapping[str, Any] | None = None,
) -> Path:
    """Write `checkpoint_<step>` and point `latest.json` (and `best.json`) to it; a DiskError leaves the old ones.

    `beside` are further files by name, as JSON values, such as the labels of a classifier.
    """
    final = job_dir / f"checkpoint_{step}"
    part = job_dir / f".{final.name}.part"
    try:
        with disk_errors(final, WAY_OUT, also=(SafetensorError,)):  # safetensors raises it, not OSError, on a full disk
            _write_folder(part, model, state, beside or {})
            _publish(part, final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _point(job_dir / "latest.json", final, step)
    if best:
        _point(job_dir / "best.json", final, step)
        _link_best(job_dir, final)
    return final


def sweep(job_dir: Path) -> None:
    """Remove what a killed run has left half written, or half deleted: of a step that no later run may save again."""
    for folder in (*job_dir.glob(".checkpoint_*.part"), *job_dir.glob(".trash_checkpoint_*")):
        shutil.rmtree(folder, ignore_errors=True)


def repoint(job_dir: Path, newest: Path, best_step: int | None) -> None:
    """Point to the newest and the best checkpoint again, as a run did not that was killed when one had its name."""
    best = next((folder for folder in candidates(job_dir) if step_of(folder) == best_step), None)
    if pointed(job_dir, "latest") != newest:
        _point(job_dir / "latest.json", newest, step_of(newest))
    if best is not None and best_step is not None:
        if pointed(job_dir, "best") != best:
            _point(job_dir / "best.json", best, best_step)
        _link_best(job_dir, best)


def require_space(job_dir: Path, size: int, kept: int) -> None:
    """Raise DiskError where not one checkpoint of so many bytes fits beside those that are there.

    A new one is written before an old one is deleted: a warning where `kept` and one more do not fit.
    """
    with disk_errors(job_dir, WAY_OUT):
        free = shutil.disk_usage(job_dir).free
    if free < size:
        what = f"a checkpoint takes {human(size)}, {human(free)} are free"
        raise DiskError(str(job_dir), what, f"free space, or {WAY_OUT}")
    wanted = max(kept + 1 - len(candidates(job_dir)), 1)
    if free < wanted * size:
        told = "%s: %s are free; %d more checkpoints of %s will be there at once: lower run.keep_checkpoints"
        log.warning(told, job_dir, human(free), wanted, human(size))


def _write_folder(
    folder: Path, model: Mapping[str, Tensor], state: Mapping[str, Any], beside: Mapping[str, Any]
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    packed = pack(state, tensors)
    save_file(dict(model), folder / MODEL)
    save_file(tensors, folder / TENSORS)
    for name, value in {STATE: packed, **beside}.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        for name in (MODEL, TENSORS, STATE, *beside)
    }
    apply_umask(folder)
    for name in files:
        flush_file(folder / name)
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def _publish(part: Path, final: Path) -> None:
    """Rename into place; an older folder of the same step stays as `.old` until the new one stands."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    part.rename(final)
    flush_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _point(pointer: Path, target: Path, step: int | None) -> None:
    write_json(pointer, {"checkpoint": target.name, "step": step})


def _link_best(job_dir: Path, target: Path) -> None:
    link = job_dir / "checkpoint_best"
    fresh = job_dir / ".checkpoint_best.part"
    try:
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target.name)
        fresh.replace(link)
    except OSError as error:  # best.json says the same where links are not possible
        log.debug("no link %s: %s", link, error)


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint and verify each file against its manifest; raises IntegrityError that names the file."""
    way_out = "use another checkpoint"
    try:
        manifest = decode_json((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            if sha256_of(folder / name) != expected["sha256"]:
                raise IntegrityError(str(folder / name), "does not match the SHA-256 in its manifest", way_out)
        state = unpack(decode_json((folder / STATE).read_text(encoding="utf-8")), read_tensors(folder / TENSORS))
        return Checkpoint(folder, read_tensors(folder / MODEL), state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise IntegrityError(str(folder), f"is not a whole checkpoint: {error}", way_out) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Copies of a file's tensors: mapped ones may be aligned so that some kernels round differently."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def load_newest(job_dir: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are logged and renamed to `damaged_*`.

    None if there is none at all; raises IntegrityError if there are some and none is whole.
    """
    folders = candidates(job_dir)
    for folder in folders:
        try:
            return load(folder)
        except IntegrityError as error:
            log.warning("%s; falling back to the previous checkpoint", error)
            _set_aside(folder)
    if folders:
        raise IntegrityError(str(job_dir), "no checkpoint is whole", "start again under another run.job_id")
    return None


def _set_aside(folder: Path) -> None:
    target = folder.with_name(f"damaged_{folder.name}")
    number = 0
    while target.exists():
        number += 1
        target = folder.with_name(f"damaged_{folder.name}_{number}")
    folder.rename(target)


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint's folder; None for another."""
    match = NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def candidates(job_dir: Path) -> list[Path]:
    """Checkpoint folders, newest step first."""
    found = [
        (int(match[1]), match[2] is None, p) for p in job_dir.glob("checkpoint_*") if (match := NAME.fullmatch(p.name))
    ]
    return [path for _, _, path in sorted(found, reverse=True)]


def pointed(job_dir: Path, pointer: str) -> Path | None:
    """The folder that `latest` or `best` names; None if there is no pointer or what it names is gone."""
    file = job_dir / f"{pointer}.json"
    if not file.is_file():
        return None
    try:
        folder = job_dir / str(decode_json(file.read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: cannot be read and is ignored (%s)", file, error)
        return None
    return folder if folder.is_dir() else None


def prune(job_dir: Path, keep: int) -> list[Path]:
    """Delete all but the newest `keep` checkpoints (at least one) and the best; returns the deleted folders.

    A folder is renamed before it is emptied, so that an interrupted deletion never leaves half a checkpoint.
    """
    best, latest = pointed(job_dir, "best"), pointed(job_dir, "latest")
    kept = {*candidates(job_dir)[: max(keep, 1)], best, latest}
    deleted = [folder for folder in candidates(job_dir) if folder not in kept]
    for folder in deleted:
        trash = folder.with_name(f".trash_{folder.name}")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
    return deleted


def model_tensors(model: BaseModel, keep: bool = True) -> dict[str, Tensor]:
    """Copies of `model.trainable_state()` on the CPU; {} unless `keep`.

    Where parameters are sharded this is a collective: all ranks must call it.
    """
    tensors = ((name, whole(tensor.detach())) for name, tensor in model.trainable_state().items())
    return {name: tensor.contiguous().cpu().clone() for name, tensor in tensors if keep}


# State without pickle: a tree of plain values and tensors ↔ JSON and a flat dict of tensors.

TENSOR, TUPLE, PAIRS = "__tensor__", "__tuple__", "__pairs__"


def pack(tree: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """`tree` as JSON values; its tensors move into `tensors` under their path.

    Knows dicts (with keys of any JSON kind), lists, tuples, numbers, strings, None, numpy scalars and arrays; raises
    TypeError for anything else, so that no state is lost silently.
    """
    if isinstance(tree, Mapping):
        return _pack_mapping(tree, tensors, prefix)
    if isinstance(tree, (list, tuple)):
        packed = [pack(item, tensors, f"{prefix}.{index}") for index, item in enumerate(tree)]
        return packed if isinstance(tree, list) else {TUPLE: packed}
    if isinstance(tree, np.ndarray):
        return pack(tree.tolist(), tensors, prefix)
    if isinstance(tree, Tensor):
        tensors[prefix] = tree.detach().contiguous().cpu().clone()
        return {TENSOR: prefix}
    return _plain(tree, prefix)


def _pack_mapping(tree: Mapping[Any, Any], tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    items = {key: pack(value, tensors, f"{prefix}.{key}") for key, value in tree.items()}
    if all(isinstance(key, str) for key in items) and not {TENSOR, TUPLE, PAIRS} & items.keys():
        return items
    return {PAIRS: [[_plain(key, prefix), value] for key, value in items.items()]}


def _plain(value: Any, prefix: str) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{prefix or 'state'}: {type(value).__name__} cannot be kept in a checkpoint")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that was given to `pack`; raises KeyError if a tensor is missing."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if TENSOR in packed:
        return tensors[packed[TENSOR]]
    if TUPLE in packed:
        return tuple(unpack(item, tensors) for item in packed[TUPLE])
    if PAIRS in packed:
        return {key: unpack(value, tensors) for key, value in packed[PAIRS]}
    return {key: unpack(value, tensors) for key, value in packed.items()}


def random_state() -> dict[str, Any]:
    """State of every generator that a training step may draw from: python, numpy, torch on the CPU and on this GPU."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (CPU and GPUs) with a whole number of any size."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**64)
