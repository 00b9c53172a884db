"""The programs that a job can ask for, computed by Aer: ``"estimator"``, ``"sampler"``, and ``"executor"`` for both.

`run_program` takes what the client posts and returns the text it reads back. The encodings are the client's own; those
that are undocumented are pinned by tests/hardware/standin/test_contract.py.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from qiskit import QuantumCircuit

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MID_CIRCUIT
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.hardware.local import AerEstimator, on_qubits, qubits_in_use
from qhw_diffusion.hardware.sampling import aer_simulator, operations_of, sample_bits, sample_counts
from qhw_diffusion.hardware.service import SamplerPub
from qhw_diffusion.hardware.split import bases_of

PROGRAMS = ("estimator", "sampler", "executor")
SCHEMA = "v2.0"


class NotOfThisTargetError(InvalidInputError):
    """A circuit with instructions that the device does not have: the service's error 1517."""


def check_instructions(circuit: QuantumCircuit, device: Device) -> None:
    """Refuse measurements and resets in mid-circuit by instructions that the device lacks, as the service does."""
    assert device.target is not None
    for name, place in operations_of(circuit):
        if name in MID_CIRCUIT.values() and not device.target.instruction_supported(name, place):
            raise NotOfThisTargetError(
                f"Circuits do not match the target definition: the instruction {name} on qubits {place} is not "
                "supported by the target"
            )


def run_program(program: str, params: str, device: Device, generator: np.random.Generator) -> tuple[str, int]:
    """(the result as the client reads it, executions of a circuit) of a job.

    Args:
        program: ``"estimator"``, ``"sampler"`` or ``"executor"``.
        params: the JSON text of the job's parameters.
        device: whose noise applies.
        generator: of the outcomes.

    Raises:
        InvalidInputError: another program, or parameters of another schema.
    """
    if program == "estimator":
        return _estimator(params, device, generator)
    if program == "sampler":
        return _sampler(params, device, generator)
    if program == "executor":
        return _executor(params, device, generator)
    raise InvalidInputError(f"the stand-in has no program {program!r}; it has {', '.join(PROGRAMS)}")


def _estimator(params: str, device: Device, generator: np.random.Generator) -> tuple[str, int]:
    """The deprecated EstimatorV2's: expectation values, made by the service. Its resilience options do nothing here."""
    from qiskit.primitives import DataBin, PrimitiveResult, PubResult
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.quantum_info import SparsePauliOp
    from qiskit_ibm_runtime import RuntimeDecoder, RuntimeEncoder

    given = json.loads(params, cls=RuntimeDecoder)
    options = given.get("options") or {}
    default = options.get("default_precision") or 1 / 64
    if options.get("default_shots"):
        default = 1 / math.sqrt(options["default_shots"])
    results, executions = [], 0
    for posted in given["pubs"]:
        circuit, observables, values, *rest = posted
        precision = (rest[0] if rest else None) or default
        pub = EstimatorPub.coerce((circuit, observables, values, precision))
        data, shots = _expectation_values(pub, precision, device, generator)
        operators = [SparsePauliOp.from_list(list(o.items())) for o in pub.observables.ravel().tolist()]
        executions += shots * bases_of(operators) * int(np.prod(pub.parameter_values.shape or (1,)))
        results.append(
            PubResult(DataBin(**data), {"shots": shots, "target_precision": precision, "circuit_metadata": {}})
        )
    return json.dumps(PrimitiveResult(results, {"version": 2}), cls=RuntimeEncoder), executions


def _expectation_values(
    pub: Any, precision: float, device: Device, generator: np.random.Generator
) -> tuple[dict[str, Any], int]:
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.quantum_info import SparsePauliOp

    operators = [SparsePauliOp.from_list(list(o.items())) for o in pub.observables.ravel().tolist()]
    qubits = qubits_in_use(pub.circuit, operators)
    circuit, observables = on_qubits(pub.circuit, operators, qubits)
    bindings = {tuple(pub.circuit.parameters): pub.parameter_values.as_array(pub.circuit.parameters)}
    shape = pub.observables.shape
    reshaped = np.empty(shape, dtype=object)
    for index, observable in zip(np.ndindex(shape), observables, strict=True):
        reshaped[index] = observable
    asked = EstimatorPub.coerce((circuit, reshaped, bindings if pub.circuit.parameters else None, precision))
    simulator = aer_simulator(device, qubits, scheduled="delay" in circuit.count_ops())
    estimator = AerEstimator(simulator, int(generator.integers(2**31)))
    answer = estimator.run([asked]).result()[0]
    data = {"evs": answer.data.evs, "stds": answer.data.stds, "ensemble_standard_error": answer.data.stds}
    return {**data, "shape": np.shape(answer.data.evs)}, math.ceil(1 / precision**2)


def _sampler(params: str, device: Device, generator: np.random.Generator) -> tuple[str, int]:
    """The deprecated SamplerV2's: bits of every classical register. Its options do nothing here."""
    from qiskit.primitives import DataBin, PrimitiveResult, SamplerPubResult
    from qiskit_ibm_runtime import RuntimeDecoder, RuntimeEncoder

    given = json.loads(params, cls=RuntimeDecoder)
    default = (given.get("options") or {}).get("default_shots") or 4096
    results, executions = [], 0
    for circuit, values, *rest in given["pubs"]:
        parameters = tuple(circuit.parameters)
        array = np.asarray(values, dtype=float) if parameters else np.zeros((1, 0))
        shape = array.shape[:-1] if parameters else ()
        shots = int((rest[0] if rest else None) or default)
        check_instructions(circuit, device)
        pub = SamplerPub(circuit, parameters, array.reshape(int(np.prod(shape)), len(parameters)), shots)
        bits = {name: one.reshape(shape) for name, one in sample_bits(pub, device, generator).items()}
        executions += shots * pub.rows
        results.append(SamplerPubResult(DataBin(**bits, shape=shape), {"circuit_metadata": {}}))
    return json.dumps(PrimitiveResult(results, {"version": 2}), cls=RuntimeEncoder), executions


def _executor(params: str, device: Device, generator: np.random.Generator) -> tuple[str, int]:
    """The executor's: counts of the circuits the client prepared, and its own data for post-processing handed back."""
    from ibm_quantum_schemas.executor.version_2_0 import models
    from qiskit_ibm_runtime.fake_provider.executor.broadcast_sample import broadcast_sample
    from qiskit_ibm_runtime.quantum_program.converters.converters_2_0 import passthrough_data_to_2_0
    from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS

    if (version := json.loads(params).get("schema_version")) != SCHEMA:
        raise InvalidInputError(f"the stand-in reads executor jobs of schema {SCHEMA}, not {version}")
    converter = QUANTUM_PROGRAM_PARAMS_CONVERTERS[SCHEMA]
    program, _ = converter.decoder(converter.model.model_validate_json(params))
    items, executions = [], 0
    for item in program.items:
        if hasattr(item, "samplex"):
            item.samplex.finalize()
            sampled = broadcast_sample(item.samplex, item.samplex_arguments, item.shape, generator)
            values = sampled.pop("parameter_values", np.zeros((*item.shape, 0)))
        else:
            sampled = {}
            values = np.broadcast_to(item.circuit_arguments, (*item.shape, item.circuit_arguments.shape[-1]))
        values = np.asarray(values, dtype=float)
        check_instructions(item.circuit, device)
        counts = sample_counts(item.circuit, values, program.shots, device, generator)
        executions += program.shots * max(1, int(np.prod(values.shape[:-1])))
        items.append(
            models.QuantumProgramResultItemModel(
                results={
                    name: models.CompressedTensorModel.from_numpy(np.ascontiguousarray(data))
                    for name, data in {**sampled, **counts}.items()
                },
                metadata=models.ItemMetadataModel(),
            )
        )
    result = models.QuantumProgramResultModel(
        data=items,
        metadata=models.MetadataModel(chunk_timing=[]),
        passthrough_data=passthrough_data_to_2_0(program.passthrough_data),
        semantic_role=program._semantic_role,
    )
    return result.model_dump_json(), executions
