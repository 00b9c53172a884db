"""Fractional gates: rx(θ) and rzz(θ) as native gates, which a device calibrates beside its usual basis."""

from __future__ import annotations

import json
from dataclasses import replace

from qhw_diffusion.devices.snapshot import Snapshot, canonical_json
from qhw_diffusion.errors import InvalidInputError

FRACTIONAL_GATES = ("rx", "rzz")


def with_fractional_gates(snapshot: Snapshot) -> Snapshot:
    """The snapshot with rx and rzz in its basis, on the qubits for which its properties hold their errors.

    Providers leave these gates out of a configuration unless asked for them, but calibrate them all the same.

    Raises:
        InvalidInputError: the calibration does not have both.
    """
    configuration, properties = json.loads(snapshot.configuration), json.loads(snapshot.properties)
    calibrated: dict[str, list[list[int]]] = {name: [] for name in FRACTIONAL_GATES}
    for gate in (properties or {}).get("gates", []):
        if gate["gate"] in calibrated:
            calibrated[gate["gate"]].append(gate["qubits"])
    missing = [name for name, places in calibrated.items() if not places]
    if missing:
        raise InvalidInputError(
            f"{snapshot.name} has no calibration of {' and '.join(missing)}: fractional gates exist on Heron devices "
            "(for example fake_marrakesh)"
        )
    present = {gate["name"] for gate in configuration["gates"]}
    for name, places in calibrated.items():
        if name not in present:
            configuration["gates"].append(
                {"name": name, "parameters": ["theta"], "qasm_def": "", "coupling_map": sorted(places)}
            )
        for key in ("basis_gates", "supported_instructions"):
            if key in configuration and name not in configuration[key]:
                configuration[key].append(name)
    return replace(snapshot, configuration=canonical_json(configuration))
