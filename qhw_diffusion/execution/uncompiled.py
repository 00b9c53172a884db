"""What `torch.compile` leaves as it stands. Imported while something is compiled: it brings torch's compiler along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

REASON = "a circuit is evaluated by compiled loops outside of torch; without fullgraph=True the rest is compiled"


@torch.compiler.disable(reason=REASON)
def run(method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the method answers; torch's compiler does not look into it."""
    return method(*arguments, **named)
