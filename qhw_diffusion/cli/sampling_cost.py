"""What it takes to sample a denoiser that keeps its outcomes: one dynamic circuit an image, read shot by shot.

No command sends such circuits so far; in Python `denoising.on_device.sampler` does, through the client's Sampler.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit.library import StatePreparation
from qiskit.transpiler import PassManager
from qiskit.transpiler.passes import RemoveFinalReset

from qhw_diffusion.denoising import QDM, from_pretrained
from qhw_diffusion.denoising.command import KIND
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.transpile import transpiled
from qhw_diffusion.hardware.cost import Cost, DoneJob, expected_cost
from qhw_diffusion.hardware.durations import longest_way
from qhw_diffusion.hardware.service import SamplerPub
from qhw_diffusion.runs import RunFolder, read_json

_NOT_SENT = "an estimate only: no command sends it, in Python denoising.on_device.sampler does"


@dataclass(frozen=True, eq=False)
class Sampling:
    """Images of a denoiser on a device, each a dynamic circuit of its own that is read shot by shot.

    Attributes:
        name: for the first line of the text.
        device: that it runs on.
        isa: the compiled circuit of one image.
        circuit: the same as a shot goes through it, on the longest of its ways, without the measurement at its end.
        images: number of images, a circuit each.
        success: (share of the shots that pass every post-selection, name of the evaluation that measured it); None if
            nothing is post-selected or no evaluation is in the run folder.
        note: what the count leaves out; empty for nothing.
    """

    name: str
    device: Device
    isa: QuantumCircuit
    circuit: QuantumCircuit
    images: int
    success: tuple[float, str] | None = None
    note: str = ""

    def cost(self, shots: int, *, repetition_delay: float | None = None, history: Iterable[DoneJob] = ()) -> Cost:
        """What the images take at so many shots each: cut into jobs and estimated like every other circuit.

        Raises:
            InvalidInputError: shots or a delay out of range; a circuit that does not fit into a job.
        """
        circuit = self.isa.copy()
        # stands for what differs from image to image, so that each counts as a row
        circuit.global_phase = image = Parameter("image")
        pub = SamplerPub(circuit, (image,), np.zeros((self.images, 1)), shots)
        cost = expected_cost([pub], self.device, repetition_delay=repetition_delay, history=history)
        told = "resets and measurements before the last are among the gates" if self._inner else ""
        return replace(cost, note="; ".join(text for text in (cost.note, told) if text))

    def text(self, shots: int) -> str:
        """The circuit, how many shots pass, and what sends it."""
        counts = self.circuit.count_ops()
        lines = [
            f"circuit         two-qubit gates {self.circuit.num_nonlocal_gates():,}, resets {counts.get('reset', 0)}, "
            f"measurements before the last {counts.get('measure', 0)}; the preparation of x_T is in it"
        ]
        if self.success is not None:
            share, where = self.success
            lines.append(
                f"shots that pass {share:.2%} by evaluation {where}: about {share * shots:,.0f} of {shots:,} an image"
            )
        return "\n".join([*lines, f"sent            {_NOT_SENT}"])

    def to_dict(self) -> dict[str, Any]:
        """The same numbers as JSON types."""
        counts = self.circuit.count_ops()
        return {
            "images": self.images,
            "two_qubit_gates": self.circuit.num_nonlocal_gates(),
            "inner_measurements": counts.get("measure", 0),
            "resets": counts.get("reset", 0),
            "success_probability": None if self.success is None else self.success[0],
            "success_evaluation": None if self.success is None else self.success[1],
            "sent": _NOT_SENT,
        }

    @property
    def _inner(self) -> bool:
        return bool({"measure", "reset"} & set(self.circuit.count_ops()))


def sampling_of(folder: Path, device: Device | None, images: int) -> Sampling:
    """Images of the denoiser in a run folder.

    Args:
        folder: run folder of `qhw train denoising`.
        device: None: the one that the denoiser was trained for.
        images: number of images.

    Raises:
        RunFolderError: damaged, or no run of a denoiser.
        InvalidInputError: the ideal device, or one that is too small or lacks what the circuit needs.
    """
    run = RunFolder.open(folder, kind=KIND)
    with run.whole():
        model = from_pretrained(run.path / "model")
    config = model.reverse.config
    device = device or model.reverse.compiled.device
    if device.target is None:
        raise InvalidInputError(
            f"the denoiser in {folder} is counted for the ideal device, which is simulated and costs nothing: give "
            "--device: live (ibm_…), fake, or a snapshot file"
        )
    prior, mixed = _preparation(model)
    label = max(range(config.n_labels), key=int.bit_count)  # of the labels the one with the most gates
    logical = PassManager([RemoveFinalReset()]).run(model.reverse.dynamic_circuit(label, prior))
    _check_fits(logical, device, folder)
    isa = transpiled(logical, device, optimization_level=3, seed=config.seed, scheduled=False)
    circuit = longest_way(isa, device).remove_final_measurements(inplace=False)
    notes = ["the time in which a measured outcome reaches the gates that depend on it"] if config.feed_forward else []
    if mixed:
        notes.append("further circuits: x_T is a mixed state here, whose pure states are prepared one by one")
    return Sampling(
        f"{model.reverse.circuit.circuit.name} of {folder}, {config.n_steps} reverse steps, {images:,} images",
        device,
        isa,
        circuit,
        images,
        success_share(run.path, device.name) if config.kind == "postselected" else None,
        "; ".join(notes),
    )


def _preparation(model: QDM) -> tuple[QuantumCircuit, bool]:
    """A circuit that prepares a random x_T, as long as that of every other one, and whether x_T is mixed.

    Of a mixed x_T it is the likeliest of its pure states.
    """
    (state,) = model.forward_process.prior(1, model.dim, torch.Generator().manual_seed(0)).to(torch.complex128)
    mixed = state.ndim == 2
    if mixed:
        state = torch.linalg.eigh(state).eigenvectors[:, -1]
    n_qubits = model.reverse.config.n_qubits
    prior = QuantumCircuit(n_qubits)
    prior.append(StatePreparation(np.asarray(state / state.norm())), range(n_qubits))
    return prior, mixed


def _check_fits(circuit: QuantumCircuit, device: Device, folder: Path) -> None:
    assert device.target is not None
    if circuit.num_qubits > len(device.usable_qubits):
        raise InvalidInputError(
            f"the denoiser in {folder} has {circuit.num_qubits} qubits, and {device.name} has "
            f"{len(device.usable_qubits)} that can be used: give --device a larger one"
        )
    needed = {"reset", "if_else"} & set(circuit.count_ops())
    if missing := sorted(needed - set(device.target.operation_names)):
        raise InvalidInputError(
            f"the denoiser in {folder} needs {' and '.join(missing)}, which {device.name} does not have: give --device "
            "another one"
        )


def success_share(folder: Path, device: str) -> tuple[float, str] | None:
    """Share of the shots that pass, by the latest evaluation on the device, else by the latest one; its name."""
    files = sorted((folder / "evaluations").glob("*.json"), key=lambda file: file.stat().st_mtime)
    found = []
    for file in files:
        evaluation = read_json(file)
        if isinstance(evaluation.get("share_of_shots"), float):
            found.append((evaluation.get("device") == device, evaluation["share_of_shots"], file.stem))
    own = [entry for entry in found if entry[0]]
    return (own or found)[-1][1:] if found else None
