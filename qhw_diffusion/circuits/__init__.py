"""Circuits: the policy circuit, and circuits as files. Qiskit only, no torch."""

from __future__ import annotations

from qhw_diffusion.circuits.library import load_circuit, save_circuit
from qhw_diffusion.circuits.policy import ENTANGLEMENTS, PolicyCircuit, policy_circuit

__all__ = ["ENTANGLEMENTS", "PolicyCircuit", "load_circuit", "policy_circuit", "save_circuit"]
