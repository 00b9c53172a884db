"""Words of the guidance study: what policies, schedules and metrics are called, and how their numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qhw_diffusion.experiment import mean_interval

PRIMARY, SECOND = "energy", "fd"
"""The metric that decides, and the one told beside it."""
PATHWISE = "_pathwise"
"""Ending of the names of policies that are trained by the exact gradient."""
METRIC_LABELS = {
    "energy": "energy ↓",
    "fd": "FD ↓",
    "kd": "KD ↓",
    "accuracy": "accuracy ↑ (%)",
    "diversity": "diversity",
    "precision": "precision ↑",
    "recall": "recall ↑",
}
_SCALE = {"accuracy": 100.0}
_SHARES = ("accuracy", "precision", "recall")
_DIGITS = {"energy": 3, "fd": 2, "kd": 3, "accuracy": 1}
SCHEDULE_LABELS = {
    "constant": "best constant",
    "linear_up": "linear, rising",
    "linear_down": "linear, falling",
    "cosine_up": "cosine, rising",
    "limited_interval": "limited interval",
    "clamped_linear": "clamped linear",
    "exponential": "exponential",
}
OTHER_LABELS = {
    "free_schedule": "free schedule, pathwise",
    "class_schedule": "free schedule of every class, pathwise",
    "greedy_search": "greedy search, each image",
    "oracle_constant": "best constant by the evaluation",
    "oracle_schedule": "best free schedule (oracle)",
    "oracle_feedback": "best state feedback (oracle)",
}
KIND_LABELS = {
    "quantum": "quantum, trained under noise",
    "quantum_ideal": "quantum, trained without noise",
    "chain": "quantum, chain instead of ring",
    "reuploading": "quantum, data re-uploading",
    "unentangled": "unentangled circuit",
    "frozen": "frozen random circuit",
    "matched": "MLP, matched size",
    "mlp": "MLP, 9,282 parameters",
    "annealing": "annealing MLP (2 inputs)",
}
POLICY_LABELS = {**KIND_LABELS, **{f"{name}{PATHWISE}": f"{label}, pathwise" for name, label in KIND_LABELS.items()}}


def label_of(policy: str) -> str:
    """What a policy or a schedule is called in tables."""
    if policy in SCHEDULE_LABELS or policy in OTHER_LABELS:
        return {**SCHEDULE_LABELS, **OTHER_LABELS}[policy]
    name, _, variant = policy.partition("@")
    if variant == "untrained":
        return "quantum, untrained"
    return f"{POLICY_LABELS[name]}, run without" if variant == "ideal" else POLICY_LABELS[name]


def kind_of(policy: str) -> str:
    """The policy's name in the line-up without how it is trained."""
    return policy.removesuffix(PATHWISE)


def schedule_text(schedule: dict[str, Any]) -> str:
    """`limited interval, mean 1.5, lo 0.2, hi 0.8`."""
    if schedule["name"] == "constant":
        return f"{SCHEDULE_LABELS['constant']}, g = {schedule['mean']:g}"
    shape = ", ".join(f"{name} {value:g}" for name, value in schedule["shape"].items())
    return f"{SCHEDULE_LABELS[schedule['name']]}, mean {schedule['mean']:.3g}, {shape}"


def format_metric(key: str, values: Sequence[float]) -> str:
    """Mean and interval of a metric in the unit of `METRIC_LABELS`."""
    scale = _SCALE.get(key, 1.0)
    interval = mean_interval([scale * value for value in values])
    return (interval.within(0.0, scale) if key in _SHARES else interval).format(_DIGITS.get(key, 3))
