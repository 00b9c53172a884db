"""Blocks of samples on all cores a process is given.

A batch is cut into blocks whose sizes depend on the circuit and the batch alone, and what is summed over blocks is
summed in their order: results are the same bits whatever the number of threads. The compiled loops let other threads
run, so threads of one process are enough.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from qhw_diffusion.config import threads_asked

Item = TypeVar("Item")
Result = TypeVar("Result")

_pool: ThreadPoolExecutor | None = None
_size = 0
_making = threading.Lock()


def _forget() -> None:
    """In a process that was forked: threads of a pool are not inherited."""
    global _pool, _size, _making
    _pool, _size, _making = None, 0, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def number_of_threads() -> int:
    """Threads that blocks of samples are spread over: QHW_NUM_THREADS, or else as many as torch uses.

    Raises:
        InvalidInputError: the variable is no whole number from 1.
    """
    asked = threads_asked()
    return torch.get_num_threads() if asked is None else asked


def in_blocks(function: Callable[[Item], Result], blocks: Iterable[Item], most: int | None = None) -> list[Result]:
    """`[function(block) for block in blocks]`, some blocks at a time.

    Args:
        function: what is done with a block; several threads call it at a time.
        blocks: one thread at a time asks for the next, in order, so that random numbers may be drawn on the way.
        most: threads at a time; None: `number_of_threads`.

    Raises:
        InvalidInputError: as `number_of_threads`.
        Exception: what `function` or `blocks` raises first; further blocks are not begun.
    """
    count = len(blocks) if isinstance(blocks, (list, tuple, range)) else None
    threads = 1 if count == 1 else number_of_threads() if most is None else most
    threads = threads if count is None else min(threads, count)
    if threads <= 1:
        return [function(block) for block in blocks]
    waiting, asking = iter(enumerate(blocks)), threading.Lock()
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not errors:
                with asking:
                    number, block = next(waiting, (-1, None))
                if number < 0:
                    return
                results[number] = function(block)  # type: ignore[arg-type]
        except BaseException as error:  # Ctrl-C too: raised below, when no thread works any more
            errors.append(error)

    helpers = [_helpers(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # one that has not begun finds nothing to do any more
            helper.result()
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(results))]


class InOrder:
    """Parts that come from blocks in any order, taken in the order of the blocks' numbers.

    Args:
        take: what is done with a part; by one thread at a time.
    """

    def __init__(self, take: Callable[[Any], Any]) -> None:
        self._take, self._next, self._waiting, self._taking = take, 0, dict[int, Any](), threading.Lock()

    def __call__(self, number: int, part: Any) -> None:
        """The part of the block of that number, from 0 on; it is not to be changed afterwards."""
        with self._taking:
            self._waiting[number] = part
            while self._next in self._waiting:
                self._take(self._waiting.pop(self._next))
                self._next += 1


def adding_to(total: np.ndarray) -> InOrder:
    """Parts that are added to `total`, in the order of the blocks."""
    return InOrder(lambda part: np.add(total, part, out=total))


def _helpers(count: int) -> ThreadPoolExecutor:
    """A pool of at least so many threads, kept for the next call."""
    global _pool, _size
    with _making:
        if _pool is None or _size < count:
            _pool, _size = ThreadPoolExecutor(count, thread_name_prefix="qhw"), count
        return _pool
