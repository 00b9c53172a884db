"""What each peer can do, as tried by the files of this folder, or read in its documentation."""

from __future__ import annotations

# peer, its version, a batch of inputs, gradients, noise, the ISA circuit with the device's noise
TABLE = (
    (
        "qhw_diffusion",
        "",
        "yes",
        "adjoint, inputs and weights, ideal and noisy; second derivatives",
        "exact, trajectories, shots, devices",
        "yes, compiled from Qiskit's circuit",
    ),
    (
        "TensorCircuit-NG, JAX",
        "1.10.0",
        "yes, `vmap`",
        "JAX's, ideal and noisy",
        "density matrix; trajectories (R)",
        "yes, channels as nodes, written gate by gate",
    ),
    (
        "PennyLane",
        "0.45.1",
        "yes, broadcasting; not with `adjoint` of lightning",
        "backprop, adjoint, ideal; backprop, noisy",
        "`default.mixed`",
        "yes, `QubitChannel`, written gate by gate",
    ),
    (
        "FlagQuantum",
        "0.3.1",
        "yes, angles [B] and `bsz`; the noisy method of a circuit forgets it, the function behind it does not",
        "torch's, ideal and noisy",
        "density matrix, channels by the name of a gate; readout (R)",
        "yes, every gate under a name of its own; reads Qiskit's circuits (R)",
    ),
    (
        "DeepQuantum",
        "4.5.0",
        "yes, `vmap` over rows of data",
        "torch's, ideal and noisy; weights as parameters or data",
        "density matrix; named channels on one qubit",
        "yes, any Kraus operators by a class derived from `Channel`",
    ),
    (
        "CUDA-Q, CPU",
        "0.16.0",
        "values only: `observe` takes an array of rows, one after the other",
        "parameter-shift, of one value at a time, ideal and noisy",
        "`density-matrix-cpu`, `NoiseModel`",
        "yes, every gate as a registered operation with a channel",
    ),
    (
        "Qulacs",
        "0.6.14",
        "no, a loop over samples",
        "backprop, ideal; refused with noise",
        "`DensityMatrix`",
        "not tried",
    ),
    (
        "EstimatorQNN",
        "0.9.1",
        "yes",
        "parameter-shift",
        "that of the estimator (R)",
        "not tried",
    ),
    (
        "Aer",
        "0.18.2",
        "one broadcast PUB",
        "none; parameter-shift by ours",
        "density matrix, trajectories",
        "yes, Qiskit's circuit and noise model",
    ),
)


def lines() -> list[str]:
    """The section of the page."""
    return [
        "## What each can do",
        "",
        "Tried in `benchmarks/` at the versions named; (R): read in its documentation and not tried.",
        "",
        "| | version | a batch of inputs | gradients | noise | the ISA circuit and the device's noise |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in TABLE),
        "",
        "FlagQuantum and DeepQuantum live together with the other peers in the extra `bench` (FlagQuantum keeps torch "
        "below 2.15). CUDA-Q, for Linux and 0.9 GB large, is not in it: `make bench` says how to install it, and goes "
        "on without.",
        "",
    ]
