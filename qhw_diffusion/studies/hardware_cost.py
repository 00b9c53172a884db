"""`qhw cost`: what a trained controller, a denoiser's reverse process or a circuit file takes on a device."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits import load_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, MissingDataError, RunFolderError
from qhw_diffusion.execution import CompiledCircuit, compile_circuit
from qhw_diffusion.hardware.cost import RESILIENCE_LEVELS, Cost, DoneJob, estimate_cost, history_of
from qhw_diffusion.hardware.service import Pub, precision_of
from qhw_diffusion.hardware.split import JobLimits, bases, row_cost, split
from qhw_diffusion.runs import RunFolder, read_json

# as many images as a rollout on a device steers unless told otherwise
IMAGES, SHOTS = 32, 4096


@dataclass(frozen=True)
class Workload:
    """What is to be run: `calls` times one circuit at so many rows of parameters.

    Attributes:
        name: for the first line of the text.
        compiled: the circuit on its device, with the observables.
        rows: of parameters in each call: images, or rows of a circuit file.
        calls: one after another: sampling or reverse steps.
        note: what the count leaves out; empty for nothing.
    """

    name: str
    compiled: CompiledCircuit
    rows: int
    calls: int = 1
    note: str = ""


def workload_of(
    target: str | Path, device: Device | None, *, images: int | None = None, rows: int | None = None
) -> Workload:
    """What is to be run, and where.

    Args:
        target: run folder of `qhw train guidance` (one call a sampling step, one row an image) or of `qhw train
            denoising` (one call a reverse step, one row an image), or a ``.qpy`` file (one call).
        device: None: the one that the run was made for.
        images: steered or sampled at once, for a run [32].
        rows: rows of parameters, for a circuit file [1].

    Raises:
        MissingDataError: neither a folder nor a file.
        RunFolderError: a run of another kind, or damaged.
        InvalidInputError: a circuit wider than the device or compiled for another one, a run without a circuit, counts
            below 1, a count that does not go with the target.
    """
    target = Path(target)
    if not target.exists():
        raise MissingDataError(f"{target} does not exist; give a run folder or a .qpy file")
    for name, given, wanted in (("images", images, target.is_dir()), ("rows", rows, not target.is_dir())):
        if given is not None and not wanted:
            other = "rows of parameters: --rows" if name == "images" else "images: --images"
            raise InvalidInputError(f"--{name} does not go with {target}, which is counted in {other}")
        if given is not None and given < 1:
            raise InvalidInputError(f"--{name} must be at least 1, not {given}")
    if not target.is_dir():
        return _file(target, device, rows or 1)
    try:
        kind = read_json(target / "manifest.json").get("kind")
    except FileNotFoundError as error:
        raise RunFolderError(f"{target} is not a run folder: manifest.json is missing") from error
    return (_denoising if kind == "denoising" else _guidance)(target, device, images or IMAGES)


def cost_of(
    workload: Workload,
    *,
    shots: int = SHOTS,
    resilience_level: int = 0,
    mitigation: str = "",
    repetition_delay: float | None = None,
    ledger: Iterable[DoneJob] = (),
) -> Cost:
    """What the workload takes: jobs below the service's limits, each as `estimate_cost` counts it.

    Args:
        shots: of each circuit.
        resilience_level: of the client's estimator.
        mitigation: strategies of ours as text, such as ``"readout+zne:linear:1,3"``.
        repetition_delay: seconds; None: the device's default.
        ledger: rows to take the device's history from.

    Raises:
        InvalidInputError, UnknownNameError: an argument that is not allowed; a row that does not fit into a job.
    """
    compiled = workload.compiled
    if compiled.device.target is None:
        raise InvalidInputError("the ideal device is simulated and costs nothing; name a real or a fake device")
    factor, calibration = 1.0, 0
    if mitigation:
        from qhw_diffusion.mitigation import Mitigated, strategy_of

        expected = Mitigated("ideal", [strategy_of(text) for text in mitigation.split("+")]).cost(compiled)
        factor, calibration = max(1.0, float(expected.circuits_factor)), expected.calibration_circuits
    scales, _ = RESILIENCE_LEVELS.get(resilience_level, ((1,), False))
    parameters = tuple(compiled.isa.parameters)
    pub = Pub(
        compiled.isa, compiled.observables, parameters, np.zeros((1, len(parameters))), precision_of(shots)
    )  # one row, which costs what every row costs
    jobs = _jobs(pub, workload.rows, math.ceil(factor * len(scales)))
    return estimate_cost(
        compiled.duration,
        math.ceil(workload.rows / jobs) * bases(pub),
        shots,
        compiled.device,
        jobs=workload.calls * jobs,
        repetition_delay=repetition_delay,
        qubits=compiled.physical_qubits,
        resilience_level=resilience_level,
        factor=factor,
        calibration_circuits=calibration,
        history=history_of(ledger, compiled.device.name),
    )


def ledger_rows(folder: Path | None) -> Sequence[DoneJob]:
    """Rows of the ledger `folder`; None: of $QHW_LEDGER or runs/ledger if it is there, else none.

    Raises:
        LedgerError: a folder that was named and holds no ledger; a ledger of another version, or damaged.
    """
    from qhw_diffusion.hardware.ledger import Ledger, ledger_folder

    if folder is None and not ledger_folder().exists():
        return []
    with Ledger.open(folder, create=False) as ledger:
        return ledger.rows()


def cost_text(workload: Workload, cost: Cost) -> str:
    """What is run, the arithmetic, and what the count leaves out."""
    lines = [f"{workload.name} on {cost.device}", cost.text]
    if workload.note:
        lines.append(f"not counted     {workload.note}")
    if not cost.device.startswith("ibm_"):
        lines.append(f"{cost.device} is simulated here and charges nothing: this is what such a device would take")
    return "\n".join(lines)


def cost_json(workload: Workload, cost: Cost) -> str:
    """The same as JSON."""
    return json.dumps({"workload": workload.name, "not_counted": workload.note, **cost.to_dict()}, indent=2)


def _guidance(folder: Path, device: Device | None, images: int) -> Workload:
    from qhw_diffusion.guidance import QuantumActor, load_controller

    trained = load_controller(folder)
    if not isinstance(trained.actor, QuantumActor):
        raise InvalidInputError(f"the policy in {folder} is a {trained.actor_config.kind}: it has no circuit to run")
    compiled = trained.actor.layer.compiled
    compiled = compiled if device is None else compiled.compile_for(device)
    steps = trained.config.n_steps
    name = f"{compiled.logical.name} of {folder}, {steps} sampling steps, {images:,} images"
    return Workload(name, compiled, images, steps)


def _denoising(folder: Path, device: Device | None, images: int) -> Workload:
    run = RunFolder.open(folder, kind="denoising")
    steps = int(run.config["reverse"]["n_steps"])
    device = Device.load(run.path / "model" / "device.snapshot.json.gz") if device is None else device
    circuit = load_circuit(run.path / "model" / "circuit.qpy")
    name = f"{circuit.name} of {folder}, {steps} reverse steps, {images:,} images"
    return Workload(name, _compiled(circuit, device), images, steps, "preparing each step's input state")


def _file(path: Path, device: Device | None, rows: int) -> Workload:
    if device is None:
        raise InvalidInputError(
            f"{path} is a circuit, which names no device: give --device: live (ibm_…), fake, or a snapshot file"
        )
    circuit = load_circuit(path)
    name = f"{circuit.name} of {path}, {rows:,} row{'s' if rows > 1 else ''} of parameters"
    return Workload(name, _compiled(circuit, device), rows, note="measuring in more than one basis")


def _jobs(pub: Pub, rows: int, factor: int) -> int:
    """How many jobs so many rows make below the service's limits; InvalidInputError if one row is too much."""
    split([pub], factor=factor)
    limits = JobLimits()
    most = np.array([limits.executions, limits.instructions, limits.values])
    return math.ceil(rows / int((most // row_cost(pub, factor)).min()))


def _compiled(circuit: QuantumCircuit, device: Device) -> CompiledCircuit:
    """A circuit file on the device, ⟨Z⟩ of every qubit; measurements at its end are left to the estimator."""
    bare = circuit.remove_final_measurements(inplace=False)
    if circuit.layout is None:
        zs = [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], bare.num_qubits) for q in range(bare.num_qubits)]
        return compile_circuit(bare, device, inputs=list(bare.parameters), weights=[], observables=zs)
    if device.target is None or bare.num_qubits != device.n_qubits:
        raise InvalidInputError(
            f"the circuit is compiled for a device of {bare.num_qubits} qubits, {device.name} is another; give the "
            "logical circuit"
        )
    places = [(i.operation.name, tuple(bare.find_bit(q).index for q in i.qubits)) for i in bare.data]
    for name, place in places:
        if name not in ("barrier", "delay") and not device.target.instruction_supported(name, place):
            raise InvalidInputError(
                f"the circuit is compiled for another device: {device.name} has no {name!r} on qubits {place}; give "
                "the logical circuit"
            )
    used = tuple(sorted({q for name, place in places if name not in ("barrier", "delay") for q in place}))
    zs = [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], bare.num_qubits) for q in used]
    return CompiledCircuit(bare, device, tuple(bare.parameters), (), tuple(zs), used)
