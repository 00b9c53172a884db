"""Random numbers of an engine: they go on from call to call, and no two processes draw the same."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class Draws:
    """A NumPy generator for an object that is inherited by, or sent to, other processes.

    A forked process gets a copy of the generator, and one that is sent a pickle does as well: the workers of a
    `DataLoader` would all draw the same outcomes. So a process that finds itself with another's generator starts one of
    its own, from the inherited state and from its own name (``Process-3``), which makes runs repeatable. A pickle read
    by a program that nobody's worker is goes on where it was.

    Args:
        seed: of the generator; None for one that is never the same.
    """

    def __init__(self, seed: int | None) -> None:
        self._generator = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._read_by: int | None = None  # the process that made this object from a pickle

    @property
    def generator(self) -> np.random.Generator:
        """This process's generator."""
        here = os.getpid()
        if self._owner != here:
            if self._read_by != here or multiprocessing.parent_process() is not None:
                inherited = [int(number) for number in self._generator.integers(2**32, size=4)]
                self._generator = np.random.default_rng([*inherited, *_name_of_process()])
            self._owner, self._lock = here, threading.Lock()  # a thread that has not come along may hold the other one
        return self._generator

    @contextmanager
    def alone(self) -> Iterator[np.random.Generator]:
        """This process's generator, from which no other thread draws within the block (if it asks here too)."""
        generator = self.generator
        with self._lock:
            yield generator

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._read_by = os.getpid()


def _name_of_process() -> list[int]:
    name = multiprocessing.current_process().name
    # Without multiprocessing (os.fork) every child bears its parent's name
    return list(name.encode()) if multiprocessing.parent_process() is not None else [os.getpid()]
