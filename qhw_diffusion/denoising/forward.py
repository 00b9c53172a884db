"""Forward processes: how data states turn into noise, step by step.

Two lie here, `Depolarizing` (a channel) and `GaussianAmplitudes` (classical noise on amplitudes); `scrambling` has the
random circuits, `device_noise` the device's own noise. All answer the same five questions, see `ForwardProcess`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from qhw_diffusion.denoising.schedules import NoiseSchedule
from qhw_diffusion.denoising.states import TOLERANCE, as_density, check_pure, check_states, haar_states, normalised
from qhw_diffusion.errors import InvalidInputError


class ForwardProcess(ABC):
    """A Markov chain x_0 → x_1 → … → x_T on a batch of states, x_0 being data.

    Every random process draws anew for each state of the batch, from the `generator` given; a process without
    randomness ignores it. Results keep the dtype of the states. Public methods raise `InvalidInputError` for states
    that are none and for steps outside the chain.
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
        return self.schedule.n_steps

    @property
    def density(self) -> bool:
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
        return self.schedule.n_steps

    @property
    def density(self) -> bool:
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
    """share · ρ + (1 − share) · tr ρ · I/d."""
    dim = density.shape[-1]
    trace = torch.einsum("bii->b", density)[:, None, None]
    return share * density + (1 - share) / dim * trace * torch.eye(dim, dtype=density.dtype, device=density.device)
