"""Records of static measured circuits, exactly: the probability of every outcome, and a Sampler that draws from it.

A circuit whose measurements all come at its end has 2^w records of its w classical bits, whose probabilities are the
Walsh–Hadamard transform of the values of all Z strings on the measured qubits. The noisy engine gives these for many
rows at once, readout errors included; the counts have the distribution that Aer samples from shot by shot.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import (
    BasePrimitiveJob,
    BaseSamplerV2,
    BitArray,
    DataBin,
    PrimitiveJob,
    PrimitiveResult,
    SamplerPubResult,
)
from qiskit.primitives.containers.sampler_pub import SamplerPub as QiskitPub
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import rows_of
from qhw_diffusion.execution.engines import Ideal, Noisy
from qhw_diffusion.execution.measurement import outcome_distribution

MOST_BITS = 10
"""Classical bits of a record whose probabilities are computed: 2^w strings are evaluated."""
_IGNORED = ("barrier", "delay")


def measured_at_end(circuit: QuantumCircuit) -> tuple[int, ...] | None:
    """Qubit of every classical bit, if all bits are read once, at the end and without conditions; else None."""
    read: dict[int, int] = {}
    for instruction in circuit.data:
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        name = instruction.operation.name
        if name in _IGNORED:
            continue
        if set(qubits) & set(read.values()) or (instruction.clbits and name != "measure") or name == "reset":
            return None
        if name == "measure":
            clbit = circuit.find_bit(instruction.clbits[0]).index
            if clbit in read:
                return None
            read[clbit] = qubits[0]
    return tuple(read[k] for k in range(circuit.num_clbits)) if len(read) == circuit.num_clbits else None


def compiled_records(
    circuit: QuantumCircuit, device: Device, inputs: Iterable[Parameter], weights: Iterable[Parameter] = ()
) -> CompiledCircuit:
    """A measured ISA circuit as what engines evaluate: the same gates, and all Z strings of the bits it reads.

    Args:
        circuit: from `compile_sampled`, measured at its end only.
        device: that it was compiled for.
        inputs: parameters that differ from row to row, in order; those that the circuit does not have are left out.
        weights: parameters that do not, likewise.

    Raises:
        UnsupportedCircuitError: measurements or resets in mid-circuit, conditions, or too many classical bits.
    """
    places = measured_at_end(circuit)
    if places is None:
        raise UnsupportedCircuitError(
            f"circuit {circuit.name!r} measures or resets before its end, or has conditions: its records are sampled "
            "(SamplerEngine) and not computed"
        )
    if len(places) > MOST_BITS:
        raise UnsupportedCircuitError(
            f"circuit {circuit.name!r} reads {len(places)} classical bits, and the probabilities of records of up to "
            f"{MOST_BITS} bits are computed: sample it (SamplerEngine)"
        )
    bare = circuit.copy_empty_like()
    for instruction in circuit.data:
        if instruction.operation.name != "measure":
            bare.append(instruction)
    strings = [
        SparsePauliOp.from_sparse_list(
            [("Z" * bin(s).count("1"), [places[k] for k in range(len(places)) if s >> k & 1], 1.0)], bare.num_qubits
        )
        for s in range(2 ** len(places))
    ]
    left = set(bare.parameters)
    used = {bare.find_bit(q).index for i in bare.data if i.operation.name not in _IGNORED for q in i.qubits}
    return CompiledCircuit(
        bare,
        device,
        tuple(parameter for parameter in inputs if parameter in left),
        tuple(parameter for parameter in weights if parameter in left),
        tuple(strings),
        tuple(sorted(used | set(places))),
    )


def record_probabilities(
    circuit: QuantumCircuit,
    device: Device,
    parameters: Iterable[Parameter],
    values: np.ndarray,
    *,
    noisy: bool = True,
) -> np.ndarray:
    """The probability of every record, [B, 2^w]; bit k of a record is classical bit k of the circuit.

    Args:
        circuit: as `compiled_records`.
        device: as `compiled_records`.
        parameters: in the order of the columns of `values`.
        values: [B, P] radians.
        noisy: with the device's noise and readout errors.

    Raises:
        UnsupportedCircuitError: as `compiled_records`.
        InvalidInputError: noise of a device that has none.
        MemoryBudgetError: too many qubits.
    """
    parameters = tuple(parameters)
    same = (values == values[:1]).all(0)
    ways = [[p for p, fixed in zip(parameters, same, strict=True) if fixed == wanted] for wanted in (False, True)]
    compiled = compiled_records(circuit, device, *ways)
    engine = Noisy() if noisy else Ideal()
    engine.check(compiled)
    column = {parameter: k for k, parameter in enumerate(parameters)}
    inputs = values[:, [column[p] for p in compiled.inputs]]
    weights = torch.from_numpy(values[0, [column[p] for p in compiled.weights]])
    found = engine.estimate(compiled, rows_of(torch.from_numpy(inputs), weights)).values
    p = outcome_distribution(found.numpy()).clip(0)
    return np.asarray(p / p.sum(1, keepdims=True))


class NoisySampler(BaseSamplerV2):
    """A Sampler of this process with a device's noise, for static circuits: records drawn from exact probabilities.

    Args:
        device: that circuits are compiled for; the ideal device has no noise.
        seed: of the records.
        shots: of each row, where a PUB does not say.
    """

    def __init__(self, device: Device, seed: int = 0, shots: int = 4096) -> None:
        self.device, self.shots = device, shots
        self._generator = np.random.default_rng(seed)

    def run(
        self, pubs: Iterable[Any], *, shots: int | None = None
    ) -> BasePrimitiveJob[PrimitiveResult[SamplerPubResult], Any]:
        """As `BaseSamplerV2.run`; the job's result raises what `record_probabilities` does."""
        coerced = [QiskitPub.coerce(pub, self.shots if shots is None else shots) for pub in pubs]
        job: PrimitiveJob[PrimitiveResult[SamplerPubResult], Any] = PrimitiveJob(self._run, coerced)
        job._submit()
        return job

    def _run(self, pubs: list[QiskitPub]) -> PrimitiveResult[SamplerPubResult]:
        return PrimitiveResult([self._sampled(pub) for pub in pubs])

    def _sampled(self, pub: QiskitPub) -> SamplerPubResult:
        circuit, shape = pub.circuit, pub.parameter_values.shape
        parameters = tuple(circuit.parameters)
        values = pub.parameter_values.as_array([p.name for p in parameters]).reshape(-1, len(parameters))
        if len(shape) > 1:
            raise InvalidInputError(f"parameter values of shape {shape}; allowed: one axis of rows")
        p = record_probabilities(circuit, self.device, parameters, values, noisy=self.device.has_noise)
        records = np.stack([self._generator.choice(p.shape[1], pub.shots, p=row) for row in p])
        bits = (records[..., None] >> np.arange(circuit.num_clbits) & 1).astype(bool)
        data = {
            register.name: BitArray.from_bool_array(
                bits[..., [circuit.find_bit(bit).index for bit in register]].reshape(*shape, pub.shots, len(register)),
                order="little",
            )
            for register in circuit.cregs
        }
        return SamplerPubResult(DataBin(shape=shape, **data), {"shots": pub.shots})
