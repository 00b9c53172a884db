"""Dynamical decoupling: pulses that turn a waiting qubit back and forth, in scheduled circuits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from qiskit import QuantumCircuit
from qiskit.circuit import Gate
from qiskit.circuit.library import RZGate, XGate
from qiskit.transpiler import PassManager
from qiskit.transpiler.passes import ALAPScheduleAnalysis, PadDynamicalDecoupling
from torch import Tensor

from qhw_diffusion.errors import UnknownNameError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment
from qhw_diffusion.mitigation.rewriting import DECOUPLED, kept, without_delays
from qhw_diffusion.mitigation.strategy import Need, Strategy

Pulses = Literal["xx", "xy4"]
SEQUENCES: tuple[str, ...] = get_args(Pulses)


@dataclass(frozen=True)
class DynamicalDecoupling(Strategy):
    """Dynamical decoupling of waiting qubits (Viola et al., arXiv:quant-ph/9809071; Ezzell et al., arXiv:2207.03670).

    Every wait of a scheduled circuit that is long enough is filled with X-X (``"xx"``: delays 1/4, 1/2, 1/4) or X-Y-X-Y
    (``"xy4"``: 1/8, 1/4, 1/4, 1/4, 1/8). Y is X and a virtual RZ(π). Qubits still in |0⟩ are left alone.

    It refocuses noise that stays the same for a while: slow drifts of a qubit's frequency, coupling to neighbours that
    wait too. The engines here model waiting as relaxation without memory (T1, T2 as calibrated), in which there is
    nothing to refocus: **on "noisy" and "shots" this strategy can only add the errors of its pulses**. It is for real
    devices.

    List it before strategies that change the circuit (`ZNE`, `PauliTwirling`), so that it comes last.

    Args:
        sequence: ``"xx"`` or ``"xy4"``.

    Raises:
        UnknownNameError: another sequence.
    """

    sequence: Pulses = "xx"
    name: ClassVar[str] = "decoupling"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SCHEDULE})
    text_least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.sequence not in SEQUENCES:
            raise UnknownNameError.of("decoupling sequence", str(self.sequence), SEQUENCES)

    @property
    def label(self) -> str:
        """``"decoupling X-X"`` or ``"decoupling XY4"``."""
        return "decoupling " + ("X-X" if self.sequence == "xx" else "XY4")

    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        """The same circuit with pulses in its waits."""
        Need.SCHEDULE.check(compiled)
        made, key = kept(compiled), ("decoupled", self.sequence)
        if key not in made:
            made[key] = replace(compiled, isa=_decoupled(compiled, *_pulses(self.sequence)))
        return [(made[key], rows)]

    def labels(self, compiled: CompiledCircuit, made: Sequence[Experiment]) -> list[str]:
        """``"decoupled, X-X"``."""
        return ["decoupled, X-X" if self.sequence == "xx" else "decoupled, XY4"]

    def combine(
        self,
        estimates: Sequence[Estimate],
        compiled: CompiledCircuit,
        rows: Tensor,
        calibration: Sequence[Estimate] = (),
    ) -> Estimate:
        """The estimate of that circuit."""
        return estimates[0]


def _pulses(sequence: str) -> tuple[list[Gate], list[float]]:
    """Gates and the shares of the waiting time before, between and after them."""
    if sequence == "xx":
        return [XGate(), XGate()], [1 / 4, 1 / 2, 1 / 4]
    turn = RZGate(math.pi)
    return [XGate(), turn, XGate(), XGate(), turn, XGate()], [1 / 8, 1 / 4, 0, 1 / 4, 1 / 4, 0, 1 / 8]


def _decoupled(compiled: CompiledCircuit, pulses: list[Gate], spacing: list[float]) -> QuantumCircuit:
    target = compiled.device.target
    assert target is not None  # only real devices' circuits are scheduled
    manager = PassManager(
        [
            ALAPScheduleAnalysis(target=target),
            PadDynamicalDecoupling(
                dd_sequence=pulses,
                spacing=spacing,
                qubits=list(compiled.physical_qubits),
                pulse_alignment=target.pulse_alignment,
                target=target,
            ),
        ]
    )
    isa = manager.run(without_delays(compiled))
    isa.metadata = {**(isa.metadata or {}), DECOUPLED: True}
    isa._layout = compiled.isa.layout  # the qubits are where they were, which the manager has forgotten
    return isa
