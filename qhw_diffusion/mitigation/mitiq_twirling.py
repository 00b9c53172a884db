"""Pauli twirling with Mitiq (arXiv 1512.01098, 2301.02690)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch

from qhw_diffusion.errors import UnsupportedCircuitError
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.mitigation.mitiq_bridge import bridge, check_basis, require_mitiq
from qhw_diffusion.mitigation.mitiq_weighted import Family, Weighted, check_number
from qhw_diffusion.mitigation.strategy import MOST_CIRCUITS, without_delays


@dataclass(frozen=True)
class MitiqTwirling(Weighted):
    """The mean over circuits with random Paulis around every CX or CZ that cancel: coherent errors become random ones.

    By itself it leaves incoherent errors as they are and adds those of the Paulis. Mitiq has no table for ECR, and
    rewriting ECR as CX would add gates to every one: such circuits are refused, `PauliTwirling` takes them.

    Args:
        circuits: random circuits, ≥ 1.
        seed: of the Paulis.

    Raises:
        InvalidInputError: a number of circuits below 1.
    """

    circuits: int = 16
    seed: int = 0
    name: ClassVar[str] = "mitiq-twirling"

    def __post_init__(self) -> None:
        check_number("circuits", self.circuits, 1, MOST_CIRCUITS)
        check_number("seed", self.seed, 0)

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.circuits}:{self.seed}"

    def check(self, compiled: CompiledCircuit) -> None:
        super().check(compiled)
        _refuse_ecr(compiled)

    def make(self, compiled: CompiledCircuit) -> Family:
        require_mitiq()
        _refuse_ecr(compiled)
        from mitiq.pt import generate_pauli_twirl_variants

        source = bridge(compiled)
        state = random.getstate()  # Mitiq draws from Python's global generator
        random.seed(self.seed)
        try:
            variants = generate_pauli_twirl_variants(source.circuit, self.circuits)
        finally:
            random.setstate(state)
        twirled = tuple(source.back(variant, identities=False) for variant in variants)
        weights = torch.full((len(twirled),), 1 / len(twirled), dtype=torch.float64)
        return Family(twirled, weights, (1,) * len(twirled))


def _refuse_ecr(compiled: CompiledCircuit) -> None:
    if check_basis(without_delays(compiled)) == "ecr":
        raise UnsupportedCircuitError(
            f"Mitiq twirls CX and CZ; circuits for {compiled.device.name} have ECR. PauliTwirling() takes them"
        )
