"""`qhw devices`: the account's live devices with queue, median errors and the predicted error of our circuits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from qhw_diffusion.circuits import published_circuit
from qhw_diffusion.devices import Calibration, Device, backend_snapshot, connect, live_backends, rank_layouts
from qhw_diffusion.devices.account import ask
from qhw_diffusion.devices.tables import MEDIANS, grid
from qhw_diffusion.errors import QhwError

# One of each kind: the default policy, the one that is cheapest on heavy-hexagon devices, a denoiser's block.
CIRCUITS = ("policy_4q_2l_ring", "policy_4q_2l_chain", "denoiser_4q_16l")
SEEDS = 3
_SHOWN = ("readout", "gate_1q", "gate_2q")


@dataclass(frozen=True)
class LiveDevice:
    """One device of the account, now.

    Attributes:
        name, processor: ``"ibm_marrakesh"``, ``"Heron r2"``.
        qubits: how many.
        status: the service's word; ``"active"`` where jobs run.
        queue: jobs waiting; None where the service does not say.
        date: of the calibration, ISO 8601.
        medians: as `Calibration.medians`.
        predicted_errors: of the circuits in `CIRCUITS`, each at its best place; circuits wider than the device are left
            out.
        problem: why the rest is missing; empty if nothing is.
    """

    name: str
    processor: str = ""
    qubits: int = 0
    status: str = ""
    queue: int | None = None
    date: str | None = None
    medians: dict[str, float] = field(default_factory=dict)
    predicted_errors: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def list_live_devices() -> list[LiveDevice]:
    """All live devices, the smallest predicted error first; one that cannot be read is listed with its problem.

    Raises:
        AccountError, ServiceError: no account, refused credentials, no answer.
    """
    found = [look_at(backend) for backend in live_backends(connect())]
    return sorted(found, key=lambda device: (next(iter(device.predicted_errors.values()), 1.0), device.name))


def look_at(backend: Any) -> LiveDevice:
    """One backend object of the client as a row."""
    name = str(backend.name)
    try:
        status = ask(f"status of {name}", backend.status)
        device = Device(ask(f"calibration of {name}", lambda: backend_snapshot(backend)))
        calibration = Calibration.of(device)
        return LiveDevice(
            name=name,
            processor=calibration.processor,
            qubits=device.n_qubits or 0,
            status=str(status.status_msg or "?") if status.operational else f"down ({status.status_msg or '?'})",
            queue=int(status.pending_jobs),
            date=device.date,
            medians=calibration.medians(),
            predicted_errors=predicted_errors(device),
        )
    except QhwError as error:
        return LiveDevice(name=name, qubits=int(backend.num_qubits), problem=str(error))


def predicted_errors(device: Device) -> dict[str, float]:
    """Predicted error (`rank_layouts`) of the circuits in `CIRCUITS` that the device is wide enough for."""
    circuits = [published_circuit(name).circuit for name in CIRCUITS]
    return {
        circuit.name: rank_layouts(device, circuit, top=1, seeds=SEEDS).layouts[0].error
        for circuit in circuits
        if circuit.num_qubits <= (device.n_qubits or 0)
    }


def live_devices_text(devices: Iterable[LiveDevice]) -> str:
    """A row a device; below it what could not be read."""
    devices = list(devices)
    if not devices:
        return "the account has no devices: check its instance (QISKIT_IBM_INSTANCE, or that of the saved account)"
    head = ("device", "processor", "qubits", "status", "queue", *(MEDIANS[name][0] for name in _SHOWN), *CIRCUITS)
    rows = [
        (
            device.name,
            device.processor or "-",
            str(device.qubits or "-"),
            device.status or "-",
            "-" if device.queue is None else str(device.queue),
            *(MEDIANS[name][1](device.medians[name]) if name in device.medians else "-" for name in _SHOWN),
            *(f"{device.predicted_errors[name]:.3f}" if name in device.predicted_errors else "-" for name in CIRCUITS),
        )
        for device in devices
    ]
    lines = [*grid(head, rows), ""]
    lines.append(
        "errors: medians of the calibration; under a circuit's name: its predicted error at the best place found"
    )
    lines += [f"{device.name}: {device.problem}" for device in devices if device.problem]
    return "\n".join(lines)
