"""What it takes to sample a denoiser: the circuits that `qhw evaluate denoising --primitive sampler` sends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from qiskit import QuantumCircuit
from qiskit_aer.primitives import SamplerV2
from torch import Tensor

from qhw_diffusion.denoising import QDM, from_pretrained
from qhw_diffusion.denoising.command import KIND
from qhw_diffusion.denoising.on_device.sampler import DenoiserSampler
from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MID_CIRCUIT
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import SamplerEngine
from qhw_diffusion.hardware.cost import Cost, DoneJob
from qhw_diffusion.hardware.durations import longest_way
from qhw_diffusion.runs import RunFolder, read_json


@dataclass(frozen=True, eq=False)
class Sampling:
    """Images of a denoiser on a device by a Sampler, a circuit each.

    Attributes:
        name: for the first line of the text.
        sampler: the circuits.
        images: number of images.
        success: (share of the shots that pass every post-selection, name of the evaluation that measured it); None if
            nothing is post-selected or no evaluation is in the run folder.
        note: what the count leaves out; empty for nothing.
    """

    name: str
    sampler: DenoiserSampler
    images: int
    success: tuple[float, str] | None = None
    note: str = ""

    def cost(self, shots: int, *, repetition_delay: float | None = None, history: Iterable[DoneJob] = ()) -> Cost:
        """What the images take at so many shots each: cut into jobs and estimated like every other circuit.

        Raises:
            InvalidInputError: shots or a delay out of range; a circuit that does not fit into a job.
        """
        model, device = self.sampler.model, self.sampler.device
        starts = model.forward_process.prior(self.images, model.dim, torch.Generator().manual_seed(0))
        engine = SamplerEngine(SamplerV2(), shots)  # makes the PUBs and runs none
        pubs = [pub for pub, _ in self.sampler.pubs(engine, starts, self._labels)]
        cost = engine.cost(pubs, device, repetition_delay=repetition_delay, history=tuple(history))
        told = "resets and measurements before the last are among the gates" if self._inner else ""
        return replace(cost, note="; ".join(text for text in (cost.note, told) if text))

    @property
    def _labels(self) -> Tensor:
        return torch.arange(self.images) % self.sampler.model.reverse.config.n_labels

    @cached_property
    def circuit(self) -> QuantumCircuit:
        """The circuit of an image, of the labels that with the most gates, on the longest of its ways.

        Without the measurements at its end.
        """
        circuits = [circuit for circuit, _ in self.sampler.compiled(self._labels).values()]
        ways = [longest_way(isa, self.sampler.device).remove_final_measurements(inplace=False) for isa in circuits]
        return max(ways, key=lambda circuit: circuit.num_nonlocal_gates())

    def text(self, shots: int) -> str:
        """The circuit, and how many shots pass."""
        counts = self._counts
        lines = [
            f"circuit         by a Sampler, {self.sampler.way}: {self._qubits} qubits, two-qubit gates "
            f"{self.circuit.num_nonlocal_gates():,}, resets {counts['reset']}, measurements before the last "
            f"{counts['measure']}; the preparation of x_T is in it"
        ]
        if self.success is not None:
            share, where = self.success
            lines.append(
                f"shots that pass {share:.2%} by evaluation {where}: about {share * shots:,.0f} of {shots:,} an image"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The same numbers as JSON types."""
        counts = self._counts
        return {
            "primitive": "sampler",
            "way": self.sampler.way,
            "images": self.images,
            "qubits": self._qubits,
            "two_qubit_gates": self.circuit.num_nonlocal_gates(),
            "inner_measurements": counts["measure"],
            "resets": counts["reset"],
            "success_probability": None if self.success is None else self.success[0],
            "success_evaluation": None if self.success is None else self.success[1],
        }

    @property
    def _qubits(self) -> int:
        """Qubits of the device that something happens to."""
        return len({q for step in self.circuit.data if step.operation.name != "barrier" for q in step.qubits})

    @property
    def _inner(self) -> bool:
        return any(self._counts.values())

    @property
    def _counts(self) -> dict[str, int]:
        """{"measure", "reset": how many there are, those by instructions for mid-circuit among them}."""
        found = self.circuit.count_ops()
        return {usual: found.get(usual, 0) + found.get(special, 0) for usual, special in MID_CIRCUIT.items()}


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
        model: QDM = from_pretrained(run.path / "model")
    config = model.reverse.config
    device = device or model.reverse.compiled.device
    if device.target is None:
        raise InvalidInputError(
            f"the denoiser in {folder} is counted for the ideal device, which is simulated and costs nothing: give "
            "--device: live (ibm_…), fake, or a snapshot file"
        )
    sampler = DenoiserSampler(model, device)
    sampler.compiled(torch.zeros(1, dtype=torch.long))  # what the device does not have is told now
    note = "the time in which a measured outcome reaches the gates that depend on it" if config.feed_forward else ""
    return Sampling(
        f"{model.reverse.circuit.circuit.name} of {folder}, {config.n_steps} reverse steps, {images:,} images",
        sampler,
        images,
        success_share(run.path, device.name) if config.kind == "postselected" else None,
        note,
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
