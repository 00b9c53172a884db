"""Settings of a reverse process, and the names that settings had in folders of earlier versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from qhw_diffusion.circuits.ansatz import AnsatzLike, ansatz_text, check_ansatz, check_integer
from qhw_diffusion.config import Config, check_finite, require
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import check_engine_text
from qhw_diffusion.execution.evolution import state_engine_of

KINDS = ("unitary", "postselected", "measured", "reset")
WEIGHT_SHARINGS = ("per_step", "time_embedding", "hypernetwork")
# of a process and of a step: what nobody means, and no machine gets through
MOST_LAYERS = 10_000
CONDITIONINGS = ("none", "qubits", "angles", "weights")

# Class → {old field: (its name now, {old value: its name now})}: what folders saved before the renaming hold.
RENAMED: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "ReverseConfig": {
        "sharing": (
            "weight_sharing",
            {"separate": "per_step", "angle": "time_embedding", "map": "hypernetwork"},
        ),
        "labels_by": ("conditioning", {}),
        "map_width": ("hypernetwork_width", {}),
    },
    "TrainConfig": {"pool": ("buffer_size", {})},
}
# Parameters of a reverse process that have another name in the weights of those folders.
RENAMED_WEIGHTS = {"map_in": "hypernetwork_in", "map_out": "hypernetwork_out"}


def with_present_names(name: str, values: Any) -> Any:
    """Settings of the class of this name with the names of today; settings of today stay as they are.

    Args:
        name: a key of `RENAMED`.
        values: entries by field name. What is no mapping is returned as it is, for the caller to refuse.

    Raises:
        InvalidInputError: an entry under its old and its new name.
    """
    if not isinstance(values, Mapping):
        return values
    present: dict[str, Any] = {}
    for key, value in values.items():
        new, meanings = RENAMED[name].get(key, (key, {}))
        if new != key and new in values:
            raise InvalidInputError(f"{name} has {key!r}, which is the old name of {new!r}, and {new!r}: leave one out")
        present[new] = meanings.get(value, value) if isinstance(value, str) else value
    return present


@dataclass(frozen=True)
class ReverseConfig(Config):
    """The reverse process of a quantum diffusion model."""

    n_qubits: int = 6
    """Data qubits."""
    n_steps: int = 6
    """Steps T of the process."""
    kind: str = "postselected"
    """What becomes of the ancillas after every step: unitary (there are none), postselected (only runs that read 0
    everywhere are kept), measured (the outcome is drawn, every run is kept) or reset (the outcome is forgotten)."""
    ancillas: int = 1
    """Ancillas, qubits that start every step in |0⟩."""
    feed_forward: bool = False
    """Weights of a step chosen by the outcome of the step before (kind measured only)."""
    depth: int = 8
    """Layers of a step that reach the ancillas."""
    outer: int = 0
    """Layers before and after these that do not (more than 0 for the bottleneck n → n+1 → n)."""
    ansatz: AnsatzLike = "chain"
    """Layers of the circuit: chain, cz, or a function of your own as module:name or file.py:name
    (see qhw_diffusion.circuits.ansatz)."""
    weight_sharing: str = "per_step"
    """How a circuit knows its step: per_step (weights of its own for every step), time_embedding (the same weights, and
    trained ancilla angles for the step) or hypernetwork (weights from t by a small classical network)."""
    conditioning: str = "none"
    """How a circuit knows the label: qubits (label qubits), angles (trained ancilla angles), weights (weights of its
    own for every label) or none."""
    n_labels: int = 1
    """Labels of the data."""
    hypernetwork_width: int = 8
    """Hidden units of the hypernetwork."""
    init_scale: float = 0.1
    """Standard deviation of the initial weights in radians; small values start near the identity."""
    device: str = "ideal"
    """Device the circuit is compiled for: ideal, a name, a snapshot file, or an own one (module:name, file.py:name)."""
    engine: str = "ideal"
    """Engine that evaluates the circuit: ideal or noisy."""
    seed: int = 0
    """Seed of the initial weights and of the transpiler."""

    def __post_init__(self) -> None:
        """Check every field by itself and how they fit each other."""
        check_finite(self)
        for kind, given, allowed in (
            ("kind of reverse process", self.kind, KINDS),
            ("weight_sharing", self.weight_sharing, WEIGHT_SHARINGS),
            ("conditioning", self.conditioning, CONDITIONINGS),
        ):
            if given not in allowed:
                raise UnknownNameError.of(kind, str(given), allowed)
        check_ansatz(self.ansatz)
        state_engine_of(check_engine_text(self.engine))
        for name, least, most in (
            *((name, 1, None) for name in ("n_qubits", "n_labels", "hypernetwork_width")),
            *((name, 1, MOST_LAYERS) for name in ("n_steps", "depth")),
            *((name, 0, None) for name in ("ancillas", "seed")),
            ("outer", 0, MOST_LAYERS),
        ):
            check_integer(name, getattr(self, name), least, most)
        require(
            isinstance(self.init_scale, (int, float)) and 0 <= self.init_scale < math.inf,
            f"init_scale is {self.init_scale!r}; allowed: finite numbers from 0",
        )
        measured = self.ancillas > 0 or self.conditioning == "qubits"
        require(
            (self.kind == "unitary") != measured,
            f"kind={self.kind!r} with {self.ancillas} ancillas and conditioning={self.conditioning!r}: a unitary step "
            "has neither ancillas nor label qubits, every other kind has at least one",
        )
        require(
            not self.feed_forward or self.kind == "measured",
            f"feed_forward needs outcomes: kind='measured', not {self.kind!r}",
        )
        require(
            (self.conditioning == "none") == (self.n_labels == 1),
            f"n_labels={self.n_labels} with conditioning={self.conditioning!r}: give a conditioning for two labels or "
            "more, and n_labels=1 without",
        )
        require(
            not self.conditioning_angles or self.ancillas > 0,
            "weight_sharing='time_embedding' and conditioning='angles' turn ancillas: give ancillas=1 or more",
        )

    @property
    def conditioning_angles(self) -> bool:
        """Whether ancilla angles carry the step or the label."""
        return self.weight_sharing == "time_embedding" or self.conditioning == "angles"

    @property
    def label_qubits(self) -> int:
        """Qubits that hold the label in binary."""
        return (self.n_labels - 1).bit_length() if self.conditioning == "qubits" else 0

    @property
    def n_outcomes(self) -> int:
        """Outcomes of one step."""
        return int(2 ** (self.ancillas + self.label_qubits))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON types; an own ansatz by its name.

        Raises:
            InvalidInputError: an own ansatz without a name by which it is found again (see `circuits.ansatz_text`).
        """
        return {**super().to_dict(), "ansatz": ansatz_text(self.ansatz)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; also reads the names of earlier versions (`RENAMED`).

        Raises:
            UnknownNameError: an entry that is no field.
            InvalidInputError: `values` is no mapping, or a value does not fit its field.
        """
        return super().from_dict(with_present_names("ReverseConfig", values))
