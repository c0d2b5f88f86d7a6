"""A restricted unpickler: plain values and plain numpy arrays; everything else is refused and not executed."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, ClassVar

import numpy as np

from lavis_ext.common.errors import IntegrityError, LavisExtError, UnsafeError
from lavis_ext.common.tensors import SAFE_TUPLES, TUPLES, tuple_depth
from lavis_ext.features.layout import Array

DEPTH = 20
_PLAIN = (str, bytes, int, float, bool, type(None))


class _Refused(Exception):
    """What a pickle names and may not."""


class _Marker:
    """Replaces `numpy.ndarray` while a pickle is read; can neither be called nor changed."""

    __slots__ = ()


class _Dtype:
    """Replaces a dtype while a pickle is read: kind and size only, byte order from its state."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, ""

    def __setstate__(self, state: Any) -> None:
        plain = isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)
        if not plain or state[1] not in ("<", ">", "|", "="):
            raise _Refused("a dtype that is not plain")
        self.order = state[1].replace("|", "")

    def build(self) -> np.dtype[Any]:
        """The dtype: integers, floats and booleans of fixed size."""
        return np.dtype(self.order + self.code)


class _Array:
    """Replaces an array while a pickle is read; the array is built once the pickle is complete."""

    __slots__ = ("state",)

    def __init__(self, state: tuple[Any, ...] = ()) -> None:
        self.state = state

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("an array whose state is not plain")
        self.state = state[1:]

    def build(self) -> Array | list[Any]:
        """The array, or the list that an array of objects holds; raises _Refused where it is not plain."""
        if len(self.state) != 4:
            raise _Refused("an array without content")
        shape, dtype, fortran, raw = self.state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if isinstance(dtype, _Dtype) and dtype.code == "O" and type(raw) is list:
            return raw
        if (
            not isinstance(dtype, _Dtype)
            or dtype.code == "O"
            or not isinstance(raw, (bytes, bytearray))
            or not isinstance(shape, tuple)
        ):
            raise _Refused("an array that is not plain")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise _Refused("an array of an impossible shape")
        return np.frombuffer(bytes(raw), dtype.build()).reshape(shape, order="F" if fortran in (True, "F") else "C")


class _Call:
    """A callable that a pickle may name; without attributes, so that a pickle cannot change it."""

    __slots__ = ()


class _MakeDtype(_Call):
    def __call__(self, code: Any, *_: Any) -> _Dtype:
        if code in ("O", "O8"):
            return _Dtype("O")
        if not isinstance(code, str) or len(code) > 3 or code[:1] not in "biuf" or not code[1:].isdigit():
            raise _Refused(f"an array of {code!r}")
        return _Dtype(code)


class _Reconstruct(_Call):
    def __call__(self, kind: Any, *_: Any) -> _Array:
        if not isinstance(kind, _Marker):
            raise _Refused("an array of another class")
        return _Array()


class _FromBuffer(_Call):
    def __call__(self, raw: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
        return _Array((shape, dtype, order, raw))


class _Latin1(_Call):
    def __call__(self, text: Any, encoding: Any = "") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "iso-8859-1"):
            raise _Refused("an encoding other than latin1")
        return text.encode("latin1")


class _EmptyBytes(_Call):
    def __call__(self, *content: Any) -> bytes:
        if content:
            raise _Refused("a call of bytes")
        return b""


class _EmptyDict(_Call):
    """Replaces `OrderedDict`, whose items follow its creation as those of a dict."""

    def __call__(self, *content: Any) -> dict[Any, Any]:
        if content:
            raise _Refused("an ordered dict that is not plain")
        return {}


class _Unpickler(pickle.Unpickler):
    """Every name that a pickle asks for comes from this table or is refused; nothing is imported."""

    NAMES: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy", "ndarray"): _Marker(),
        ("numpy", "dtype"): _MakeDtype(),
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Reconstruct() for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer() for core in ("core", "_core")},
        ("collections", "OrderedDict"): _EmptyDict(),
        ("_codecs", "encode"): _Latin1(),
        ("builtins", "bytes"): _EmptyBytes(),
        ("__builtin__", "bytes"): _EmptyBytes(),
    }

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a name; raises _Refused for every other name."""
        if (module, name) not in self.NAMES:
            raise _Refused(f"the name {module}.{name}")
        return self.NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refused always: persistent ids are how a pickle asks its reader for foreign objects."""
        raise _Refused("a persistent object")


def load_plain(data: bytes, where: str) -> Any:
    """The value of a pickle made of dict, list, tuple, str, bytes, int, float, bool, None and plain numpy arrays.

    Raises UnsafeError (exit code 10) where it asks for anything else, which is then not executed, and IntegrityError
    where it is no whole pickle. Text of Python 2 is read as latin1, as numpy's own pickles need.
    """
    try:
        tuples = 0
        for code, argument, _ in pickletools.genops(data):
            tuples += code.name in TUPLES
            # the memo is an array up to its largest number: nine bytes could ask for 4 GiB
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
                raise ValueError(f"number {argument} in {len(data)} bytes")
        if tuples > SAFE_TUPLES and tuple_depth(data) > DEPTH:
            raise _Refused("values nested too deep")
        return _Builder().build(_Unpickler(io.BytesIO(data), encoding="latin1").load())
    except _Refused as refused:
        raise unsafe(where, str(refused)) from None
    except LavisExtError:
        raise
    except Exception as error:  # a pickle is a program: a wrong one can fail in any way
        way_out = "the file is damaged or was changed; fetch or make it again"
        raise IntegrityError(where, f"is no whole pickle of plain values: {error}", way_out) from error


def unsafe(where: str, what: str) -> UnsafeError:
    """The refusal of a pickle that holds more than data."""
    return UnsafeError(
        where, f"holds {what}, not only data; nothing of it was executed", "take features from elsewhere"
    )


class _Builder:
    """Builds a value once, however often it is shared, so that no small pickle becomes a large value."""

    def __init__(self) -> None:
        self._built: dict[int, Any] = {}
        self._open: set[int] = set()

    def build(self, value: Any) -> Any:
        """The value with its arrays built; raises _Refused for every type that is not plain."""
        if type(value) in _PLAIN:
            return value
        name = id(value)
        if name in self._built:
            return self._built[name]
        if name in self._open or len(self._open) == DEPTH:
            raise _Refused("values nested too deep")
        self._open.add(name)
        self._built[name] = made = self._make(value)
        self._open.discard(name)
        return made

    def _make(self, value: Any) -> Any:
        if isinstance(value, _Array):
            made = value.build()
            return self.build(made) if type(made) is list else made
        if type(value) is dict:
            return {self._key(k): self.build(v) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.build(v) for v in value)
        raise _Refused(f"a {type(value).__name__.strip('_').lower()}")

    def _key(self, value: Any) -> Any:
        if type(value) not in _PLAIN:
            raise _Refused("a dict whose keys are not plain")
        return value
