"""Compiles the kernels with numba, without the interpreter's lock, and caches them by the hash of their sources.

Numba's own cache is keyed by the path of the one file that contains the function. A job runs from its own copy of the
code, so it would compile everything again; and a kernel would not be recompiled after a change in a file that it
inlines from. Therefore the cache of these kernels is in a directory named by the hash of all their source files. Numba
writes it atomically, so several ranks may compile at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from numba import njit
from numba.core import caching

from runyard.ownership import compiler_cache

DATA_DIR = Path(__file__).parent
CACHE_BYTES = 4 * 2**20  # room for all kernels: numba's error on a full disk would end the training
# All except reordering of sums, which would change pixels by one level.
SAFE_MATH = {"nnan", "ninf", "nsz", "arcp", "contract"}


def jit(function: Callable[..., object] | None = None, *, reorder_sums: bool = False) -> Any:
    """Decorator that compiles ``function`` at its first call, or loads it from the cache."""
    if function is None:
        return lambda f: jit(f, reorder_sums=reorder_sums)
    fastmath = SAFE_MATH | {"reassoc"} if reorder_sums else SAFE_MATH
    return njit(function, cache=cache_folder() is not None, nogil=True, fastmath=fastmath, error_model="numpy")


@cache
def sources_sha256() -> str:
    """Return the SHA-256 of all files that contain kernels or that kernels inline from."""
    digest = hashlib.sha256()
    for path in sorted(
        [DATA_DIR / "compiled.py", DATA_DIR / "loading" / "ffcv_reader.py", *DATA_DIR.glob("augment/*.py")]
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def cache_folder() -> Path | None:
    """Return the first usable of NUMBA_CACHE_DIR, which a task has set beside its runs, and TMPDIR; None without any.

    Code in a cache is executed, so the folder must be one that nobody else can write.
    """
    for base in filter(None, (os.environ.get("NUMBA_CACHE_DIR"), tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            Path(base).mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = compiler_cache(Path(base), "kernels", sources_sha256()[:16])
            if not any(folder.iterdir()):
                with tempfile.TemporaryFile(dir=folder) as file:
                    os.posix_fallocate(file.fileno(), 0, CACHE_BYTES)
            return folder
    return None


class _ContentCacheLocator(caching._CacheLocator):
    """Tells numba where the cache of a function of this package is, and whether it is stale."""

    def __init__(self, function: FunctionType) -> None:
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return sources_sha256()

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: FunctionType, py_file: str) -> _ContentCacheLocator | None:
        own_kernel = Path(py_file).is_relative_to(DATA_DIR)
        return cls(py_func) if own_kernel and cache_folder() is not None else None


# Numba's list of cache locators; the class lost its underscore in 0.61.
_implementation = getattr(caching, "CacheImpl", None) or caching._CacheImpl  # type: ignore[attr-defined]
_implementation._locator_classes.insert(0, _ContentCacheLocator)
