"""Compile a circuit once for a device, then evaluate it with an interchangeable engine behind one torch layer."""

from __future__ import annotations

from qhw_diffusion.execution.compile import CompiledCircuit, compile_circuit
from qhw_diffusion.execution.engine import Cost, Engine, Estimate, Experiment, Plan, Usage
from qhw_diffusion.execution.engines import ENGINES, Ideal, Noisy, Shots, check_engine_text, engine_of, spec_of
from qhw_diffusion.execution.gradients import SPSA, GradientMethod, ParameterShift, Surrogate
from qhw_diffusion.execution.layer import QuantumLayer, load_layer, save_layer
from qhw_diffusion.execution.measurement import all_z_strings, outcome_distribution
from qhw_diffusion.execution.noise_trajectories import NoiseTrajectories
from qhw_diffusion.execution.primitive import Hardware, Primitive, aer_backend, aer_estimator, runtime_estimator
from qhw_diffusion.execution.program import FixedMap, Measurement, Program, Rotation
from qhw_diffusion.execution.records import NoisySampler, record_probabilities
from qhw_diffusion.execution.sampler import Counts, SamplerEngine, Samples, compile_sampled
from qhw_diffusion.execution.trajectories import Trajectories

__all__ = [
    "ENGINES",
    "SPSA",
    "CompiledCircuit",
    "Cost",
    "Counts",
    "Engine",
    "Estimate",
    "Experiment",
    "FixedMap",
    "GradientMethod",
    "Hardware",
    "Ideal",
    "Measurement",
    "NoiseTrajectories",
    "Noisy",
    "NoisySampler",
    "ParameterShift",
    "Plan",
    "Primitive",
    "Program",
    "QuantumLayer",
    "Rotation",
    "SamplerEngine",
    "Samples",
    "Shots",
    "Surrogate",
    "Trajectories",
    "Usage",
    "aer_backend",
    "aer_estimator",
    "all_z_strings",
    "check_engine_text",
    "compile_circuit",
    "compile_sampled",
    "engine_of",
    "load_layer",
    "outcome_distribution",
    "record_probabilities",
    "runtime_estimator",
    "save_layer",
    "spec_of",
]
