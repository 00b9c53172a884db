"""Where torch records operations instead of doing them (compiling, tracing, exporting, checkpointing).

A circuit is evaluated by loops of its own, which no record of torch's operations holds: what is recorded would be the
values at the inputs of the recording, whatever inputs come later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from qhw_diffusion.errors import InvalidInputError

F = TypeVar("F", bound=Callable[..., Any])
_PROXIES = "torch.fx.experimental.proxy_tensor"
_PLAIN = (Tensor, nn.Parameter)
_CHECKPOINT = os.path.join("torch", "utils", "checkpoint.py")


def outside_torch(method: F) -> F:
    """The same method, which `torch.compile` runs as it stands instead of looking into it.

    Raises:
        InvalidInputError: `torch.jit.trace`, `torch.export`, `torch.onnx.export` or `make_fx` records it.
    """

    @wraps(method)
    def outside(*arguments: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():
            from qhw_diffusion.execution.uncompiled import run

            return run(unrecorded, *arguments, **named)
        return unrecorded(*arguments, **named)

    def unrecorded(*arguments: Any, **named: Any) -> Any:
        _refuse_recording()
        return method(*arguments, **named)

    return cast(F, outside)


def _refuse_recording() -> None:
    proxies = sys.modules.get(_PROXIES)
    if torch.jit.is_tracing() or (proxies is not None and proxies.get_proxy_mode() is not None):
        raise InvalidInputError(
            "torch records operations here (torch.jit.trace, torch.export, torch.onnx.export, make_fx, "
            "torch.func.linearize), and the values of a circuit would be kept as constants; use torch.compile or "
            "torch.func.jvp, export the parts around the circuit, and save the layer with layer.save"
        )


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are in this process's memory, at its `data_ptr` (outside transforms of torch.func)."""
    return type(tensor) in _PLAIN and tensor.is_cpu


def refuse_without_numbers(what: str, *tensors: Tensor) -> None:
    """Raise InvalidInputError where one of the tensors has a shape and no numbers: on the meta device, or fake."""
    for tensor in tensors:
        kind = type(tensor)
        if (tensor.is_meta and kind in _PLAIN) or kind.__name__ == "FakeTensor":
            where = "on the meta device" if tensor.is_meta else "fake (FakeTensorMode)"
            raise InvalidInputError(
                f"{what} are {where} and have no numbers, which a circuit needs; give tensors with numbers "
                "(layer.to_empty(device='cpu'), then load_state_dict, fills a layer)"
            )


def refuse_recomputation(what: str) -> None:
    """Raise InvalidInputError where `torch.utils.checkpoint` evaluates again: other draws, paid for once more."""
    if torch._C._current_graph_task_id() == -1:  # no backward pass is at work
        return
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_CHECKPOINT):
            raise InvalidInputError(
                f"{what} evaluates anew when torch.utils.checkpoint asks a second time, and the gradient would belong "
                "to other values than those of the forward pass; leave the layer out of what is checkpointed"
            )
        frame = frame.f_back  # type: ignore[assignment]
