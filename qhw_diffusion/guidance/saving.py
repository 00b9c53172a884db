"""Actors on disk, diffusers style: model.safetensors + config.json, and the circuit and the device of a quantum one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qhw_diffusion.circuits import PolicyCircuit, load_circuit, policy_circuit, save_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError
from qhw_diffusion.execution import Engine, QuantumLayer
from qhw_diffusion.guidance.actors import Actor, AnnealingActor, MLPActor
from qhw_diffusion.guidance.lookup import LookupActor
from qhw_diffusion.guidance.quantum_actor import QuantumActor, compile_policy
from qhw_diffusion.runs import atomic_write_json, load_module_state, save_module

CLASSICAL: dict[str, type[MLPActor] | type[AnnealingActor] | type[LookupActor]] = {
    "mlp": MLPActor,
    "annealing": AnnealingActor,
    "lookup": LookupActor,
}
SNAPSHOT = "device.snapshot.json.gz"


def save_actor(actor: Actor, folder: str | Path) -> Path:
    """Write an actor: weights and configuration, for a quantum one also the circuit (circuit.qpy, circuit.qasm), the
    ISA circuit (isa.qpy, isa.qasm), device.json (layout, cost, provenance) and the snapshot it was compiled with.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = actor.config()
    if isinstance(actor, QuantumActor):
        circuit, compiled = actor.circuit, actor.layer.compiled
        save_circuit(circuit.circuit, folder, "circuit")
        save_circuit(compiled.isa, folder, "isa")
        compiled.device.save(folder / SNAPSHOT)
        atomic_write_json(folder / "device.json", compiled.summary(SNAPSHOT))
        config |= {"circuit": _circuit_settings(circuit), "device": compiled.device.name}
        config |= {"transpile_seed": compiled.seed, "optimization_level": compiled.optimization_level}
        config |= {"scheduled": compiled.scheduled}
    save_module(folder, actor, config)
    return folder


def load_actor(
    folder: str | Path, *, device: str | Path | Device | None = None, engine: str | Engine | None = None
) -> Actor:
    """Read an actor; a quantum one may be put, weights unchanged, on another device (compiled anew) or engine.

    device: name, path of a snapshot or Device; None: the saved snapshot. engine: an Engine, or a name such as "ideal",
    "noisy" or "shots:4096"; None: as trained.
    Raises DamagedFileError when the folder does not hold a whole actor, InvalidInputError for a device or engine with a
    classical actor.
    """
    folder = Path(folder)
    state, config = load_module_state(folder)
    try:
        actor = _build(folder, dict(config), device, engine)
        actor.load_state_dict(state)
    except QhwError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedFileError(f"{folder} does not hold a whole actor ({error!r})") from error
    actor.eval()
    return actor


def _build(
    folder: Path, config: dict[str, Any], device: str | Path | Device | None, engine: str | Engine | None
) -> Actor:
    kind = config.pop("kind")
    if kind in CLASSICAL:
        if device is not None or engine is not None:
            raise InvalidInputError(f"{folder} holds a classical actor ({kind}): it runs on no device and no engine")
        return CLASSICAL[kind](**config)
    if kind != QuantumActor.kind:
        raise DamagedFileError(f"{folder} holds an actor of unknown kind {kind!r}")
    circuit = policy_circuit(**config.pop("circuit"))
    if load_circuit(folder / "circuit.qpy") != circuit.circuit:
        raise DamagedFileError(f"{folder / 'circuit.qpy'} is not the circuit that config.json describes")
    if not isinstance(device, Device):
        device = Device.load(folder / SNAPSHOT if device is None else device)
    seed, level = config.pop("transpile_seed"), config.pop("optimization_level")
    scheduled = config.pop("scheduled", False) and not device.is_ideal
    compiled = compile_policy(circuit, device, seed=seed, optimization_level=level, scheduled=scheduled)
    trained_on = config.pop("engine")
    config.pop("device")
    config.pop("n_features")
    return QuantumActor(QuantumLayer(compiled, engine or trained_on), circuit, **config)


def _circuit_settings(circuit: PolicyCircuit) -> dict[str, Any]:
    names = ("n_qubits", "depth", "n_features", "entanglement", "reuploading")
    return {name: getattr(circuit, name) for name in names}
