"""What a reverse process is made of: one frozen dataclass, saved as JSON beside the weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from qhw_diffusion.circuits.parts import check_integer
from qhw_diffusion.circuits.reverse import ANSATZES
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import check_engine_text
from qhw_diffusion.execution.evolution import state_engine_of
from qhw_diffusion.runs import settings_from_dict

KINDS = ("unitary", "postselected", "measured", "reset")
SHARINGS = ("separate", "angle", "map")
LABELS_BY = ("none", "qubits", "angles", "weights")


@dataclass(frozen=True)
class ReverseConfig:
    """The reverse process of a quantum diffusion model.

    Attributes:
        n_qubits: data qubits.
        n_steps: T.
        kind: what becomes of the ancillas after every step. ``"unitary"``: there are none. ``"postselected"``: only
            runs that read 0 everywhere are kept. ``"measured"``: the outcome is drawn, every run is kept.
            ``"reset"``: the outcome is forgotten.
        ancillas: number of ancillas.
        feed_forward: the outcome of a step chooses the weights of the next (``"measured"`` only).
        depth: layers that reach the ancillas.
        outer: layers before and after that do not (the bottleneck n → n+1 → n has outer > 0).
        ansatz: ``"chain"`` or ``"cz"`` (see `circuits.reverse_circuit`).
        sharing: how a circuit knows its step. ``"separate"``: weights of its own for every step. ``"angle"``: the same
            weights, and ancilla angles for the step. ``"map"``: weights from t by a small classical network.
        labels_by: how it knows the label. ``"qubits"``: label qubits. ``"angles"``: ancilla angles. ``"weights"``:
            weights of its own for every label. ``"none"``: it does not.
        n_labels: number of labels.
        map_width: hidden units of the network of ``sharing="map"``.
        init_scale: standard deviation of the initial weights (radians); small: near the identity.
        device: what the circuit is compiled for, as in `Device.load`.
        engine: ``"ideal"`` or ``"noisy"``.
        seed: of the initial weights and of the transpiler.
    """

    n_qubits: int = 6
    n_steps: int = 6
    kind: str = "postselected"
    ancillas: int = 1
    feed_forward: bool = False
    depth: int = 8
    outer: int = 0
    ansatz: str = "chain"
    sharing: str = "separate"
    labels_by: str = "none"
    n_labels: int = 1
    map_width: int = 8
    init_scale: float = 0.1
    device: str = "ideal"
    engine: str = "ideal"
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, given, allowed in (
            ("kind of reverse process", self.kind, KINDS),
            ("sharing", self.sharing, SHARINGS),
            ("way to give labels", self.labels_by, LABELS_BY),
            ("ansatz", self.ansatz, ANSATZES),
        ):
            if given not in allowed:
                raise UnknownNameError.of(kind, str(given), allowed)
        state_engine_of(check_engine_text(self.engine))
        for name in ("n_qubits", "n_steps", "depth", "n_labels", "map_width"):
            check_integer(name, getattr(self, name), 1, None)
        for name in ("ancillas", "outer", "seed"):
            check_integer(name, getattr(self, name), 0, None)
        if not (isinstance(self.init_scale, (int, float)) and 0 <= self.init_scale < math.inf):
            raise InvalidInputError(f"init_scale is {self.init_scale!r}; allowed: finite numbers from 0")
        measured = self.ancillas > 0 or self.labels_by == "qubits"
        if (self.kind == "unitary") == measured:
            raise InvalidInputError(
                f"kind={self.kind!r} with {self.ancillas} ancillas and labels_by={self.labels_by!r}: a unitary step "
                "has neither ancillas nor label qubits, every other kind has at least one"
            )
        if self.feed_forward and self.kind != "measured":
            raise InvalidInputError(f"feed_forward needs outcomes: kind='measured', not {self.kind!r}")
        if (self.labels_by == "none") != (self.n_labels == 1):
            raise InvalidInputError(
                f"n_labels={self.n_labels} with labels_by={self.labels_by!r}: give labels_by for two labels or more, "
                "and n_labels=1 without"
            )
        if self.context and not self.ancillas:
            raise InvalidInputError("sharing='angle' and labels_by='angles' turn ancillas: give ancillas=1 or more")

    @property
    def context(self) -> bool:
        """Whether ancilla angles carry the step or the label."""
        return self.sharing == "angle" or self.labels_by == "angles"

    @property
    def label_qubits(self) -> int:
        """Qubits that hold the label in binary."""
        return (self.n_labels - 1).bit_length() if self.labels_by == "qubits" else 0

    @property
    def n_outcomes(self) -> int:
        """Outcomes of one step."""
        return int(2 ** (self.ancillas + self.label_qubits))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ReverseConfig:
        """Raises InvalidInputError on unknown entries and on values that do not fit."""
        return settings_from_dict(cls, data, "a reverse process")
