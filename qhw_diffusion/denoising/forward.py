"""Forward processes: how data states turn into noise, step by step, and the noise schedules that say how fast.

`Depolarizing` is a channel, `GaussianAmplitudes` classical noise on amplitudes, `Scrambling` random circuits;
`device_noise.DeviceNoise` is the device's own noise. All are a `ForwardProcess`.

In a noise schedule step t = 1 … T replaces the share p_t of what it finds by noise; α_t = Π_{s≤t} (1 − p_s) of the
data is left after it (α₀ = 1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.denoising.states import TOLERANCE, as_density, check_pure, check_states, haar_states, normalised
from qhw_diffusion.errors import InvalidInputError, UnknownNameError


@dataclass(frozen=True)
class NoiseSchedule:
    """p_1 … p_T, each in [0, 1].

    Attributes:
        p: share replaced by noise at each step, p[0] at step 1.
        name: what it is called in reports.

    Raises:
        InvalidInputError: no steps, or a p_t outside [0, 1] (the message names the step).
    """

    p: tuple[float, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", tuple(float(value) for value in self.p))
        if not self.p:
            raise InvalidInputError("a noise schedule needs at least one step")
        for t, value in enumerate(self.p, start=1):
            if not 0 <= value <= 1:
                raise InvalidInputError(
                    f"schedule {self.name!r} leaves [0, 1] at step {t} of {len(self.p)}: p_{t} = {value:.6g}. "
                    "Choose settings that keep every p_t a probability"
                )

    @property
    def n_steps(self) -> int:
        """T."""
        return len(self.p)

    def alpha(self, t: int) -> float:
        """α_t, the share of the data left after step t; t from 0 to T."""
        if not 0 <= t <= self.n_steps:
            raise InvalidInputError(f"steps go from 0 (data) to {self.n_steps}, not {t}")
        return math.prod(1 - value for value in self.p[:t])

    @property
    def alphas(self) -> Tensor:
        """α_0 … α_T, float64 [T + 1]."""
        shares = accumulate(self.p, lambda left, value: left * (1 - value), initial=1.0)
        return torch.tensor(list(shares), dtype=torch.float64)


def linear(n_steps: int, *, start: float = 0.02, end: float = 0.5) -> NoiseSchedule:
    """p_t evenly spaced from `start` to `end` (Ho et al. 2020, arXiv 2006.11239).

    The published 1e-4 … 0.02 is meant for T = 1000. The values here are for the ten or twenty steps of a quantum
    model: T = 10 leaves α_T = 0.04, T = 20 leaves 0.002.
    """
    _check_steps(n_steps)
    step = (end - start) / max(n_steps - 1, 1)
    return NoiseSchedule(tuple(start + t * step for t in range(n_steps)), "linear")


def constant(n_steps: int, *, p: float = 0.2) -> NoiseSchedule:
    """The same p at every step: α_t = (1 − p)^t."""
    _check_steps(n_steps)
    return NoiseSchedule((p,) * n_steps, "constant")


def cosine(n_steps: int, *, offset: float = 0.008, largest: float = 0.999) -> NoiseSchedule:
    """p_t = 1 − ᾱ_t/ᾱ_{t−1}, at most `largest`, with ᾱ of `cosine_alpha_bar` (Nichol & Dhariwal 2021, 2102.09672)."""
    return NoiseSchedule(tuple(min(p, largest) for p in _cosine_shares(n_steps, offset)), "cosine")


def cosine_square(n_steps: int, *, offset: float = 0.008, largest: float = 0.999) -> NoiseSchedule:
    """The square of `cosine`'s p_t: gentler at the start, so most of the noise comes in the last steps."""
    return NoiseSchedule(tuple(p * p for p in cosine(n_steps, offset=offset, largest=largest).p), "cosine_square")


def msquddpm(n_steps: int, *, k: float = 1.0, offset: float = 0.001) -> NoiseSchedule:
    """q_t = (1 − ᾱ_t/ᾱ_{t−1})^k with the cosine ᾱ, not capped: q_T = 1, all noise (MSQuDDPM, arXiv 2411.17608).

    k = 1 was published for the cluster, k = 2 for the circle. `offset` is the one in the authors' public code. That
    code applies q_t once per qubit, each time to the whole register; for one qubit this is the same.
    """
    if not (math.isfinite(k) and k > 0):
        raise InvalidInputError(f"the exponent k must be positive, not {k}")
    return NoiseSchedule(tuple(p**k for p in _cosine_shares(n_steps, offset)), "msquddpm")


def cosine_alpha_bar(u: float, offset: float) -> float:
    """ᾱ(u) = cos²(π/2 · (u + offset)/(1 + offset)), u = t/T; not divided by ᾱ(0), as only ratios are used."""
    return math.cos(math.pi / 2 * (u + offset) / (1 + offset)) ** 2


_SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": linear,
    "cosine": cosine,
    "cosine_square": cosine_square,
    "constant": constant,
    "msquddpm": msquddpm,
}


def noise_schedule(name: str, n_steps: int, **settings: Any) -> NoiseSchedule:
    """A noise schedule by name.

    Args:
        name: linear, cosine, cosine_square, constant or msquddpm.
        n_steps: T ≥ 1.
        settings: of the function of that name.

    Raises:
        UnknownNameError: no such schedule.
        InvalidInputError: a setting the schedule does not have, fewer than one step, or a p_t outside [0, 1].
    """
    if name not in _SCHEDULES:
        raise UnknownNameError.of("noise schedule", str(name), _SCHEDULES)
    make = _SCHEDULES[name]
    allowed = dict(make.__kwdefaults__ or {})
    foreign = sorted(set(settings) - set(allowed))
    if foreign:
        raise InvalidInputError(f"schedule {name!r} has no setting {', '.join(foreign)}; it has {', '.join(allowed)}")
    return make(n_steps, **settings)


def _cosine_shares(n_steps: int, offset: float) -> list[float]:
    _check_steps(n_steps)
    if not (math.isfinite(offset) and offset >= 0):
        raise InvalidInputError(f"the offset of a cosine schedule must be ≥ 0, not {offset}")
    bars = [cosine_alpha_bar(t / n_steps, offset) for t in range(n_steps + 1)]
    return [1 - after / before for before, after in pairwise(bars)]


def _check_steps(n_steps: int) -> None:
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
        raise InvalidInputError(f"a noise schedule needs a whole number of steps ≥ 1, not {n_steps!r}")


class ForwardProcess(ABC):
    """A Markov chain x_0 → x_1 → … → x_T on a batch of states, x_0 being data.

    Every random process draws anew for each state of the batch, from the `generator` given; a process without
    randomness ignores it. Results keep the dtype of the states. Public methods raise `InvalidInputError` for states
    that are none and for steps outside 0 … T.
    """

    @property
    @abstractmethod
    def n_steps(self) -> int:
        """T."""

    @property
    @abstractmethod
    def density(self) -> bool:
        """True if density matrices [B, d, d] come out, False for pure states [B, d]."""

    @abstractmethod
    def prior(self, count: int, dim: int, generator: torch.Generator, dtype: torch.dtype = torch.complex64) -> Tensor:
        """States that sampling starts from at step T, made without data: [count, dim] or [count, dim, dim]."""

    def noised(self, states: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """x_t given data x_0; t from 0 (the data) to T."""
        self._check_step(t, first=0)
        return self._leave(self._jump(self._enter(states), t, generator))

    def step(self, states: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """x_t given x_{t−1}; t from 1 to T."""
        self._check_step(t, first=1)
        return self._leave(self._step(self._enter(states), t, generator))

    def pair(self, states: Tensor, t: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x_{t−1}, x_t) of one path given data x_0: what a reverse step learns from; t from 1 to T."""
        self._check_step(t, first=1)
        before = self._jump(self._enter(states), t - 1, generator)
        return self._leave(before), self._leave(self._step(before, t, generator))

    def path(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """x_0 … x_T of one path given data x_0: [T + 1, B, d] or [T + 1, B, d, d]."""
        inside = self._enter(states)
        visited = [self._leave(inside)]
        for t in range(1, self.n_steps + 1):
            inside = self._step(inside, t, generator)
            visited.append(self._leave(inside))
        return torch.stack(visited)

    def _enter(self, states: Tensor) -> Tensor:
        """Check states and bring them into the form that `_step` works on."""
        if self.density:
            check_states(states)
            return as_density(states)
        if isinstance(states, Tensor) and states.ndim == 3:
            raise InvalidInputError(f"{type(self).__name__} acts on pure states [B, d], not on density matrices")
        check_pure(states)
        return states

    def _leave(self, inside: Tensor) -> Tensor:
        """From that form to states."""
        return inside

    def _jump(self, inside: Tensor, t: int, generator: torch.Generator) -> Tensor:
        for s in range(1, t + 1):
            inside = self._step(inside, s, generator)
        return inside

    @abstractmethod
    def _step(self, inside: Tensor, t: int, generator: torch.Generator) -> Tensor:
        """One step, unchecked."""

    def _check_step(self, t: int, first: int) -> None:
        if isinstance(t, bool) or not isinstance(t, int) or not first <= t <= self.n_steps:
            raise InvalidInputError(f"step must be a whole number from {first} to {self.n_steps}, not {t!r}")


class Depolarizing(ForwardProcess):
    """ρ_t = (1 − p_t) ρ_{t−1} + p_t I/d on the whole register; closed form ρ_t = α_t ρ_0 + (1 − α_t) I/d.

    Not random: the result is the average over noise. `prior` is I/d for every member, so all diversity of what is
    sampled has to come from the reverse steps (sampled measurement outcomes, random ancillas).

    Args:
        schedule: p_1 … p_T.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    @property
    def n_steps(self) -> int:
        """Steps T."""
        return self.schedule.n_steps

    @property
    def density(self) -> bool:
        """True: density matrices come out."""
        return True

    def prior(self, count: int, dim: int, generator: torch.Generator, dtype: torch.dtype = torch.complex64) -> Tensor:
        """I/d, `count` times."""
        check_prior(count, dim, dtype)
        return (torch.eye(dim, dtype=dtype, device=generator.device) / dim).repeat(count, 1, 1)

    def _step(self, inside: Tensor, t: int, generator: torch.Generator) -> Tensor:
        return _mixed(inside, 1 - self.schedule.p[t - 1])

    def _jump(self, inside: Tensor, t: int, generator: torch.Generator) -> Tensor:
        return _mixed(inside, self.schedule.alpha(t))


class GaussianAmplitudes(ForwardProcess):
    """Classical diffusion noise on the amplitudes (arXiv 2311.15444): x_t = √(1 − p_t) x_{t−1} + √p_t ε_t.

    This chain, a classical DDPM (Ho et al. 2020), runs on vectors that are *not* normalised; what is handed out is
    each of them divided by its norm, which is a state. ε has independent Gaussian entries with E|ε|² = 1, the size of a
    state: variance 1/d for each amplitude, half of it in the real and half in the imaginary part if `complex`. So
    x_t = √α_t x_0 + √(1 − α_t) ε in one draw. `pair` and `path` keep the unnormalised vector between steps; `step`
    knows only a state and takes it as the vector.

    The prior is a normalised Gaussian vector: a Haar-random state if `complex` (a random circuit prepares it), else a
    random real one. The last step's states are exactly so distributed if α_T = 0.

    Args:
        schedule: p_1 … p_T.
        complex: noise in both parts of the amplitudes; False keeps real states real.
    """

    def __init__(self, schedule: NoiseSchedule, complex: bool = True) -> None:
        self.schedule = schedule
        self.complex = complex

    @property
    def n_steps(self) -> int:
        """Steps T."""
        return self.schedule.n_steps

    @property
    def density(self) -> bool:
        """False: pure states come out."""
        return False

    def prior(self, count: int, dim: int, generator: torch.Generator, dtype: torch.dtype = torch.complex64) -> Tensor:
        """Normalised Gaussian vectors [count, dim]; Haar-random states if the noise is complex."""
        check_prior(count, dim, dtype)
        if self.complex:
            return haar_states(count, dim, generator, dtype)
        return normalised(self.noise((count, dim), generator, dtype))

    def noise(self, shape: tuple[int, int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """ε [B, d] with E|ε|² = 1 per row, in a complex dtype."""
        if self.complex:  # torch's complex normal has E|z|² = 1
            gaussian = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        else:
            real = torch.randn(shape, generator=generator, dtype=dtype.to_real(), device=generator.device)
            gaussian = real.to(dtype)
        return gaussian / shape[1] ** 0.5

    def _leave(self, inside: Tensor) -> Tensor:
        return normalised(inside)

    def _step(self, inside: Tensor, t: int, generator: torch.Generator) -> Tensor:
        return self._noised(inside, 1 - self.schedule.p[t - 1], generator)

    def _jump(self, inside: Tensor, t: int, generator: torch.Generator) -> Tensor:
        return inside if t == 0 else self._noised(inside, self.schedule.alpha(t), generator)

    def _noised(self, inside: Tensor, share: float, generator: torch.Generator) -> Tensor:
        noise = self.noise((inside.shape[0], inside.shape[1]), generator, inside.dtype)
        return share**0.5 * inside + (1 - share) ** 0.5 * noise


class Scrambling(ForwardProcess):
    """Every step is a random circuit, drawn anew for every state: RZ-RY-RZ on each qubit, then RZZ on all pairs.

    At step t, with a strength h_t that grows evenly from ``strength[0]`` to ``strength[1]``:

    - the 3n single-qubit angles are uniform in ±h_t π/8;
    - all pairs share one RZZ angle g/(2√n), g uniform in [0.4 h_t, 0.6 h_t]; one qubit has no RZZ.

    The paper leaves these ranges to its code; they and the default strength are what public code for its cluster
    experiments (T = 20) uses, as is the order of the gates. States stay pure; the ensemble comes close to Haar-random,
    which is the prior.

    Args:
        n_qubits: n ≥ 1.
        n_steps: T ≥ 1.
        strength: (h_1, h_T), 0 ≤ h_1 ≤ h_T. A single step has h_T.

    Raises:
        InvalidInputError: settings outside these bounds.
    """

    def __init__(self, n_qubits: int, n_steps: int, strength: tuple[float, float] = (0.5, 4.0)) -> None:
        if n_qubits < 1 or n_steps < 1:
            raise InvalidInputError(f"scrambling needs n_qubits ≥ 1 and n_steps ≥ 1, not {n_qubits} and {n_steps}")
        first, last = strength
        if not (math.isfinite(first) and math.isfinite(last) and 0 <= first <= last):
            raise InvalidInputError(f"strength must be (h_1, h_T) with 0 ≤ h_1 ≤ h_T, not {tuple(strength)}")
        self.n_qubits = n_qubits
        self._n_steps = n_steps
        grow = (last - first) / max(n_steps - 1, 1)
        self.strengths = tuple(last - grow * (n_steps - 1 - s) for s in range(n_steps))

    @property
    def n_steps(self) -> int:
        """Steps T."""
        return self._n_steps

    @property
    def density(self) -> bool:
        """False: pure states come out."""
        return False

    def prior(self, count: int, dim: int, generator: torch.Generator, dtype: torch.dtype = torch.complex64) -> Tensor:
        """Haar-random states."""
        check_prior(count, dim, dtype, expected=2**self.n_qubits)
        return haar_states(count, dim, generator, dtype)

    def angles(self, count: int, t: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random angles of `count` circuits for step t, radians, float64.

        Returns:
            [count, n, 3] for RZ, RY, RZ in time order; [count] for the RZZ of every pair.
        """
        self._check_step(t, first=1)
        h, device = self.strengths[t - 1], generator.device
        shape = (count, self.n_qubits, 3)
        single = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
        shared = torch.rand(count, generator=generator, dtype=torch.float64, device=device)
        return (single - 0.5) * (h * math.pi / 4), (0.4 + 0.2 * shared) * h / (2 * self.n_qubits**0.5)

    def _enter(self, states: Tensor) -> Tensor:
        states = super()._enter(states)
        if states.shape[1] != 2**self.n_qubits:
            raise InvalidInputError(
                f"this scrambling acts on {self.n_qubits} qubits, d = {2**self.n_qubits}; "
                f"the states have d = {states.shape[1]}"
            )
        return states

    def _step(self, inside: Tensor, t: int, generator: torch.Generator) -> Tensor:
        return scramble(inside, *self.angles(inside.shape[0], t, generator))


def scramble(states: Tensor, single: Tensor, pairs: Tensor) -> Tensor:
    """One scrambling circuit per state: RZ-RY-RZ on each qubit, then RZZ on all pairs.

    Args:
        states: pure [B, 2ⁿ].
        single: angles of RZ, RY, RZ in radians, [B, n, 3].
        pairs: angle of the RZZ in radians, [B].

    Returns:
        States [B, 2ⁿ].
    """
    batch, n = states.shape[0], single.shape[1]
    first, middle, last = (single / 2).unbind(-1)
    cos, sin = middle.cos(), middle.sin()
    # RZ(last) RY(middle) RZ(first); a phase e^{±i(…)/2} on each entry
    rows = [
        torch.polar(cos, -(last + first)),
        -torch.polar(sin, -(last - first)),
        torch.polar(sin, last - first),
        torch.polar(cos, last + first),
    ]
    gates = torch.stack(rows, dim=-1).reshape(batch, n, 2, 2).to(states.dtype)
    for qubit in range(n):
        split = states.reshape(batch, -1, 2, 2**qubit)
        states = torch.einsum("bij,bhjl->bhil", gates[:, qubit], split).reshape(batch, -1)
    if n == 1:
        return states
    sign = 1 - 2 * torch.stack([torch.arange(2**n, device=states.device) >> q & 1 for q in range(n)])
    total = torch.stack([sign[a] * sign[b] for a, b in combinations(range(n), 2)]).sum(0)
    phase = -pairs[:, None] / 2 * total
    return states * torch.polar(torch.ones_like(phase), phase).to(states.dtype)


def check_prior(count: int, dim: int, dtype: torch.dtype, expected: int | None = None) -> None:
    """Check what `prior` is asked for: how many, of which dimension (`expected`, where the process has its own)."""
    if count < 1:
        raise InvalidInputError(f"a prior needs count ≥ 1, not {count}")
    if dim < 2 or dim & (dim - 1):
        raise InvalidInputError(f"the dimension must be a power of two, 2 or more, not {dim}")
    if expected is not None and dim != expected:
        raise InvalidInputError(f"this process acts on states of dimension {expected}, not {dim}")
    if dtype not in TOLERANCE:
        raise InvalidInputError(f"states have dtype complex64 or complex128, not {dtype}")


def _mixed(density: Tensor, share: float) -> Tensor:
    """The mixture share · ρ + (1 − share) · tr ρ · I/d."""
    dim = density.shape[-1]
    trace = torch.einsum("bii->b", density)[:, None, None]
    return share * density + (1 - share) / dim * trace * torch.eye(dim, dtype=density.dtype, device=density.device)
