"""Reads pickled dicts of numpy arrays without running any code from the file.

Nothing is imported for the file. It may use only a few names, and each stands for a function of this module that builds
plain arrays of numbers or text. So neither another callable nor a forged state of an array or dtype reaches numpy.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runyard.errors import UserError
from runyard.files import read_regular


def load_pickle(path_or_file: str | Path | BinaryIO, name: str | None = None) -> Any:
    """Load a pickle of dicts, lists, tuples, sets, numbers, text, bytes and numpy arrays.

    Text that Python 2 wrote is returned as bytes, also dict keys (``data[b"labels"]``).

    Args:
        path_or_file: A path, or a binary file open for reading.
        name: The name of the file in messages; by default its path.

    Raises:
        UserError: it is unreadable, damaged, not a pickle, or uses another name (which the message gives).
    """
    if name is None:
        name = str(getattr(path_or_file, "name", "the file") if hasattr(path_or_file, "read") else path_or_file)
    try:
        if isinstance(path_or_file, (str, Path)):
            path_or_file = io.BytesIO(read_regular(path_or_file))
        return _unwrap(_Reader(path_or_file, name).load())
    except OSError as error:
        raise UserError(f"{name}: cannot read it ({error.strerror})", "expected a pickle of arrays") from None
    except MemoryError:
        raise UserError(f"{name}: needs more memory than there is", "expected a pickle of arrays") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        ImportError,
        struct.error,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: damaged, or not a pickle of arrays ({reason})", "get a new copy of the file"
        ) from None


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(file, encoding="bytes")
        self._name = name

    def find_class(self, module: str, name: str) -> _AllowedCallable:
        module = module.replace("numpy.core", "numpy._core").replace("__builtin__", "builtins")
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UserError(
                f"{self._name}: uses {module}.{name}, which could run code; expected a pickle of numpy "
                "arrays, lists, dicts, numbers and text only",
                "save it as .npz instead",
            ) from None


class _Dtype:
    """Stands in for numpy.dtype; allows only numbers, booleans and text."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6})", code):
            raise ValueError(f"an array of dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("an array with structured elements")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """Stands in for an array until its state has been set."""

    def __init__(self, *_: object) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _version, shape, dtype, fortran, content = state
        if isinstance(content, str):
            content = content.encode("latin-1")
        self.array = _from_buffer(content, dtype, shape, "F" if fortran else "C")


def _from_buffer(content: object, dtype: object, shape: object, order: object) -> np.ndarray:
    order = order.decode("ascii") if isinstance(order, bytes) else order
    if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
        raise ValueError("an array of Python objects")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape) or order not in ("C", "F"):
        raise ValueError("an array without a proper shape")
    return np.frombuffer(bytes(content), dtype.dtype).reshape(shape, order="F" if order == "F" else "C").copy(order="C")


def _scalar(dtype: object, content: object) -> np.generic:
    if isinstance(content, str):
        content = content.encode("latin-1")
    return _from_buffer(content, dtype, (1,), "C")[0]


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1", b"latin-1"):
        raise ValueError("text in an unknown encoding")
    return text.encode("latin-1")


def _unwrap(value: object) -> object:
    """Return the same value with the stand-ins replaced by their arrays."""
    if isinstance(value, _Array):
        if value.array is None:
            raise ValueError("an array without content")
        return value.array
    if isinstance(value, dict):
        return {key: _unwrap(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrap(item) for item in value)
    if isinstance(value, _Dtype):
        return value.dtype
    if isinstance(value, _AllowedCallable):
        raise ValueError("a name without a value")
    return value


def _bytes(*content: Any) -> bytes:
    if content and not isinstance(content[0], (bytes, bytearray, list)):
        raise ValueError("bytes made from something else")
    return bytes(*content)


def _bytearray(*content: object) -> bytearray:
    return bytearray(_encode(*content) if content and isinstance(content[0], str) else _bytes(*content))


class _AllowedCallable:
    """A function that the file may call; the file cannot set anything on it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("an attempt to change the reader")


_NAMES: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): tuple,
    ("numpy", "dtype"): _Dtype,  # ndarray only tells _reconstruct what to create
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytearray,
}
_ALLOWED = {key: _AllowedCallable(make) for key, make in _NAMES.items()}
