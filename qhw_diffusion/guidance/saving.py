"""Actors on disk, diffusers style: model.safetensors + config.json, and a quantum one's layer (circuit, device, …)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qhw_diffusion.checkpoints import check_format, frozen_parameters, load_module_state, put_state, save_module
from qhw_diffusion.circuits import PolicyCircuit, load_circuit, policy_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.execution import Engine, QuantumLayer, engine_of
from qhw_diffusion.execution.layer import read_layer, write_layer
from qhw_diffusion.execution.saving import SNAPSHOT
from qhw_diffusion.guidance.actors import Actor, AnnealingActor, MLPActor
from qhw_diffusion.guidance.lookup import LookupActor
from qhw_diffusion.guidance.quantum_actor import QuantumActor, compile_policy
from qhw_diffusion.runs import atomic_folder

CLASSICAL: dict[str, type[MLPActor] | type[AnnealingActor] | type[LookupActor]] = {
    "mlp": MLPActor,
    "annealing": AnnealingActor,
    "lookup": LookupActor,
}
# Format 1 held five settings of the circuit instead of the circuit, and no gradient method.
FORMAT = 2


def save_actor(actor: Actor, folder: str | Path) -> Path:
    """Write an actor: weights and configuration, for a quantum one also its layer: the circuit (circuit.qpy,
    circuit.qasm), the ISA circuit (isa.qpy, isa.qasm), observables, engine, gradient method, device.json (layout, cost,
    provenance) and the snapshot it was compiled with. See `execution.save_layer`.

    Raises:
        InvalidInputError: what `load_actor` could not make again: an actor or network of somebody's own, or an engine,
            gradient method or device that files cannot hold. Nothing is written then.
    """
    if type(actor) not in (QuantumActor, *CLASSICAL.values()):
        raise InvalidInputError(
            f"a {type(actor).__name__} is none of the package's actors, which load_actor makes again; use "
            "qhw_diffusion.runs.save_module(folder, actor, {}) for its weights"
        )
    with atomic_folder(folder) as aside:
        config = {"format": FORMAT, **actor.config(), "frozen": frozen_parameters(actor)}
        if isinstance(actor, QuantumActor):
            config |= {"layer": write_layer(actor.layer, aside), "circuit": _circuit_settings(actor.circuit)}
        save_module(aside, actor, config)
        _check_whole(actor, aside)
    return Path(folder)


def load_actor(
    folder: str | Path, *, device: str | Path | Device | None = None, engine: str | Engine | None = None
) -> Actor:
    """Read an actor; a quantum one may be put, weights unchanged, on another device (compiled anew) or engine.

    device: name, path of a snapshot or Device; None: the saved snapshot. engine: an Engine, or a text such as "ideal",
    "noisy+readout" or "shots:4096" (`execution.engine_of`); None: as saved. The gradient method stays, as with
    `QuantumActor.on`.
    Raises DamagedFileError when the folder does not hold a whole actor, InvalidInputError for a device or engine with a
    classical actor.
    """
    folder = Path(folder)
    state, config = load_module_state(folder)
    try:
        frozen = config.pop("frozen", None)
        actor = _build(folder, config, device, engine)
        put_state(actor, state, frozen)
    except QhwError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedFileError(f"{folder} does not hold a whole actor ({error!r})") from error
    actor.eval()
    return actor


def _build(
    folder: Path, config: dict[str, Any], device: str | Path | Device | None, engine: str | Engine | None
) -> Actor:
    kind, version = config.pop("kind"), config.pop("format", 1)
    check_format(folder, version, 1, FORMAT)
    if kind in CLASSICAL:
        if device is not None or engine is not None:
            raise InvalidInputError(f"{folder} holds a classical actor ({kind}): it runs on no device and no engine")
        return CLASSICAL[kind](**config)
    if kind != QuantumActor.kind:
        raise DamagedFileError(f"{folder} holds an actor of unknown kind {kind!r}")
    trained_on = config.pop("engine")
    config.pop("n_features")
    if version == 1:
        layer, circuit = _first_format(folder, config, device, trained_on if engine is None else engine)
        return QuantumActor(layer, circuit, **config)
    layer = read_layer(folder, config.pop("layer"), device=device, engine=engine)
    c = layer.compiled
    circuit = PolicyCircuit(c.logical, c.inputs, c.weights, c.logical_observables, **config.pop("circuit"))
    return QuantumActor(layer, circuit, **config)


def _first_format(
    folder: Path, config: dict[str, Any], device: str | Path | Device | None, engine: str | Engine
) -> tuple[QuantumLayer, PolicyCircuit]:
    """Layer and circuit of a folder of format 1, the circuit compiled anew; takes what it uses from `config`."""
    circuit = policy_circuit(**config.pop("circuit"))
    if load_circuit(folder / "circuit.qpy") != circuit.circuit:
        raise DamagedFileError(
            f"{folder / 'circuit.qpy'} is not the circuit that config.json describes; format version 1 held no others "
            "than those of policy_circuit"
        )
    try:
        engine = engine_of(engine)
    except UnknownNameError as error:
        raise UnknownNameError(f"{folder} was saved on an engine that no text makes: {error}; give engine=…") from error
    if not isinstance(device, Device):
        device = Device.load(folder / SNAPSHOT if device is None else device)
    seed, level = config.pop("transpile_seed"), config.pop("optimization_level")
    scheduled = config.pop("scheduled", False) and not device.is_ideal
    config.pop("device")
    compiled = compile_policy(circuit, device, seed=seed, optimization_level=level, scheduled=scheduled)
    return QuantumLayer(compiled, engine), circuit


def _check_whole(actor: Actor, folder: Path) -> None:
    """Raise InvalidInputError unless what was written makes the same modules again."""
    try:
        again: Actor | None = load_actor(folder)
    except DamagedFileError:  # weights that do not fit
        again = None
    if again is None or repr(again) != repr(actor):
        raise InvalidInputError(
            f"this {type(actor).__name__} has parts that its settings do not describe (another network as its head?) "
            "and would come back different; use qhw_diffusion.runs.save_module(folder, actor, {}) for its weights"
        )


def _circuit_settings(circuit: PolicyCircuit) -> dict[str, Any]:
    names = ("n_qubits", "depth", "n_features", "entanglement", "reuploading")
    return {name: getattr(circuit, name) for name in names}
