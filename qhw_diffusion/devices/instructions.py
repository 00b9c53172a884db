"""Instructions that measure and reset: the usual ones, and those that some devices have for the middle of a circuit.

IBM's newer devices read a qubit in mid-circuit by a shorter pulse of its own, `measure_2`, and some reset by `reset_2`.
They do what `measure` and `reset` do, with a duration and (`measure_2`) a readout error of their own in the target.
"""

from __future__ import annotations

from qiskit.transpiler import Target

# {what every circuit has: what takes its place in mid-circuit, on devices that have it}
MID_CIRCUIT = {"measure": "measure_2", "reset": "reset_2"}
MEASUREMENTS = ("measure", MID_CIRCUIT["measure"])
RESETS = ("reset", MID_CIRCUIT["reset"])


def measurement_at(target: Target, qubit: int) -> str:
    """The instruction by which a device reads a physical qubit in mid-circuit."""
    special = MID_CIRCUIT["measure"]
    return special if target.instruction_supported(special, (qubit,)) else "measure"
