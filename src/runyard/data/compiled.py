"""How this package compiles its kernels: numba, without the interpreter's lock, cached on disk by content.

Numba keys a cache by the path of the one file a function stands in. A run's job works from its own copy of the code,
which would compile everything anew; and a kernel would outlive a change in a file it inlines from. So the cache of
these kernels lies under the hash of all their sources. Numba writes it atomically: several ranks may compile at once.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import caching

from runyard.ownership import per_user_name, private_folder

DATA_DIR = Path(__file__).parent
SAFE_MATH = {"nnan", "ninf", "nsz", "arcp", "contract"}  # all but reordering sums, which would move pixels by a level


def jit(function: Callable[..., Any] | None = None, *, reorder_sums: bool = False) -> Any:
    """Decorator: compile ``function`` at its first call, or load it from the cache."""
    if function is None:
        return lambda f: jit(f, reorder_sums=reorder_sums)
    fastmath = SAFE_MATH | {"reassoc"} if reorder_sums else SAFE_MATH
    return njit(function, cache=cache_folder() is not None, nogil=True, fastmath=fastmath, error_model="numpy")


@cache
def sources_sha256() -> str:
    """Hash of every file that kernels stand in or inline from."""
    digest = hashlib.sha256()
    for path in sorted(
        [DATA_DIR / "compiled.py", DATA_DIR / "loading" / "ffcv_reader.py", *DATA_DIR.glob("augment/*.py")]
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def cache_folder() -> Path | None:
    """The first usable of NUMBA_CACHE_DIR, the user's cache folder and a temporary one; None: no cache.

    What lies in a cache is run, so that it is only taken from a directory which nobody else can write.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for base in (os.environ.get("NUMBA_CACHE_DIR"), f"{home}/runyard", tempfile.gettempdir()):
        if not base:
            continue
        try:
            Path(base).mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = private_folder(Path(base) / per_user_name(f"runyard-kernels-{sources_sha256()[:16]}"))
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


class _ContentCacheLocator(caching._CacheLocator):
    """Numba's question "where does this function's cache lie, and is it stale?" for the functions of this package."""

    def __init__(self, function: Any) -> None:
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return sources_sha256()

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _ContentCacheLocator | None:
        inside = Path(py_file).is_relative_to(DATA_DIR)
        return cls(py_func) if inside and cache_folder() is not None else None


# numba's list of places to look; the class lost its underscore in 0.61
_implementation = getattr(caching, "CacheImpl", None) or caching._CacheImpl  # type: ignore[attr-defined]
_implementation._locator_classes.insert(0, _ContentCacheLocator)
