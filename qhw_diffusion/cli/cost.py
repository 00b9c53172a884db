"""`qhw cost`: what a policy, a denoiser or a circuit file takes on a device, and what the runs themselves announce."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits import load_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MEASUREMENTS
from qhw_diffusion.errors import InvalidInputError, MissingDataError, RunFolderError
from qhw_diffusion.execution import CompiledCircuit, compile_circuit, engine_of
from qhw_diffusion.execution.cost import qpu_cost
from qhw_diffusion.hardware.cost import Cost, DoneJob
from qhw_diffusion.hardware.ledger_files import FILE as LEDGER_FILE
from qhw_diffusion.runs import read_json

if TYPE_CHECKING:
    from qhw_diffusion.cli.sampling_cost import Sampling

# as many images as a rollout on a device steers unless told otherwise
IMAGES, SHOTS = 32, 4096
# of one call: their parameters have to fit into memory to be counted
MOST_ROWS = 1_000_000
# Kinds of run folders (`RunFolder`) of policies and of denoisers
POLICY, DENOISER = "guidance", "denoiser"
# What a device has to do for them, and an Estimator does not
_DYNAMIC = frozenset({*MEASUREMENTS, "if_else", "for_loop", "while_loop", "switch_case", "break_loop", "continue_loop"})
_COSTED = (
    "`qhw cost` takes run folders of quantum policies (`qhw train guidance`, `qhw fine-tune`) and of denoisers "
    "(`qhw train denoising`), and circuit files (.qpy) without measurements in mid-circuit"
)


@dataclass(frozen=True)
class Workload:
    """What is to be run through an Estimator: `calls` times one circuit at so many rows of parameters.

    Attributes:
        name: for the first line of the text.
        compiled: the circuit on its device, with the observables.
        rows: of parameters in each call: images, or rows of a circuit file.
        calls: one after another: sampling steps.
        note: what the count leaves out; empty for nothing.
        success: (share of the shots that pass every post-selection, name of the evaluation that measured it); None if
            nothing is post-selected, or no evaluation is in the run folder.
    """

    name: str
    compiled: CompiledCircuit
    rows: int
    calls: int = 1
    note: str = ""
    success: tuple[float, str] | None = None

    def text(self, shots: int) -> str:
        """The circuit, and how many shots pass."""
        compiled = self.compiled
        lines = [
            f"circuit         {len(compiled.physical_qubits)} qubits, {compiled.two_qubit_gates:,} two-qubit gates, "
            f"depth {compiled.depth:,}"
        ]
        if self.success is not None:
            share, where = self.success
            lines.append(
                f"shots that pass {share:.2%} by evaluation {where}: about {share * shots:,.0f} of {shots:,} an image"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The same numbers as JSON types."""
        return {
            "qubits": len(self.compiled.physical_qubits),
            "two_qubit_gates": self.compiled.two_qubit_gates,
            "depth": self.compiled.depth,
            "success_probability": None if self.success is None else self.success[0],
            "success_evaluation": None if self.success is None else self.success[1],
        }


def workload_of(
    target: str | Path,
    device: Device | None,
    *,
    images: int | None = None,
    rows: int | None = None,
    mitigation: str = "",
    primitive: str | None = None,
) -> Workload | Sampling:
    """What is to be run, and where.

    Args:
        target: run folder of a quantum policy (one call a sampling step, one row an image) or of a denoiser (one call,
            one row an image; sampled if it keeps its outcomes), or a ``.qpy`` file (one call).
        device: None: the one that the run was made for.
        images: of a run [32].
        rows: rows of parameters, for a circuit file [1].
        mitigation: strategies, for which a denoiser's circuit may have to be scheduled.
        primitive: "estimator" or "sampler", for a denoiser; None: the one that fits it.

    Raises:
        MissingDataError: neither a folder nor a file.
        RunFolderError: no run folder, a run of another kind, or damaged.
        InvalidInputError: a circuit wider than the device, compiled for another one or in need of what it does not
            have, a policy without a circuit, a dynamic circuit in a file, counts out of range, a count that does not
            go with the target.
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
        if given is not None and given > MOST_ROWS:
            raise InvalidInputError(f"--{name} must be at most {MOST_ROWS:,}, not {given}")
    denoiser = target.is_dir() and _kind(target) == DENOISER
    if primitive is not None and not denoiser:
        raise InvalidInputError(f"--primitive is for a denoiser; {target} is read by an Estimator. Leave it out")
    if not target.is_dir():
        return _file(target, device, rows or 1)
    if denoiser:
        return _denoiser(target, device, images or IMAGES, mitigation, primitive)
    return _guidance(target, device, images or IMAGES)


def cost_of(
    workload: Workload | Sampling,
    *,
    shots: int = SHOTS,
    resilience_level: int = 0,
    mitigation: str = "",
    repetition_delay: float | None = None,
    ledger: Iterable[DoneJob] = (),
) -> Cost:
    """What the workload takes: jobs below the service's limits, as `qpu_cost` counts them.

    Args:
        workload: the circuits and rows to be evaluated.
        shots: of each circuit.
        resilience_level: of the client's estimator.
        mitigation: strategies of ours as text, such as ``"readout+zne:linear:1,3"``.
        repetition_delay: seconds; None: the device's default.
        ledger: rows to take the device's history from.

    Raises:
        InvalidInputError, UnknownNameError: an argument that is not allowed; a row that does not fit into a job;
            mitigation of expectation values for a denoiser that is sampled.
    """
    if not isinstance(workload, Workload):
        for flag, given in (("--resilience-level", resilience_level), ("--mitigation", mitigation)):
            if given:
                raise InvalidInputError(
                    f"{flag} {given} corrects expectation values, and this denoiser is sampled: what counts are single "
                    f"shots. Leave {flag} out"
                )
        return workload.cost(shots, repetition_delay=repetition_delay, history=ledger)
    return qpu_cost(
        engine_of("+".join(text for text in ("ideal", mitigation) if text)),
        workload.compiled,
        workload.rows,
        shots=shots,
        calls=workload.calls,
        resilience_level=resilience_level,
        repetition_delay=repetition_delay,
        history=ledger,
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


def cost_text(workload: Workload | Sampling, cost: Cost) -> str:
    """What is run, the arithmetic, and what the count leaves out."""
    lines = [f"{workload.name} on {cost.device}", workload.text(cost.shots), cost.text]
    if workload.note:
        lines.append(f"not counted     {workload.note}")
    if not cost.device.startswith("ibm_"):
        lines.append(f"{cost.device} is simulated here and charges nothing: this is what such a device would take")
    return "\n".join(lines)


def cost_json(workload: Workload | Sampling, cost: Cost) -> str:
    """The same as JSON."""
    told = {"workload": workload.name, "not_counted": workload.note, **workload.to_dict(), **cost.to_dict()}
    return json.dumps(told, indent=2)


def _kind(folder: Path) -> str:
    """Kind of the run in a folder; raises unless it is a policy's or a denoiser's, with what it is and what to do."""
    if (folder / LEDGER_FILE).exists():
        raise RunFolderError(f"{folder} is a ledger: `qhw ledger list --ledger {folder}` says what its jobs cost")
    try:
        kind = read_json(folder / "manifest.json").get("kind")
    except FileNotFoundError as error:
        saved = folder.name == "model" and (folder.parent / "manifest.json").exists()
        hint = f"give {folder.parent}" if saved else _COSTED
        raise RunFolderError(f"{folder} is not a run folder: manifest.json is missing; {hint}") from error
    if kind not in (POLICY, DENOISER):
        raise RunFolderError(f"{folder} is a run of kind {kind!r}, which has no single circuit to count. {_COSTED}")
    return str(kind)


def _guidance(folder: Path, device: Device | None, images: int) -> Workload:
    from qhw_diffusion.guidance import QuantumPolicy, load_policy

    trained = load_policy(folder)
    if not isinstance(trained.policy, QuantumPolicy):
        raise InvalidInputError(
            f"the policy in {folder} is classical ({trained.policy.kind}): it has no circuit to run, and takes no QPU "
            "time"
        )
    compiled = trained.policy.layer.compiled
    compiled = compiled if device is None else compiled.compile_for(device)
    steps = trained.config.n_steps
    name = f"{compiled.logical.name} of {folder}, {steps} sampling steps, {images:,} images"
    return Workload(name, compiled, images, steps)


def _denoiser(
    folder: Path, device: Device | None, images: int, mitigation: str, primitive: str | None
) -> Workload | Sampling:
    from qhw_diffusion.cli.sampling_cost import sampling_of, success_share
    from qhw_diffusion.denoising.on_device.evaluation import compiled_for, load_denoiser, primitive_of

    model = load_denoiser(folder)
    config = model.reverse.config
    if primitive_of(model, primitive) == "sampler":
        return sampling_of(folder, device, images)
    device = device or model.reverse.compiled.device
    if device.target is None:
        raise InvalidInputError(
            f"the denoiser in {folder} is counted for the ideal device, which is simulated and costs nothing: give "
            "--device: live (ibm_…), fake, or a snapshot file"
        )
    compiled = compiled_for(model, device, mitigation)
    name = f"{compiled.logical.name} of {folder}, {config.n_steps} reverse steps, {images:,} images"
    success = success_share(folder, device.name) if config.kind == "postselected" else None
    return Workload(name, compiled, images, success=success)


def _file(path: Path, device: Device | None, rows: int) -> Workload:
    if device is None:
        raise InvalidInputError(
            f"{path} is a circuit, which names no device: give --device: live (ibm_…), fake, or a snapshot file"
        )
    circuit = load_circuit(path)
    name = f"{circuit.name} of {path}, {rows:,} row{'s' if rows > 1 else ''} of parameters"
    return Workload(name, _compiled(circuit, device), rows, note="measuring in more than one basis")


def _compiled(circuit: QuantumCircuit, device: Device) -> CompiledCircuit:
    """A circuit file on the device, ⟨Z⟩ of every qubit; measurements at its end are left to the estimator."""
    bare = circuit.remove_final_measurements(inplace=False)
    if dynamic := sorted(_DYNAMIC & set(bare.count_ops())):
        raise InvalidInputError(
            f"the circuit is dynamic ({', '.join(dynamic)} before its end), which the client's Estimator does not take:"
            f" a file of it cannot be run through the ledger, so there is no cost to tell. {_COSTED}"
        )
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
