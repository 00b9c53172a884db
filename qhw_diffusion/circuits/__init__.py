"""Circuits: the policy and the denoiser circuit, their measures, and circuits as files. Qiskit only, no torch."""

from __future__ import annotations

from qhw_diffusion.circuits.ansatz import ANSATZES, Ansatz
from qhw_diffusion.circuits.deferred import DeferredCircuit, deferred_circuit, preparation_angles
from qhw_diffusion.circuits.denoiser import DenoiserCircuit, denoiser_circuit
from qhw_diffusion.circuits.library import load_circuit, save_circuit
from qhw_diffusion.circuits.measures import Estimate, entangling_capability, expressibility
from qhw_diffusion.circuits.observables import AdaptiveObservables
from qhw_diffusion.circuits.policy import ENTANGLEMENTS, POLICY_ANSATZES, PolicyCircuit, policy_ansatz, policy_circuit
from qhw_diffusion.circuits.published import PublishedCircuit, published_circuit, published_circuits
from qhw_diffusion.circuits.reverse import ReverseCircuit, dynamic_circuit, reverse_circuit

__all__ = [
    "ANSATZES",
    "ENTANGLEMENTS",
    "POLICY_ANSATZES",
    "AdaptiveObservables",
    "Ansatz",
    "DeferredCircuit",
    "DenoiserCircuit",
    "Estimate",
    "PolicyCircuit",
    "PublishedCircuit",
    "ReverseCircuit",
    "deferred_circuit",
    "denoiser_circuit",
    "dynamic_circuit",
    "entangling_capability",
    "expressibility",
    "load_circuit",
    "policy_ansatz",
    "policy_circuit",
    "preparation_angles",
    "published_circuit",
    "published_circuits",
    "reverse_circuit",
    "save_circuit",
]
