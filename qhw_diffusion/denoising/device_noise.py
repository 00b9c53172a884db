"""The device's own noise as the forward process: qubits that wait, or that run gates which cancel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import isfinite

import numpy as np
import torch
from qiskit import QuantumCircuit, transpile
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from qhw_diffusion.denoising.channels import apply_local, check_channel, superoperator_of
from qhw_diffusion.denoising.forward import ForwardProcess, check_prior
from qhw_diffusion.devices import Device
from qhw_diffusion.devices.working import out_of_use, usable_qubits
from qhw_diffusion.errors import EngineError, InvalidInputError, UnknownNameError
from qhw_diffusion.execution.program import FixedMap, lower

# Gates that are their own inverse, and on how many qubits.
IDENTITY_GATES = {"x": 1, "cx": 2, "cz": 2}


class DeviceNoise(ForwardProcess):
    """Every step runs a circuit that does nothing on an ideal device, on calibrated qubits of a real one.

    Either the qubits wait (a delay: T1 and T2 act), or they run pairs of gates that cancel (X·X on every qubit, CX·CX
    or CZ·CZ on every coupled pair), with relaxation and depolarizing error of every gate and, as the circuit is
    scheduled, relaxation of what waits meanwhile. The channels are those of the noisy engine, built by
    `execution.program.lower`; each is checked to be completely positive and trace preserving. Every step is the same.
    Not random: the result is the average over noise. Measurement errors are no part of it.

    **Where it leads.** Waiting ends in |0…0⟩, not in I/d: T1 empties the excited state (these noise models have
    temperature 0). X·X sends a qubit's excitation up and down, so that it ends near I/2, and other gates somewhere
    between. `prior` is this end, the state that repeated steps converge to from I/d: it holds no data. The T steps must
    be long enough to come near it; compare `noised(data, T, …)` with it. Without T1 (nothing but dephasing) the end
    from I/d is I/d, while data keep their populations for ever: such steps forget only coherences.

    Args:
        device: with a target: a fake device or a snapshot.
        qubits: physical qubits, state qubit i on ``qubits[i]``; or their number n, which takes the connected group of n
            with the longest T1 (see `best_qubits`).
        n_steps: T ≥ 1.
        seconds: wait per step; give this or `pairs`.
        pairs: how many pairs of `gate` per step.
        gate: "x", "cx" or "cz"; a two-qubit gate runs on the coupled pairs one after the other.

    Raises:
        InvalidInputError: the ideal device, one without gate durations (`pairs`), qubits it does not have or that are
            out of use, both or neither of `seconds` and `pairs`, a two-qubit gate without coupled qubits, or a circuit
            that this device runs without any noise.
        UnknownNameError: a gate that is none of the three.
    """

    def __init__(
        self,
        device: Device,
        qubits: int | Sequence[int],
        n_steps: int,
        *,
        seconds: float | None = None,
        pairs: int | None = None,
        gate: str = "x",
    ) -> None:
        if device.target is None:
            raise InvalidInputError("the ideal device has no noise to diffuse with; name a fake device or a snapshot")
        if n_steps < 1:
            raise InvalidInputError(f"n_steps must be at least 1, not {n_steps}")
        if (seconds is None) == (pairs is None):
            raise InvalidInputError("give either seconds (a wait per step) or pairs (of gates per step), not both")
        if seconds is not None and not (isfinite(seconds) and seconds > 0):
            raise InvalidInputError(f"seconds per step must be finite and > 0, not {seconds!r}")
        if pairs is not None and not device.has_durations:
            raise InvalidInputError(f"{device.name} states no gate durations, so pairs of gates cannot be scheduled")
        if pairs is not None and pairs < 1:
            raise InvalidInputError(f"pairs per step must be at least 1, not {pairs}")
        if gate not in IDENTITY_GATES:
            raise UnknownNameError.of("identity gate", str(gate), IDENTITY_GATES)
        self.device = device
        if isinstance(qubits, int):
            two_qubit_gates = pairs is not None and IDENTITY_GATES[gate] == 2
            self.qubits = best_qubits(device, qubits, two_qubit_gates=two_qubit_gates)
        else:
            self.qubits = tuple(int(q) for q in qubits)
        last = (device.n_qubits or 0) - 1
        if not self.qubits or len(set(self.qubits)) != len(self.qubits) or not set(self.qubits) <= set(range(last + 1)):
            raise InvalidInputError(f"{device.name} has qubits 0 to {last}, each to be named once; given {self.qubits}")
        self.seconds, self.pairs, self.gate = seconds, pairs, gate
        self._n_steps = n_steps
        if faulty := sorted(set(self.qubits) - set(device.usable_qubits)):
            raise InvalidInputError(
                f"qubits {faulty} of {device.name} are faulty or have no calibration; choose others"
            )
        self.circuit = _step_circuit(device, self.qubits, seconds, pairs, gate)
        if broken := out_of_use(device.target, self.circuit):
            named = ", ".join(f"{name} on {'-'.join(map(str, place))}" for name, place in broken)
            raise InvalidInputError(f"{named} of {device.name}: out of use (error 1); choose other qubits")
        self.maps = _maps(self.circuit, device, self.qubits)

    @property
    def n_steps(self) -> int:
        """Steps T."""
        return self._n_steps

    @property
    def density(self) -> bool:
        """True: density matrices come out."""
        return True

    @property
    def n_qubits(self) -> int:
        """Qubits n of the states."""
        return len(self.qubits)

    def superoperator(self, steps: int = 1) -> Tensor:
        """[4ⁿ, 4ⁿ] of `steps` steps, complex128, for n ≤ 4; the steps themselves never build it.

        Raises:
            InvalidInputError: more than four qubits.
        """
        if self.n_qubits > 4:
            raise InvalidInputError(
                f"the superoperator of {self.n_qubits} qubits has 4^{2 * self.n_qubits} entries; allowed: 4 qubits"
            )
        one = superoperator_of(self._apply, 2**self.n_qubits)
        return torch.linalg.matrix_power(one, steps)

    @cached_property
    def fixed_point(self) -> Tensor:
        """The state [d, d] that repeated steps converge to from I/d, complex128.

        The limit is I/d + Y with (1 − E) Y = E(I/d) − I/d. A Krylov solver started from that right side finds the Y
        that the steps themselves would, also where E has several fixed points.
        """
        dim = 2**self.n_qubits
        mixed = torch.eye(dim, dtype=torch.complex128)[None] / dim
        moved = (self._apply(mixed) - mixed).flatten().numpy()

        def remainder(vector: np.ndarray) -> np.ndarray:
            matrix = torch.from_numpy(np.ascontiguousarray(vector)).reshape(1, dim, dim)
            return (matrix - self._apply(matrix)).flatten().numpy()

        shape = (dim * dim, dim * dim)
        operator = LinearOperator(shape, matvec=remainder, dtype=np.complex128)
        found, failed = gmres(operator, moved, rtol=1e-9, atol=1e-15, restart=min(dim * dim, 200), maxiter=50)
        if failed:
            raise EngineError(f"no fixed point of {self!r} found in {failed} iterations")
        limit = mixed[0] + torch.from_numpy(found).reshape(dim, dim)
        limit = (limit + limit.mH) / 2
        return limit / torch.einsum("ii->", limit)

    def prior(self, count: int, dim: int, generator: torch.Generator, dtype: torch.dtype = torch.complex64) -> Tensor:
        """`fixed_point`, `count` times."""
        check_prior(count, dim, dtype, expected=2**self.n_qubits)
        return self.fixed_point.to(dtype=dtype, device=generator.device).repeat(count, 1, 1)

    def _enter(self, states: Tensor) -> Tensor:
        states = super()._enter(states)
        if states.shape[1] != 2**self.n_qubits:
            raise InvalidInputError(
                f"this process acts on {self.n_qubits} qubits, d = {2**self.n_qubits}; "
                f"the states have d = {states.shape[1]}"
            )
        return states

    def _apply(self, density: Tensor) -> Tensor:
        for qubits, channel in self.maps:
            density = apply_local(channel.to(density.device), density, qubits)
        return density

    def _step(self, inside: Tensor, t: int, generator: torch.Generator) -> Tensor:
        return self._apply(inside)

    def __repr__(self) -> str:
        each = f"{self.seconds} s" if self.seconds is not None else f"{self.pairs} × {self.gate}·{self.gate}"
        return f"DeviceNoise({self.device.name}, qubits {list(self.qubits)}, {self.n_steps} steps of {each})"


def best_qubits(device: Device, count: int, *, two_qubit_gates: bool = False) -> tuple[int, ...]:
    """A connected group of `count` physical qubits, grown from the qubit with the longest T1 by the longest T1 nearby.

    Long T1 leaves the widest choice of how much noise a step adds. Deterministic; qubits without T1 come last, and
    qubits that are faulty or out of use are left out; with `two_qubit_gates` so are couplings.

    Raises:
        InvalidInputError: fewer such qubits on the device, or count < 1.
    """
    usable = () if device.target_in_use is None else usable_qubits(device.target_in_use)
    if not 1 <= count <= len(usable):
        in_use = " in use" if len(usable) < (device.n_qubits or 0) else ""
        raise InvalidInputError(f"{device.name} has {len(usable)} qubits{in_use}; {count} were asked for")
    near: dict[int, set[int]] = {q: set() for q in usable}
    pairs = device.couplings_in_use if two_qubit_gates else device.coupling_map
    for a, b in (pair for pair in pairs if set(pair) <= near.keys()):
        near[a].add(b)
        near[b].add(a)
    life = {q: device.relaxation_times(q)[0] or 0.0 for q in near}
    for start in sorted(near, key=lambda q: (-life[q], q)):
        group = [start]
        while len(group) < count:
            border = {q for member in group for q in near[member]} - set(group)
            if not border:
                break
            group.append(min(border, key=lambda q: (-life[q], q)))
        if len(group) == count:
            return tuple(group)
    raise InvalidInputError(f"{device.name} has no {count} connected qubits")


def _step_circuit(
    device: Device, qubits: tuple[int, ...], seconds: float | None, pairs: int | None, gate: str
) -> QuantumCircuit:
    """One step as an ISA circuit on the device's own qubits."""
    n = len(qubits)
    circuit = QuantumCircuit(n)
    if seconds is not None:
        # Relaxation takes any length: laid out by hand, a wait is not rounded to the device's clock.
        isa = QuantumCircuit(device.n_qubits)
        for qubit in qubits:
            isa.delay(seconds, qubit, unit="s")
        return isa
    places: list[tuple[int, ...]] = [(i,) for i in range(n)]
    if IDENTITY_GATES[gate] == 2:
        coupled = {frozenset(pair) for pair in device.couplings_in_use}
        places = [(i, j) for i in range(n) for j in range(i + 1, n) if frozenset((qubits[i], qubits[j])) in coupled]
        if not places:
            raise InvalidInputError(
                f"no two of the qubits {list(qubits)} of {device.name} are coupled, so {gate}·{gate} cannot run"
            )
    for place in places * (pairs or 0):
        for _ in range(2):
            getattr(circuit, gate)(*place)
            circuit.barrier(*place)
    # Level 0 keeps what cancels; barriers keep it from being merged.
    return transpile(
        circuit,
        target=device.target,
        initial_layout=list(qubits),
        optimization_level=0,
        scheduling_method="alap",
        seed_transpiler=0,
    )


def _maps(circuit: QuantumCircuit, device: Device, qubits: tuple[int, ...]) -> list[tuple[tuple[int, ...], Tensor]]:
    """(qubits, superoperator) of a step in time order; neighbours on the same qubits are multiplied together."""
    program = lower(circuit, device, qubits, (), (), ())
    fused: list[tuple[tuple[int, ...], np.ndarray]] = []
    noisy = False
    for operation in program.operations:
        assert isinstance(operation, FixedMap)  # no parameters, so no rotations
        noisy = noisy or operation.noisy is not None
        channel = operation.channel(True)
        last = next((i for i in reversed(range(len(fused))) if set(fused[i][0]) & set(operation.qubits)), None)
        if last is not None and fused[last][0] == operation.qubits:
            fused[last] = (operation.qubits, channel @ fused[last][1])
        else:
            fused.append((operation.qubits, channel))
    if not noisy:
        raise InvalidInputError(
            f"{device.name} runs this circuit without any noise on qubits {list(qubits)}: nothing would diffuse. "
            "Choose other qubits, or gates instead of waiting"
        )
    maps = [(place, torch.from_numpy(np.ascontiguousarray(channel))) for place, channel in fused]
    for place, superoperator in maps:
        check_channel(superoperator, f"the noise of {device.name} on qubits {[qubits[q] for q in place]}")
    return maps
