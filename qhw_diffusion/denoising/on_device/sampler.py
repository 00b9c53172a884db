"""A denoiser by a Sampler: outcome records of every shot, and the images that they make.

What an Estimator cannot do: outcomes that are kept, or choose the next step's angles. Two circuits give the same
records. *Deferred*: fresh ancillas in every step, all read at the end, one circuit for all images. *Dynamic*: ancillas
read and reset on the way, and `if_else` where outcomes are fed forward; weights are bound, a circuit for each label.

An image belongs to one outcome history: it is made of the shots in which that history came up. Post-selected models
keep the shots that read 0 everywhere, models that reset their ancillas all of them. Of a model that keeps its outcomes
the history of an image is that of its first shot, so histories come up as often as the model draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, Parameter
from qiskit.transpiler import PassManager
from qiskit.transpiler.passes import RemoveFinalReset
from torch import Tensor

from qhw_diffusion.circuits.deferred import DeferredCircuit, deferred_circuit, preparation_angles, preparation_circuit
from qhw_diffusion.denoising.deferred import amplitudes_of, deferred_inputs, deferred_weights
from qhw_diffusion.denoising.models import QDM, AmplitudeQDM
from qhw_diffusion.denoising.readout import ImageEstimate, check_resolvable, images_from_counts
from qhw_diffusion.denoising.reverse import ReverseProcess, check_labels
from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MID_CIRCUIT
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import SamplerEngine, Samples, compile_sampled
from qhw_diffusion.hardware.sampling import operations_of
from qhw_diffusion.hardware.service import SamplerPub

Way = Literal["deferred", "dynamic"]


@dataclass(frozen=True)
class SampledImages:
    """What the shots of B images gave.

    Attributes:
        counts: int64 [B, d], of the data, in the shots that belong to the image.
        outcomes: int64 [B, T], the outcome history of each image, first column t = T; zeros where none is kept.
        share: [B], the share of the shots that belong to the image.
        shots: of each image.
        estimate: magnitudes √(counts/N) with standard errors, as `AmplitudeQDM.measured_magnitudes`; NaN for an image
            without shots. None for models without images.
        images: [B, C, H, W], decoded from the magnitudes; NaN for an image without shots. None as above.
        job_ids: of the jobs; empty for a Sampler of this process.
        qpu_seconds: charged for them; None while the service has not stated it.
    """

    counts: Tensor
    outcomes: Tensor
    share: Tensor
    shots: int
    estimate: ImageEstimate | None
    images: Tensor | None
    job_ids: tuple[str, ...]
    qpu_seconds: float | None


class DenoiserSampler:
    """The circuits of a denoiser for a Sampler, compiled once for a device.

    Args:
        model: with a quantum reverse process.
        device: name, path of a snapshot, or Device; None: the model's.
        way: ``"deferred"`` or ``"dynamic"``; None: dynamic where outcomes are fed forward or the device is too small
            for fresh ancillas in every step, else deferred.
        optimization_level: of Qiskit's preset passes.
        circuits: {label: (circuit, parameters)} compiled before, as `compiled` gave them; others are made when needed.

    Attributes:
        way: as chosen.
        device: that the circuits are compiled for.

    Raises:
        InvalidInputError: a model without a circuit; feed-forward that is to be deferred. When a circuit is made: a
            device that is too small, or without what the circuit needs (resets, control flow).
    """

    def __init__(
        self,
        model: QDM,
        device: str | Device | None = None,
        *,
        way: Way | None = None,
        optimization_level: int = 3,
        circuits: Mapping[int, tuple[QuantumCircuit, tuple[Parameter, ...]]] | None = None,
    ) -> None:
        if not isinstance(model.reverse, ReverseProcess):
            raise InvalidInputError(f"a {type(model.reverse).__name__} has no circuit: only circuits run on a device")
        if way not in (None, "deferred", "dynamic"):
            raise InvalidInputError(f"way is {way!r}; allowed: 'deferred', 'dynamic', or None for the one that fits")
        self.model = model
        config = model.reverse.config
        if config.feed_forward and way == "deferred":
            raise InvalidInputError(
                "the outcomes of this model choose the next step's angles, which takes a dynamic circuit: way='dynamic'"
            )
        target = model.reverse.compiled.device if device is None else device
        self.device = target if isinstance(target, Device) else Device.load(target)
        self.optimization_level = optimization_level
        self._purified = model.forward_process.density
        width = config.n_qubits * (2 if self._purified else 1) + config.n_steps * len(model.reverse.circuit.measured)
        fits = self.device.target is None or width <= len(self.device.usable_qubits)
        self.way: Way = way or ("dynamic" if config.feed_forward or not fits else "deferred")
        self._compiled: dict[int, tuple[QuantumCircuit, tuple[Parameter, ...]]] = dict(circuits or {})

    def circuit(self, label: int = 0) -> QuantumCircuit:
        """The ISA circuit of a label; where it is deferred that of every label."""
        return self._circuit(label if self.way == "dynamic" else 0)[0]

    def compiled(self, labels: Tensor | None = None) -> dict[int, tuple[QuantumCircuit, tuple[Parameter, ...]]]:
        """{label: (ISA circuit, parameters in the order of `values`)} of what these labels take: one circuit, under 0.

        Dynamic: one for every label that occurs. Parameters that compiling took out of every gate are among them.
        """
        wanted = [0] if self.way == "deferred" or labels is None else [int(y) for y in torch.unique(labels)]
        return {label: self._circuit(label) for label in wanted}

    @property
    def mid_circuit(self) -> bool:
        """Whether its circuits read ancillas by the device's own measurement for mid-circuit (`measure_2`)."""
        circuits = [circuit for circuit, _ in self._compiled.values()] or [self.circuit()]
        return any(name == MID_CIRCUIT["measure"] for circuit in circuits for name, _ in operations_of(circuit))

    def values(self, states: Tensor, labels: Tensor | None = None) -> np.ndarray:
        """[B, P] angles of starts x_T: of their preparation, and where it is deferred of labels and weights too.

        Raises:
            InvalidInputError: no states of this dimension, or labels out of range.
        """
        labels = check_labels(labels, len(states), self.model.reverse.config.n_labels)
        if self.way == "dynamic":
            return preparation_angles(amplitudes_of(self.model, states))
        weights = deferred_weights(self.model).double().expand(len(states), -1)
        return np.asarray(torch.cat([deferred_inputs(self.model, states, labels), weights], 1))

    def pubs(
        self,
        engine: SamplerEngine,
        states: Tensor,
        labels: Tensor | None = None,
        *,
        shots: int | None = None,
        values: np.ndarray | None = None,
    ) -> list[tuple[SamplerPub, Tensor]]:
        """(PUB, numbers of its images) for starts x_T: one PUB, or dynamic one for each label that occurs.

        Args:
            engine: that is to sample them.
            states: x_T, [B, d]; [B, d, d] where the model's prior is mixed.
            labels: int64 [B]; needed if the process has labels.
            shots: of each image; None for the engine's.
            values: [B, P] angles, if they were made before (`values`).

        Raises:
            InvalidInputError: no states of this dimension, or labels out of range.
        """
        reverse = self.model.reverse
        labels = check_labels(labels, len(states), reverse.config.n_labels)
        values = self.values(states, labels) if values is None else values
        groups = [(0, torch.arange(len(states)))]
        if self.way == "dynamic":
            groups = [(int(label), torch.nonzero(labels == label)[:, 0]) for label in torch.unique(labels)]
        made = []
        for label, index in groups:
            circuit, parameters = self._circuit(label)
            name = f"images of label {label}" if self.way == "dynamic" and reverse.config.n_labels > 1 else "images"
            pub = engine.pub(circuit, values[index.numpy()], parameters=parameters, shots=shots, label=name)
            made.append((pub, index))
        return made

    def sample(
        self,
        engine: SamplerEngine,
        states: Tensor,
        labels: Tensor | None = None,
        *,
        shots: int | None = None,
        outcomes: Tensor | None = None,
        min_kept: int | None = None,
    ) -> SampledImages:
        """Run starts x_T through the reverse process, all in one call of the engine.

        Args:
            engine: samples the circuits; its shots are those of an image.
            states: x_T, [B, d]; [B, d, d] where the model's prior is mixed.
            labels: int64 [B]; needed if the process has labels.
            shots: of each image; None for the engine's.
            outcomes: int64 [B, T], the histories that images are made of, where outcomes are kept; None: that of the
                first shot.
            min_kept: shots that must pass a post-selection with probability 95 %, by the model's own simulation, before
                anything is sent. Default: d.

        Raises:
            InvalidInputError: no states, labels or histories of this model; a success probability that the shots do not
                resolve, with the number it takes.
            BudgetError, JobError, ServiceError, AccountError, LedgerError, EngineError: as `SamplerEngine.sample_many`.
        """
        reverse, config = self.model.reverse, self.model.reverse.config
        made = self.pubs(engine, states, labels, shots=shots)
        number = made[0][0].shots
        if config.kind == "postselected":
            with torch.no_grad():
                success = reverse.run(states, check_labels(labels, len(states), config.n_labels)).probability
            check_resolvable(success, number, self.model.dim if min_kept is None else min_kept)
        if outcomes is not None and (config.kind != "measured" or outcomes.shape != (len(states), config.n_steps)):
            raise InvalidInputError(
                f"outcomes are {tuple(outcomes.shape)}; allowed: int64 [{len(states)}, {config.n_steps}], for a model "
                "that keeps its outcomes"
            )
        sampled = engine.sample_many([pub for pub, _ in made])
        counts, chosen, share = self.count(made, sampled, outcomes)
        estimate, images = self._images(counts)
        jobs = tuple(dict.fromkeys(job for samples in sampled for job in samples.job_ids))
        return SampledImages(counts, chosen, share, number, estimate, images, jobs, sampled[0].qpu_seconds)

    def count(
        self,
        made: Sequence[tuple[SamplerPub, Tensor]],
        sampled: Sequence[Samples],
        outcomes: Tensor | None = None,
        *,
        leave_first: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the shots of `pubs` say of every image.

        Args:
            made: from `pubs`.
            sampled: their samples.
            outcomes: int64 [B, T], histories of the images, where outcomes are kept; None: that of the first shot.
            leave_first: leave the first shot out of the counts. A shot that chooses the history has it for certain:
                counted, it makes the share too large, by (1 − share) / shots.

        Returns:
            Counts int64 [B, d] of the data in the shots that belong to the image; histories [B, T], zeros where none
            are kept; share [B] of the shots that belong to it.
        """
        config, number = self.model.reverse.config, made[0][0].shots
        batch = sum(len(index) for _, index in made)
        data = torch.zeros(batch, number, dtype=torch.long)
        history = torch.zeros(batch, number, config.n_steps, dtype=torch.long)
        for (_, index), samples in zip(made, sampled, strict=True):
            data[index], history[index] = self.read(samples, number)
        if config.kind == "measured":
            chosen = history[:, 0] if outcomes is None else outcomes
        else:
            chosen = torch.zeros(batch, config.n_steps, dtype=torch.long)
        if leave_first:
            data, history = data[:, 1:], history[:, 1:]
        selects = config.kind in ("measured", "postselected")
        kept = (history == chosen[:, None]).all(2) if selects else torch.ones_like(data, dtype=torch.bool)
        d = self.model.dim
        counts = torch.stack([torch.bincount(x[k], minlength=d) for x, k in zip(data, kept, strict=True)])
        return counts, chosen, kept.double().mean(1)

    def read(self, samples: Samples, shots: int) -> tuple[Tensor, Tensor]:
        """(data, outcome histories) of every shot asked for: int64 [B, shots] and [B, shots, T], first column t = T."""
        data = torch.from_numpy(samples.outcomes("x"))[:, :shots]  # twirling rounds shots up
        steps = range(self.model.reverse.config.n_steps, 0, -1)
        if not self.model.reverse.circuit.measured:
            return data, torch.zeros(*data.shape, len(steps), dtype=torch.long)
        return data, torch.stack([torch.from_numpy(samples.outcomes(f"m{t}"))[:, :shots] for t in steps], 2)

    def _images(self, counts: Tensor) -> tuple[ImageEstimate | None, Tensor | None]:
        if not isinstance(self.model, AmplitudeQDM):
            return None, None
        seen = counts.sum(1) > 0
        shape = self.model.image_shape if self.model.kind == AmplitudeQDM.kind else (1, 1, self.model.dim)
        some = images_from_counts(torch.where(seen[:, None], counts, torch.ones_like(counts)), shape)

        def only_seen(values: Tensor) -> Tensor:
            return values.masked_fill(~seen.view(-1, *[1] * (values.ndim - 1)), torch.nan)

        images = only_seen(self.model.decode(some.magnitudes))
        estimate = ImageEstimate(
            images=only_seen(some.images),
            std_errors=only_seen(some.std_errors),
            magnitudes=only_seen(some.magnitudes),
            magnitude_errors=only_seen(some.magnitude_errors),
            shots=counts.sum(1),
        )
        return estimate, images

    def _circuit(self, label: int) -> tuple[QuantumCircuit, tuple[Parameter, ...]]:
        """The compiled circuit, and its parameters in the order of the values."""
        if label not in self._compiled:
            logical, parameters = self._deferred() if self.way == "deferred" else self._dynamic(label)
            seed = self.model.reverse.config.seed
            isa = compile_sampled(logical, self.device, optimization_level=self.optimization_level, seed=seed)
            self._compiled[label] = isa, parameters
        return self._compiled[label]

    def _dynamic(self, label: int) -> tuple[QuantumCircuit, tuple[Parameter, ...]]:
        n = self.model.reverse.config.n_qubits
        prior, angles = preparation_circuit(2 * n if self._purified else n)
        circuit = self.model.reverse.dynamic_circuit(label, prior)
        # what is left of a reset after which nothing happens is the repetition delay's business
        return PassManager([RemoveFinalReset()]).run(circuit), angles

    def _deferred(self) -> tuple[QuantumCircuit, tuple[Parameter, ...]]:
        reverse, config = self.model.reverse, self.model.reverse.config
        made: DeferredCircuit = deferred_circuit(
            reverse.circuit,
            config.n_steps,
            select=False,
            shared_weights=config.weight_sharing == "time_embedding",
            weights_as_inputs=config.conditioning == "weights",
            purified=self._purified,
        )
        circuit, others = made.circuit.copy(), len(reverse.circuit.measured)
        for t in range(config.n_steps, 0, -1):
            if others:
                first = config.n_qubits + (config.n_steps - t) * others
                _read(circuit, range(first, first + others), f"m{t}")
        _read(circuit, made.data, "x")
        return circuit, (*made.inputs, *made.weights)


def _read(circuit: QuantumCircuit, qubits: Sequence[int], name: str) -> None:
    register = ClassicalRegister(len(qubits), name)
    circuit.add_register(register)
    circuit.measure(list(qubits), list(register))
