"""Files of tensors that others wrote, read without running anything in them: safetensors and torch's pickles."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lavis_ext.common.errors import IntegrityError, UnsafeError
from lavis_ext.common.files import read_errors

if TYPE_CHECKING:
    from torch import Tensor

WAY_OUT = "fetch, copy or save it again"
MOST_PICKLED = 256 << 20
"""Bytes of a pickle, which has no tensors in it, that are looked at to tell a refusal from damage."""
OLD_FORM = 4
"""Pickles in front of the object's own in torch's old form: magic number, version, system, then the object."""


def read_safetensors(path: Path, where: str = "") -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file by name; raises IntegrityError at `where`, DiskError."""
    from safetensors.torch import load_file

    check_readable(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # damage comes as whatever the library's Rust and torch's tables raise
        raise IntegrityError(where or str(path), f"cannot be read: {_line(error)}", WAY_OUT) from error
    return tensors


def read_torch(path: Path, where: str = "", mmap: bool = False) -> Any:
    """What a file of `torch.save` holds, tensors on the CPU; `mmap` maps those of the zip form.

    Raises UnsafeError at `where` for a whole pickle that asks for more than tensors and plain values, which is then not
    executed, IntegrityError for a damaged one, DiskError.
    """
    import torch

    check_readable(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # on a damaged pickle torch's reader fails in any way a program can
        if type(error).__name__ == "UnpicklingError" and _is_whole(path):
            what = "holds a pickle that asks for more than tensors; nothing of it was executed"
            raise UnsafeError(where or str(path), what, "save its tensors as safetensors") from error
        raise IntegrityError(where or str(path), f"cannot be read: {_line(error)}", WAY_OUT) from error


def check_readable(path: Path) -> None:
    """Raise DiskError for a file that may not be read."""
    with read_errors(path), path.open("rb"):
        pass


def _is_whole(path: Path) -> bool:
    """Whether the pickle in a file of torch has all its instructions, so that what was refused is what it says."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                for _ in range(OLD_FORM):
                    _follow(file)
            return True
        with zipfile.ZipFile(path) as archive:
            member = next(one for one in archive.infolist() if one.filename.endswith("data.pkl"))
            with archive.open(member) as file:
                _follow(file)
        return True
    except Exception:  # as above: of damaged bytes anything may come
        return False


def _follow(file: IO[bytes]) -> None:
    for _, _, position in pickletools.genops(file):
        if (position or 0) > MOST_PICKLED:
            raise ValueError("too long")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
