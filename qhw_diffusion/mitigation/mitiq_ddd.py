"""Digital dynamical decoupling with Mitiq (arXiv quant-ph/9803057, 1807.08768)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from qhw_diffusion.errors import UnknownNameError
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.mitigation.mitiq_bridge import bridge, require_mitiq
from qhw_diffusion.mitigation.mitiq_weighted import Family, Weighted

RULES = ("xx", "yy", "xyxy")


@dataclass(frozen=True)
class MitiqDDD(Weighted):
    """Fill the layers in which a qubit waits with pulses that multiply to the identity.

    Mitiq counts layers and knows no durations. Barriers keep each pulse in the layer Mitiq put it in, which makes the
    circuit as long as the sum of its slowest gates; `DynamicalDecoupling` places pulses in time and does not.
    It acts on what a waiting qubit collects coherently. A device's calibration has only T1 and T2 (relaxation without
    memory), so that on engine ``"noisy"`` it can but do harm.

    Args:
        rule: ``"xx"``, ``"yy"`` or ``"xyxy"``.

    Raises:
        UnknownNameError: another rule.
    """

    rule: str = "xx"
    name: ClassVar[str] = "mitiq-ddd"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UnknownNameError.of("decoupling rule", str(self.rule), RULES)

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.rule}"

    def make(self, compiled: CompiledCircuit) -> Family:
        require_mitiq()
        from mitiq.ddd import construct_circuits, rules

        source = bridge(compiled)
        rule = {"xx": rules.xx, "yy": rules.yy, "xyxy": rules.xyxy}[self.rule]
        [circuit] = construct_circuits(source.circuit, rule)
        # The identities of the rules are empty places; waiting is what the barriers leave there
        filled = source.back(circuit, identities=False, layers=True)
        return Family((filled,), torch.ones(1, dtype=torch.float64))
