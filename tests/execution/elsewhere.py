"""A pretended accelerator: tensors that say they are elsewhere and refuse to be mixed with tensors on the CPU.

As on a GPU, `.numpy()` fails, an operation on tensors of two devices fails (a CPU scalar excepted), and only `.cpu()`
or `.to(device)` moves data. So code that forgets to move tensors fails here as it would there, without a GPU at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")  # a kind that every build of torch knows, and that has no data of its own
_CPU = torch.device("cpu")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Elsewhere(Tensor):
    """A tensor whose data are `inner` and whose device is `DEVICE`."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE, requires_grad=False
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves, _ = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    here = [t for t in tensors if not isinstance(t, Elsewhere)]
    away = len(here) < len(tensors)
    if func is torch.ops.aten.index.Tensor and away:
        here = [t for t in here if t is args[0]]  # the indices may be on the CPU
    if away and func not in _MOVES and any(t.ndim for t in here):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu ({func})")
    device = kwargs.get("device")
    target = DEVICE if device is None and away else torch.device(device or _CPU)
    if func is torch.ops.aten.copy_.default:  # into the memory of the first
        target = DEVICE if isinstance(args[0], Elsewhere) else _CPU
    if "device" in kwargs:
        kwargs = {**kwargs, "device": _CPU}
    plain_args, plain_kwargs = tree_map(lambda t: t.inner if isinstance(t, Elsewhere) else t, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    if func is torch.ops.aten.copy_.default:
        return args[0]
    if target.type == _CPU.type:
        return result
    flat, spec = tree_flatten(result)
    return tree_unflatten([Elsewhere(t) if isinstance(t, Tensor) else t for t in flat], spec)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Within it, tensors can be made on and moved to the device given."""
    with _Mode():
        yield DEVICE
