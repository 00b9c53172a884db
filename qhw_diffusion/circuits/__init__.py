"""Circuits: the policy and the denoiser circuit, and circuits as files. Qiskit only, no torch."""

from __future__ import annotations

from qhw_diffusion.circuits.denoiser import DenoiserCircuit, denoiser_circuit
from qhw_diffusion.circuits.library import load_circuit, save_circuit
from qhw_diffusion.circuits.policy import ENTANGLEMENTS, PolicyCircuit, policy_circuit

__all__ = [
    "ENTANGLEMENTS",
    "DenoiserCircuit",
    "PolicyCircuit",
    "denoiser_circuit",
    "load_circuit",
    "policy_circuit",
    "save_circuit",
]
