"""The table of published circuits: what each costs on each reference device, and how far it reaches in state space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from qhw_diffusion.circuits import Estimate, PublishedCircuit
from qhw_diffusion.circuits.measures import BINS, expressibility_of, meyer_wallach, random_states
from qhw_diffusion.devices import Device
from qhw_diffusion.execution import CompiledCircuit, compile_circuit

# device → what it stands for
DEVICES = {
    "ideal": "every pair of qubits connected, no durations",
    "fake_brisbane": "Eagle, heavy-hex lattice, ECR",
    "fake_marrakesh": "Heron, heavy-hex lattice, CZ",
    "fake_nighthawk": "Nighthawk, square lattice, CZ",
}
SHORT = {"ideal": "ideal", "fake_brisbane": "Eagle", "fake_marrakesh": "Heron", "fake_nighthawk": "Nighthawk"}
SEEDS = 20
PAIRS = 5000
MEASURE_SEED = 0
# what the numbers and files depend on beside this package
PACKAGES = ("qiskit", "qiskit-ibm-runtime", "matplotlib")


@dataclass(frozen=True)
class DeviceCost:
    """One circuit compiled for one device.

    Attributes:
        seed: transpiler seed it was compiled with.
        width: device qubits in use, those only passed through included.
        depth: all gates counted, RZ (which takes no time) included.
        two_qubit_gates, two_qubit_depth: number of two-qubit gates, and of layers of them.
        duration_us: microseconds from the first to the last gate, without measurement; None on the ideal device.
    """

    seed: int
    width: int
    depth: int
    two_qubit_gates: int
    two_qubit_depth: int
    duration_us: float | None


def reference_devices() -> dict[str, Device]:
    """The devices of the table, by name."""
    return {name: Device.load(name) for name in DEVICES}


def cost_of(compiled: CompiledCircuit) -> DeviceCost:
    """What a compiled circuit costs."""
    return DeviceCost(
        seed=compiled.seed,
        width=len(compiled.physical_qubits),
        depth=compiled.depth,
        two_qubit_gates=compiled.two_qubit_gates,
        two_qubit_depth=compiled.isa.depth(lambda instruction: len(instruction.qubits) == 2),
        duration_us=None if compiled.duration is None else round(compiled.duration * 1e6, 3),
    )


def compile_published(published: PublishedCircuit, device: Device, seed: int) -> CompiledCircuit:
    """A published circuit compiled for a device (`compile_circuit`, level 3)."""
    return compile_circuit(
        published.circuit,
        device,
        inputs=published.inputs,
        weights=published.weights,
        observables=published.observables,
        seed=seed,
    )


def best_cost(published: PublishedCircuit, device: Device, seeds: Iterable[int] = range(SEEDS)) -> DeviceCost:
    """The cheapest over transpiler seeds: fewest two-qubit gates, then two-qubit depth, duration, seed."""
    costs = [cost_of(compile_published(published, device, seed)) for seed in seeds]
    return min(costs, key=lambda c: (c.two_qubit_gates, c.two_qubit_depth, c.duration_us or 0.0, c.seed))


def measure(published: PublishedCircuit, *, pairs: int = PAIRS, seed: int = MEASURE_SEED) -> tuple[Estimate, Estimate]:
    """Expressibility and entangling capability from the same 2·pairs states; see `qhw_diffusion.circuits.measures`."""
    states = random_states(published.circuit, 2 * pairs, seed)
    fidelities = np.abs(np.einsum("si,si->s", states[:pairs].conj(), states[pairs:])) ** 2
    q = meyer_wallach(states)
    entangling = Estimate(float(q.mean()), float(q.std(ddof=1) / np.sqrt(len(q))), len(q))
    return expressibility_of(fidelities, published.circuit.num_qubits, seed=seed), entangling


def row_of(published: PublishedCircuit, costs: dict[str, DeviceCost], measures: tuple[Estimate, Estimate]) -> dict:
    """One circuit's entry of the table, as JSON types."""
    return {
        "qubits": published.circuit.num_qubits,
        "inputs": len(published.inputs),
        "weights": len(published.weights),
        "devices": {name: asdict(cost) for name, cost in costs.items()},
        "expressibility": asdict(measures[0]),
        "entangling_capability": asdict(measures[1]),
    }


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def table_of(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The whole table, as JSON types: how it was made, and a row for each circuit."""
    return {
        "format": "qhw-published-circuits",
        "version": 1,
        "made_with": versions(),
        "transpiler_seeds": SEEDS,
        "optimization_level": 3,
        "measures": {"pairs": PAIRS, "bins": BINS, "seed": MEASURE_SEED, "parameters": "uniform in [0, 2π)"},
        "calibrations": {name: device.provenance.get("date") for name, device in reference_devices().items()},
        "circuits": rows,
    }


def readme(table: dict[str, Any]) -> str:
    """`circuits/README.md` from the table."""
    import jinja2

    loader = jinja2.PackageLoader("qhw_diffusion.studies", "templates")
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    template = environment.get_template("circuits.md.j2")
    return template.render(t=table, devices=list(DEVICES), short=SHORT, meaning=DEVICES, number=_number)


def _number(value: float) -> str:
    # rounding must not leave −0.0000
    return f"{abs(value) if abs(value) < 5e-5 else value:.4f}"
