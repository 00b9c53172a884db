"""Counts from circuits with measurements: any Sampler primitive in this process, or a device by way of the ledger.

What an Estimator cannot give: outcomes of single shots, record by record, of circuits that are static or dynamic
(measurements and resets anywhere, `if_else` on what was measured).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import BaseSamplerV2, BitArray
from torch import Tensor

from qhw_diffusion.circuits.library import with_usual_instructions
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import EngineError, InvalidInputError, QhwError, UnsupportedCircuitError
from qhw_diffusion.execution.transpile import transpiled
from qhw_diffusion.hardware.cost import Cost, DoneJob, expected_cost
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.sampling import check_conditions, flat_bits, operations_of
from qhw_diffusion.hardware.service import SamplerPub, check_shots, measures
from qhw_diffusion.hardware.split import JobLimits
from qhw_diffusion.masking import shown_cause

# Bits of a record that is counted: as many as a whole number in NumPy has, without its sign
MOST_BITS = 62
# Bits of which every record can be asked for
_MOST_DENSE = 20


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each record was read.

    Attributes:
        counts: int64 [B, R] for B sets of parameter values and R records.
        records: bool [R, bits]: the bits of each record, those of the first register first, each the lowest bit first.
        registers: (name, bits) of the registers that a record is made of.
    """

    counts: np.ndarray
    records: np.ndarray
    registers: tuple[tuple[str, int], ...]

    @property
    def frequencies(self) -> np.ndarray:
        """[B, R]: counts over shots."""
        return np.asarray(self.counts / self.counts.sum(1, keepdims=True))

    def where(self, register: str) -> np.ndarray:
        """Bool [R, n]: the bits of one register in every record.

        Raises:
            InvalidInputError: a register that is not in the records.
        """
        start = 0
        for name, width in self.registers:
            if name == register:
                return self.records[:, start : start + width]
            start += width
        raise InvalidInputError(f"no register {register!r}; there are {[name for name, _ in self.registers]}")


@dataclass(frozen=True, eq=False)
class Samples:
    """What was read in every shot, for B sets of parameter values.

    Attributes:
        bits: {classical register: `BitArray` of shape (B,)}, as the Sampler returned them.
        job_ids: of the jobs that they are from, in order; empty for a Sampler in this process.
        qpu_seconds: charged for the call's jobs, failed attempts included; None while the service has not stated it.
        reused: how many of the jobs were in the ledger already.
    """

    bits: dict[str, BitArray]
    job_ids: tuple[str, ...] = ()
    qpu_seconds: float | None = 0.0
    reused: int = 0

    @property
    def shots(self) -> int:
        """Of every set of parameter values."""
        return int(next(iter(self.bits.values())).num_shots)

    @property
    def registers(self) -> tuple[tuple[str, int], ...]:
        """(name, bits) of every classical register, in the circuit's order."""
        return tuple((name, array.num_bits) for name, array in self.bits.items())

    def outcomes(self, *registers: str) -> np.ndarray:
        """Every shot as a whole number.

        Args:
            registers: what a record is made of, that with the lowest bits first; none for all of them.

        Returns:
            int64 [B, shots].

        Raises:
            InvalidInputError: a register that there is not, or more than 62 bits together.
        """
        total: np.ndarray | None = None
        used = 0
        for name, width in self._chosen(registers):
            array = self.bits[name].array.astype(np.int64)  # bytes, the highest first
            powers = np.left_shift(np.int64(1), 8 * np.arange(array.shape[-1], dtype=np.int64)[::-1])
            value = np.left_shift((array * powers).sum(-1), used)
            total = value if total is None else total + value
            used += width
        assert total is not None
        return total

    def counts(self, *registers: str, every: bool = False) -> Counts:
        """How often each record was read.

        Args:
            registers: what a record is made of, that with the lowest bits first; none for all of them.
            every: all 2ⁿ records in ascending order, those too that were never read; else those that were, ascending.

        Raises:
            InvalidInputError: as `outcomes`; `every` for more than 20 bits.
        """
        chosen = self._chosen(registers)
        width = sum(bits for _, bits in chosen)
        outcomes = self.outcomes(*registers)
        if every and width > _MOST_DENSE:
            raise InvalidInputError(f"{width} bits have 2^{width} records; every=True is for up to {_MOST_DENSE} bits")
        found, place = (np.arange(2**width), outcomes) if every else np.unique(outcomes, return_inverse=True)
        place = place.reshape(outcomes.shape)
        counts = np.stack([np.bincount(row, minlength=len(found)) for row in place]).astype(np.int64)
        records = (found[:, None] >> np.arange(width)) & 1
        return Counts(counts, records.astype(bool), chosen)

    def _chosen(self, registers: Sequence[str]) -> tuple[tuple[str, int], ...]:
        names = registers or tuple(self.bits)
        if unknown := [name for name in names if name not in self.bits]:
            raise InvalidInputError(f"no register {unknown[0]!r}; there are {list(self.bits)}")
        chosen = tuple((name, self.bits[name].num_bits) for name in names)
        if (width := sum(bits for _, bits in chosen)) > MOST_BITS or len(set(names)) < len(names):
            raise InvalidInputError(
                f"the registers {list(names)} have {width} bits; allowed: each of them once, up to {MOST_BITS} bits "
                "together. `bits` has all of them"
            )
        return chosen


@dataclass(frozen=True, eq=False)
class SamplerEngine:
    """Samples circuits by a Sampler primitive of this process, or on a device by way of a `Runner`.

    Samplers of this process, the runtime client's on a live device excepted, are sent `measure` and `reset` in place of
    `measure_2` and `reset_2`, which simulators do not know: they have the noise of the former, if any.

    By a runner, jobs go through the ledger and its caps as an Estimator's do (docs/hardware.md): what is there already
    is not run again, and a large call is split below the service's limits.

    Args:
        source: a `BaseSamplerV2` (Aer's, `BackendSamplerV2`, the runtime client's) or a `Runner` (`open_runner`).
        shots: of each set of parameter values, unless a call says otherwise.
        options: of the runtime client's Sampler (twirling, decoupling …), for jobs of a runner.
        purpose: what the samples are for, part of the ledger's key; the same work for another purpose is run again.
        packages: distributions that the circuits were made with; their versions are kept with the jobs.

    Raises:
        InvalidInputError: another source, shots out of range, options for a Sampler of this process.
    """

    source: BaseSamplerV2 | Runner
    shots: int = 4096
    options: Mapping[str, Any] = field(default_factory=dict)
    purpose: str = "sample"
    packages: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.source, BaseSamplerV2 | Runner):
            raise InvalidInputError(
                f"source is a {type(self.source).__name__}; give a Sampler primitive (BaseSamplerV2), or a Runner "
                "(open_runner(device, …))"
            )
        check_shots(self.shots)
        if self.options and not isinstance(self.source, Runner):
            raise InvalidInputError("options are for a device's jobs; give those of a Sampler to the Sampler itself")

    def pub(
        self,
        circuit: QuantumCircuit,
        values: np.ndarray | Tensor | None = None,
        *,
        parameters: Sequence[Parameter] | None = None,
        shots: int | None = None,
        label: str = "circuit",
    ) -> SamplerPub:
        """What `sample_many` takes.

        Args:
            circuit: with its measurements, each into a classical register; for a device compiled by `compile_sampled`.
            values: [B, P] radians; None for a circuit without parameters.
            parameters: in the order of the columns of `values`; None: `circuit.parameters`, Qiskit's order by name.
                Those that compiling took out of every gate may be among them.
            shots: of each set of values; None for the engine's.
            label: what the circuit is, in a few words; kept with the job.

        Raises:
            InvalidInputError: parameters without values, another shape, NaN, nothing measured, registers that the
                client does not take, shots out of range.
        """
        order = tuple(circuit.parameters if parameters is None else parameters)
        if values is None and circuit.num_parameters:
            names = ", ".join(parameter.name for parameter in circuit.parameters)
            raise InvalidInputError(f"circuit {circuit.name!r} has unbound parameters ({names}): give their values")
        array = np.zeros((1, 0)) if values is None else _as_array(values)
        if values is not None and (array.ndim != 2 or array.shape[1] != len(order)):
            raise InvalidInputError(f"values have shape {array.shape}; allowed: [rows, {len(order)} parameters]")
        if missing := sorted({p.name for p in circuit.parameters} - {p.name for p in order}):
            raise InvalidInputError(f"parameters of circuit {circuit.name!r} without values: {', '.join(missing)}")
        left = set(circuit.parameters)
        kept = [column for column, parameter in enumerate(order) if parameter in left]
        mapping = None if circuit.layout is None else circuit.layout.input_qubit_mapping
        layout = None if mapping is None else tuple(circuit.layout.initial_index_layout(filter_ancillas=True))
        return SamplerPub(
            circuit,
            tuple(order[column] for column in kept),
            array[:, kept],
            self.shots if shots is None else shots,
            label=label,
            layout=layout,
        )

    def sample(
        self,
        circuit: QuantumCircuit,
        values: np.ndarray | Tensor | None = None,
        *,
        parameters: Sequence[Parameter] | None = None,
        shots: int | None = None,
    ) -> Samples:
        """Sample one circuit; arguments as `pub`, errors also as `sample_many`."""
        return self.sample_many([self.pub(circuit, values, parameters=parameters, shots=shots)])[0]

    def sample_many(self, pubs: Sequence[SamplerPub]) -> list[Samples]:
        """Sample several circuits in one call: on a device one job, or as many as its limits need.

        Raises:
            InvalidInputError: what `Runner.run` refuses before anything is sent: control flow or instructions that the
                device does not have, more shots than it takes.
            BudgetError, JobError, ServiceError, AccountError, LedgerError: see `Runner.run`.
            EngineError: a Sampler of this process fails, or answers with something else than was asked for.
        """
        if not pubs:
            return []
        if isinstance(self.source, BaseSamplerV2):
            return self._in_this_process(pubs)
        answer = self.source.run(pubs, options=self.options, purpose=self.purpose, packages=self.packages)
        jobs = tuple(answer.job_ids)
        return [Samples(bits, jobs, answer.qpu_seconds, answer.reused) for bits in answer.bits]

    def cost(
        self,
        pubs: Sequence[SamplerPub],
        device: Device,
        *,
        calls: int = 1,
        repetition_delay: float | None = None,
        limits: JobLimits | None = None,
        history: Sequence[DoneJob] = (),
    ) -> Cost:
        """What calls of `sample_many` take on a device: cut into the same jobs, each estimated as the runner does.

        Args:
            pubs: of one call.
            device: that they are compiled for.
            calls: how many such calls.
            repetition_delay: seconds, if another than the device's default is asked for.
            limits: of one job; None for the service's.
            history: rows of the ledger.

        Raises:
            InvalidInputError: the ideal device; a row that does not fit into a job.
        """
        return expected_cost(
            pubs, device, calls=calls, repetition_delay=repetition_delay, limits=limits, history=history
        )

    def _in_this_process(self, pubs: Sequence[SamplerPub]) -> list[Samples]:
        sampler = self.source
        assert isinstance(sampler, BaseSamplerV2)
        who = f"{type(sampler).__module__.split('.')[0]}'s {type(sampler).__name__}"
        if not _is_live(sampler):
            pubs = [replace(pub, circuit=with_usual_instructions(pub.circuit)) for pub in pubs]
        for pub in pubs:
            check_conditions(pub.circuit, None, who)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the client's own SamplerV2
                result = sampler.run([pub.as_tuple() for pub in pubs]).result()
            found = [
                Samples({name: flat_bits(result[index].data[name]) for name, _ in pub.registers})
                for index, pub in enumerate(pubs)
            ]
        except QhwError:
            raise
        except Exception as error:
            asked = ", ".join(f"{pub.circuit.name!r} × {pub.rows} rows × {pub.shots} shots" for pub in pubs)
            raise EngineError(f"{who} failed on {asked}: {type(error).__name__}: {error}") from shown_cause(error)
        for pub, samples in zip(pubs, found, strict=True):
            shapes = {name: (array.shape, array.num_bits, array.num_shots) for name, array in samples.bits.items()}
            if shapes != {name: ((pub.rows,), width, pub.shots) for name, width in pub.registers}:
                raise EngineError(
                    f"{who} answered with (rows, bits, shots) {shapes}; asked for were {pub.rows} rows of {pub.shots} "
                    f"shots"
                )
        return found


def _is_live(sampler: BaseSamplerV2) -> bool:
    """Whether it is the runtime client's on a live device. No other one knows `measure_2` and `reset_2`."""
    if not type(sampler).__module__.startswith("qiskit_ibm_runtime"):
        return False
    from qiskit_ibm_runtime import IBMBackend

    return isinstance(sampler.backend(), IBMBackend)  # type: ignore[attr-defined]


def compile_sampled(
    circuit: QuantumCircuit, device: Device, *, optimization_level: int = 3, seed: int = 0
) -> QuantumCircuit:
    """A circuit with its measurements compiled for a device, for `SamplerEngine`.

    Measurements and resets in mid-circuit are by the device's own instructions for these (`measure_2`, `reset_2`) on
    the qubits that have them.

    Args:
        circuit: static or dynamic, parameters unbound.
        device: whose target counts.
        optimization_level: of Qiskit's preset passes, 0 to 3.
        seed: of the transpiler.

    Raises:
        InvalidInputError: nothing measured, more qubits than the device has, or resets or control flow that it lacks.
        UnsupportedCircuitError: the transpiler fails on the circuit.
    """
    if not measures(circuit):
        raise InvalidInputError(f"circuit {circuit.name!r} measures nothing: add measurements (measure_all)")
    if circuit.num_vars or circuit.num_stretches:
        raise UnsupportedCircuitError("the circuit has classical variables or stretches; leave them out")
    if device.target is not None:
        if circuit.num_qubits > len(device.usable_qubits):
            raise InvalidInputError(
                f"circuit {circuit.name!r} has {circuit.num_qubits} qubits, and {device.name} has "
                f"{len(device.usable_qubits)} that can be used: choose a larger device"
            )
        check_conditions(circuit, device.target, device.name)
        if "reset" in {name for name, _ in operations_of(circuit)} - set(device.target.operation_names):
            raise InvalidInputError(
                f"circuit {circuit.name!r} needs reset, which {device.name} does not have: choose another device, or "
                "fresh qubits in place of those that are reset"
            )
    return transpiled(
        circuit, device, optimization_level=optimization_level, seed=seed, scheduled=False, mid_circuit=True
    )


def _as_array(values: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"values are no array of numbers: {error}") from None
