"""Numba's cache of compiled functions, where a full disk or a damaged file costs a compilation and nothing else."""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import Any

from numba.core.caching import FunctionCache


class KernelCacheWarning(UserWarning):
    """Compiled functions could not be kept on disk: every process compiles them anew."""


class _LenientCache(FunctionCache):
    """Numba's own cache of one function; what Numba would raise to the caller ends here."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function; None, after which it is compiled and written anew, for a file that is damaged."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # reading damaged files raises errors of many kinds
            with contextlib.suppress(OSError):
                self.flush()  # an empty index in place of the damaged one
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compiled function; where that fails, this one is not cached, which is told once a process."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # a full disk, a folder that has gone, an index that was damaged in the meantime
            self.disable()
            _tell(f"in {self.cache_path} ({error})")


_told = False


def _tell(why: str) -> None:
    global _told
    if not _told:
        _told = True
        text = (
            f"compiled functions cannot be kept {why}: every process compiles them anew, which takes some seconds; "
            "NUMBA_CACHE_DIR names another folder for them"
        )
        warnings.warn(text, KernelCacheWarning, stacklevel=3)


def keep_on_disk(function: Any) -> Any:
    """The same function of `numba.njit`, its compiled code kept on disk where a folder can be written to: that of
    NUMBA_CACHE_DIR, the package's own, or the user's cache folder.
    """
    if not hasattr(function, "py_func"):  # NUMBA_DISABLE_JIT=1: nothing is compiled
        return function
    try:
        if not os.path.isabs(os.path.expanduser("~")) and "NUMBA_CACHE_DIR" not in os.environ:
            raise RuntimeError
        function._cache = _LenientCache(function.py_func)
    except RuntimeError:  # no folder to write to, which is usual in a container: nothing to be told
        pass
    return function
