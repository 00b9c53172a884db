"""An engine for training on a device: every call is filed under a purpose of its own, no row is measured twice."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate, Usage
from qhw_diffusion.execution.engine import check_parameters
from qhw_diffusion.studies.device_rollout import Access


class FiledEngine(Engine):
    """The engine of one update: calls are numbered, and numbered the same way when the update is repeated.

    Rows of parameters that were measured in this update are not measured again. PPO's first gradient step looks at the
    states of its rollout with the weights of its rollout, so it costs nothing where it takes all of them at once; its
    probability ratios are then exactly 1, as they should be.
    """

    name: ClassVar[str] = "device"

    def __init__(self, access: Access, purpose: str) -> None:
        self.access, self.purpose, self.calls = access, purpose, 0
        self._known: dict[int, tuple[CompiledCircuit, dict[bytes, tuple[Tensor, Tensor]]]] = {}

    def check(self, compiled: CompiledCircuit) -> None:
        self.access.engine(self.purpose).check(compiled)

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        parameters = check_parameters(compiled, parameters)
        # the circuit is kept, so that its id stays its own
        _, known = self._known.setdefault(id(compiled), (compiled, {}))
        keys = [row.tobytes() for row in parameters.detach().cpu().double().numpy()]
        new = {key: index for index, key in reversed(list(enumerate(keys))) if key not in known}
        usage = Usage()
        if new:
            order = sorted(new.values())
            self.calls += 1
            engine = self.access.engine(f"{self.purpose} call {self.calls}")
            answer = engine.estimate(compiled, parameters.detach()[torch.tensor(order)])
            usage = answer.usage
            for place, index in enumerate(order):
                known[keys[index]] = answer.values[place], answer.std_errors[place]
        return Estimate(
            torch.stack([known[key][0] for key in keys]), torch.stack([known[key][1] for key in keys]), usage
        )
