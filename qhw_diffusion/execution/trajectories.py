"""Mid-circuit measurements with sampled outcomes: one trajectory per sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.chain import Chain
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Engine
from qhw_diffusion.execution.exact import Ideal, simulator_of
from qhw_diffusion.execution.program import FixedMap, Measurement, Rotation
from qhw_diffusion.execution.readoff import outcome_probabilities
from qhw_diffusion.execution.simulator import Simulator


@dataclass(frozen=True)
class Trajectories:
    """What was drawn.

    Attributes:
        values: [B, M] expectation values given the outcomes.
        outcomes: [B, K] as read (readout errors included, if the engine has them), one column a measurement, in order.
        clbits: [K] the classical bit of each.
    """

    values: Tensor
    outcomes: Tensor
    clbits: tuple[int, ...]


def sample_trajectories(
    compiled: CompiledCircuit, engine: Engine, inputs: Tensor, weights: Tensor, generator: torch.Generator
) -> Trajectories:
    """Run every sample through the circuit with the outcomes of its mid-circuit measurements drawn.

    A measurement collapses the state by the true outcome; what is read may differ from it by the readout error.

    Args:
        compiled: a circuit with measurements; those that it post-selects on are kept as such.
        engine: ``Ideal()`` or ``Noisy()``.
        inputs: [B, inputs]; weights: [weights].
        generator: where the outcomes come from.

    Raises:
        InvalidInputError: another engine, or a circuit without such measurements.
    """
    if not isinstance(engine, Ideal):
        raise InvalidInputError(f"engine {engine.name!r} cannot sample trajectories; use 'ideal' or 'noisy'")
    simulator = simulator_of(compiled, engine.noisy, weights.dtype)
    program = simulator.program
    segments: list[list[Rotation | FixedMap]] = [[]]
    drawn: list[Measurement] = []
    for operation in program.operations:
        if isinstance(operation, Measurement) and operation.keep is None:
            drawn.append(operation)
            segments.append([])
        else:
            segments[-1].append(operation)
    if not drawn:
        raise InvalidInputError("the circuit measures nothing in mid-circuit: there is no outcome to sample")
    # Between measurements a pure state stays pure, unless something else mixes it.
    pure = not engine.noisy and all(o.matrix is not None for s in segments for o in s if isinstance(o, FixedMap))
    if pure and simulator.basis != "state":
        coherent = tuple(operation for segment in segments for operation in segment)
        simulator = Simulator(replace(program, operations=coherent), noisy=False, dtype=weights.dtype)
    chains = [
        Chain(segment, program, simulator.basis, noisy=engine.noisy, dtype=simulator.dtype) for segment in segments
    ]
    outcomes = np.zeros((len(inputs), len(drawn)), dtype=np.int64)
    values = np.zeros((len(inputs), len(simulator.observables)), simulator.dtype)
    for block in simulator.blocks(len(inputs)):
        angles = simulator.angles(inputs[block].detach().cpu().numpy(), weights.detach().cpu().numpy())
        rows = simulator.start(block.stop - block.start)
        for k, chain in enumerate(chains):
            rows, _ = chain.forward(rows, angles, keep=False)
            if k < len(drawn):
                outcomes[block, k] = _measure(rows, drawn[k], simulator, engine.noisy, generator)
        values[block] = simulator.observables.values(rows, simulator.observables.rows)
    given = values[:, :-1] / values[:, -1:] if program.postselected else values
    return Trajectories(
        torch.from_numpy(np.ascontiguousarray(given)).to(inputs),
        torch.from_numpy(outcomes).to(inputs.device),
        tuple(m.clbit for m in drawn),
    )


def _measure(
    rows: np.ndarray, measurement: Measurement, simulator: Simulator, noisy: bool, generator: torch.Generator
) -> np.ndarray:
    """Draw the outcome of every column, collapse the rows in place, and return what is read, [B]."""
    (q,), n = measurement.qubits, simulator.program.n_qubits
    probabilities = outcome_probabilities(rows, "Z" * n, simulator.basis)
    ones = probabilities[:, (np.arange(2**n) >> q) & 1 == 1].sum(1) / probabilities.sum(1)
    chance = torch.rand((2, rows.shape[1]), generator=generator, dtype=torch.float64).numpy()
    true = chance[0] < ones
    _collapse(rows, q, true, simulator)
    p10, p01 = measurement.readout if noisy else (0.0, 0.0)
    read: np.ndarray = true ^ (chance[1] < np.where(true, p01, p10))
    return read


def _collapse(rows: np.ndarray, q: int, ones: np.ndarray, simulator: Simulator) -> None:
    """Project qubit q of every column on its outcome and normalise, in place."""
    index = np.arange(len(rows))
    if simulator.basis == "state":
        digit = (index % (len(rows) // 2)) >> q & 1
        rows *= digit[:, None] == ones[None, :]
        rows /= np.linalg.norm(rows, axis=0)
        return
    digit = index // 4**q % 4  # 0 and 2: the populations; 1 and 3: the coherences, which a measurement destroys
    rows *= digit[:, None] == 2 * ones[None, :]
    trace = outcome_probabilities(rows, "Z" * simulator.program.n_qubits, "density").sum(1)
    rows /= trace.astype(rows.dtype)
