"""Compile a circuit once for a device, then evaluate it with an interchangeable engine behind one torch layer."""

from __future__ import annotations

from qhw_diffusion.execution.compile import CompiledCircuit, compile_circuit
from qhw_diffusion.execution.layer import ENGINES, QuantumLayer
from qhw_diffusion.execution.program import FixedMap, Program, Rotation

__all__ = ["ENGINES", "CompiledCircuit", "FixedMap", "Program", "QuantumLayer", "Rotation", "compile_circuit"]
