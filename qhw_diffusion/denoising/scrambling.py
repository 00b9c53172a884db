"""Random circuits as the forward process: QuDDPM's scrambling (Zhang et al. 2024, arXiv 2310.05866)."""

from __future__ import annotations

from itertools import combinations
from math import isfinite, pi

import torch
from torch import Tensor

from qhw_diffusion.denoising.forward import ForwardProcess, check_prior
from qhw_diffusion.denoising.states import haar_states
from qhw_diffusion.errors import InvalidInputError


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
        if not (isfinite(first) and isfinite(last) and 0 <= first <= last):
            raise InvalidInputError(f"strength must be (h_1, h_T) with 0 ≤ h_1 ≤ h_T, not {tuple(strength)}")
        self.n_qubits = n_qubits
        self._n_steps = n_steps
        grow = (last - first) / max(n_steps - 1, 1)
        self.strengths = tuple(last - grow * (n_steps - 1 - s) for s in range(n_steps))

    @property
    def n_steps(self) -> int:
        return self._n_steps

    @property
    def density(self) -> bool:
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
        return (single - 0.5) * (h * pi / 4), (0.4 + 0.2 * shared) * h / (2 * self.n_qubits**0.5)

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
    """One scrambling circuit per state: RZ-RY-RZ by `single` [B, n, 3] on each qubit, RZZ by `pairs` [B] on all pairs.

    Args:
        states: [B, 2ⁿ].
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
