"""What simulations say of the images that a denoiser draws on a device: with the calibration's noise, and without any.

With noise it is the whole circuit where it is small enough, preparation and layout included; else step by step, with a
perfect start and each step on its own best qubits; left out where not even one step fits into memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.denoising.models import AmplitudeQDM
from qhw_diffusion.denoising.on_device.sampler import DenoiserSampler
from qhw_diffusion.denoising.quotient import quotient_of
from qhw_diffusion.denoising.reverse import ReverseProcess, check_labels
from qhw_diffusion.errors import InvalidInputError, MemoryBudgetError
from qhw_diffusion.execution import CompiledCircuit, Noisy, record_probabilities

# Qubits of a circuit that is predicted by density matrices of all of it
_MOST_TOGETHER = 8


@dataclass(frozen=True)
class Predicted:
    """What a simulation says of the same starts.

    Attributes:
        name: of the simulation, for tables.
        probabilities: [B, d], of the outcomes of the shots that count, as they are read.
        success: [B], the share of the shots that count.
        images: [B, C, H, W].
    """

    name: str
    probabilities: Tensor
    success: Tensor
    images: Tensor


@torch.no_grad()
def predictions_of(
    model: AmplitudeQDM, compiled: CompiledCircuit, starts: Tensor, labels: Tensor | None, rows: Tensor
) -> list[Predicted]:
    """The same starts simulated, for an Estimator: with the noise of the device's calibration, and without any."""
    device, found = compiled.device, []
    if device.has_noise and len(compiled.physical_qubits) <= _MOST_TOGETHER:
        estimate = Noisy().estimate(compiled, rows)
        read = quotient_of(estimate.values, estimate.std_errors)
        found.append(
            Predicted(
                f"simulated, noise of {device.name}",
                read.distribution,
                read.success,
                model.decode(read.magnitudes[0].float()),
            )
        )
    return found + _stepwise_both(model, compiled, starts, labels, None, noisy=not found)


@torch.no_grad()
def record_predictions_of(
    sampler: DenoiserSampler,
    compiled: CompiledCircuit,
    starts: Tensor,
    labels: Tensor | None,
    rows: Tensor,
    outcomes: Tensor | None = None,
) -> list[Predicted]:
    """As `predictions_of`, for a Sampler.

    Args:
        sampler: the circuits.
        compiled: the circuit of one image on its device.
        starts: x_T.
        labels: int64 [B], or None without conditioning.
        rows: [B, P] angles of the circuits.
        outcomes: int64 [B, T], histories of the images where outcomes are kept.
    """
    model, device, found = sampler.model, compiled.device, []
    assert isinstance(model, AmplitudeQDM)
    if sampler.way == "deferred" and device.has_noise and len(compiled.physical_qubits) <= _MOST_TOGETHER:
        ((circuit, parameters),) = sampler.compiled().values()
        left = set(circuit.parameters)
        kept = [k for k, parameter in enumerate(parameters) if parameter in left]
        records = record_probabilities(circuit, device, [parameters[k] for k in kept], rows.numpy()[:, kept])
        places = {register.name: [circuit.find_bit(bit).index for bit in register] for register in circuit.cregs}
        shares = torch.from_numpy(_joint(records, places, model, outcomes))
        success = shares.sum(1)
        p = shares / success[:, None].clamp_min(1e-300)
        found.append(Predicted(f"simulated, noise of {device.name}", p, success, model.decode(p.sqrt().float())))
    mid_circuit = sampler.mid_circuit
    return found + _stepwise_both(model, compiled, starts, labels, outcomes, noisy=not found, mid_circuit=mid_circuit)


def _joint(
    records: np.ndarray, places: dict[str, list[int]], model: AmplitudeQDM, outcomes: Tensor | None
) -> np.ndarray:
    """[B, d]: probabilities of the data's outcomes together with the image's history; `places`: bits of registers."""
    numbers = np.arange(records.shape[1])

    def read(name: str) -> np.ndarray:
        return np.asarray(sum((numbers >> place & 1) << k for k, place in enumerate(places[name])))

    data, config = read("x"), model.reverse.config
    found = np.zeros((len(records), model.dim))
    counts = np.ones(records.shape, dtype=bool)
    if config.kind in ("measured", "postselected") and model.reverse.circuit.measured:
        histories = np.stack([read(f"m{t}") for t in range(config.n_steps, 0, -1)], 1)
        wanted = np.zeros((len(records), config.n_steps)) if outcomes is None else outcomes.numpy()
        counts = (histories[None] == wanted[:, None]).all(2)
    for x in range(model.dim):
        found[:, x] = (records * counts)[:, data == x].sum(1)
    return found


def _stepwise_both(
    model: AmplitudeQDM,
    compiled: CompiledCircuit,
    starts: Tensor,
    labels: Tensor | None,
    outcomes: Tensor | None,
    *,
    noisy: bool,
    mid_circuit: bool = False,
) -> list[Predicted]:
    """Step by step under noise (if asked, and there is any), and without. `mid_circuit`: see `ReverseProcess.on`."""
    device, found = compiled.device, []
    if noisy and device.has_noise:
        try:
            under = model.with_reverse(_reverse_of(model).on(device=device, engine="noisy", mid_circuit=mid_circuit))
            name = f"simulated step by step, noise of {device.name}"
            found.append(_stepwise(under, starts, labels, outcomes, name))
        except MemoryBudgetError:
            pass
    return [*found, _stepwise(model.on(engine="ideal"), starts, labels, outcomes, "simulated, no noise")]


def _reverse_of(model: AmplitudeQDM) -> ReverseProcess:
    assert isinstance(model.reverse, ReverseProcess)  # `DenoiserSampler` and `compile_deferred` take no other
    return model.reverse


def _stepwise(
    model: AmplitudeQDM, starts: Tensor, labels: Tensor | None, outcomes: Tensor | None, name: str
) -> Predicted:
    reverse = model.reverse
    if outcomes is None:
        chain = reverse.run(starts, labels)
        states, share = chain.states, chain.probability
    else:
        states, share, before = starts, torch.ones(len(starts)), None
        labels = check_labels(labels, len(starts), reverse.config.n_labels)
        for column, t in enumerate(range(reverse.config.n_steps, 0, -1)):
            branches = reverse.step(states, t, labels, before)
            before = outcomes[:, column]
            states, chance = branches.select(before)
            share = share * chance
    probabilities = reverse.outcome_probabilities(states).double()
    return Predicted(name, probabilities, share.double(), model.images(states))


@torch.no_grad()
def check_histories(sampler: DenoiserSampler, starts: Tensor, labels: Tensor | None, shots: int, seed: int) -> None:
    """Stop where the shots leave the image of a usual history fewer than one for each outcome of the data.

    Args:
        sampler: of a model that keeps its outcomes, and on its device, under whose noise histories are drawn.
        starts: x_T.
        labels: int64 [B], or None.
        shots: of each image.
        seed: of the histories.

    Raises:
        InvalidInputError: with the number of shots it takes.
    """
    model, device = sampler.model, sampler.device
    assert isinstance(model.reverse, ReverseProcess)
    reverse, drawn_by = model.reverse, model.reverse
    try:
        if device.has_noise:
            drawn_by = reverse.on(device=device, engine="noisy", mid_circuit=sampler.mid_circuit)
    except MemoryBudgetError:
        drawn_by = reverse.on(engine="ideal")
    chain = drawn_by.run(starts, labels, torch.Generator().manual_seed(seed))
    share = float(chain.probability.median())
    if shots * share < model.dim:
        raise InvalidInputError(
            f"an image's record of {model.reverse.config.n_steps} outcomes comes up again in {share:.3g} of the shots "
            f"(median, predicted): {shots} shots leave about {shots * share:.3g} an image, {model.dim} are needed. Use "
            f"{int(np.ceil(model.dim / share))} shots or more"
        )
