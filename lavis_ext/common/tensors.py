"""Files of tensors that others wrote, read without running anything in them: safetensors and torch's pickles."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lavis_ext.common.errors import IntegrityError, UnsafeError
from lavis_ext.common.files import read_errors

if TYPE_CHECKING:
    from torch import Tensor

WAY_OUT = "fetch, copy or save it again"
MOST_PICKLED = 256 << 20
"""Bytes of a pickle, which has no tensors in it, that are looked at to tell a refusal from damage."""
SAFE_TUPLES = 1000
"""So many tuples in one another can be hashed: as keys, tens of thousands overflow the C stack and end the process."""
TUPLES = frozenset({"EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"})
_TUPLE_CODES = (b"\x85", b"\x86", b"\x87", b"t")
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
        _refuse_deep_tuples(path)
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


def _refuse_deep_tuples(path: Path) -> None:
    """Raise ValueError where the pickle of torch's zip form, or what stands in front of the old one, nests too deep."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [one.filename for one in archive.infolist() if one.filename.endswith(".pkl")]
            pickles = [archive.read(name) for name in names if archive.getinfo(name).file_size <= MOST_PICKLED]
    else:
        with path.open("rb") as file:
            pickles = [file.read(MOST_PICKLED)]
    for data in pickles:
        # torch's reader is a loop in Python too: only where there could be so many does a look cost anything
        if sum(data.count(code) for code in _TUPLE_CODES) > 10 * SAFE_TUPLES and tuple_depth(data) > SAFE_TUPLES:
            raise ValueError("values nested too deep")


def tuple_depth(data: bytes) -> int:
    """How deep tuples are nested in what a pickle makes, up to its end or to where it is none.

    The stack and the memo hold depths in the place of values.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    deepest = 0
    for code, argument, _ in _operations(data):
        name, taken = code.name, len(code.stack_before)
        if name == "MARK":
            marks.append(len(stack))
            continue
        if pickletools.markobject in code.stack_before:
            mark = marks.pop() if marks else 0
            inner, taken = stack[mark:], code.stack_before.index(pickletools.markobject)
            del stack[mark:]
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
            continue
        elif "PUT" in name or name == "MEMOIZE":
            memo[len(memo) if argument is None else int(argument)] = stack[-1] if stack else 0
            continue
        else:
            inner = []
        inner += stack[len(stack) - taken :] if taken else []
        del stack[len(stack) - min(taken, len(stack)) :]
        depth = 1 + max(inner, default=0) if name in TUPLES else 0
        if name == "DUP":
            depth = max(inner, default=0)
        elif "GET" in name:
            depth = memo.get(int(argument or 0), 0)
        deepest = max(deepest, depth)
        stack += [depth] * len(code.stack_after)
    return deepest


def _operations(data: bytes) -> Iterator[tuple[Any, Any, Any]]:
    """The operations of the pickles that stand one after another in `data`; ends where no further one is whole."""
    file = io.BytesIO(data)
    with suppress(Exception):  # of damaged bytes anything may come; whoever reads them says so
        while file.tell() < len(data):
            yield from pickletools.genops(file)


def _follow(file: IO[bytes]) -> None:
    for _, _, position in pickletools.genops(file):
        if (position or 0) > MOST_PICKLED:
            raise ValueError("too long")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
