"""Policies on disk and on the Hugging Face Hub.

model.safetensors  config.json     weights, and what the policy is built from again; with the settings of its
                                   training, so that the folder is enough to use it
circuit.qpy  isa.qpy  …            of a quantum policy its layer: circuit, device, engine
README.md                          the model card, where the folder is made to be shared (`TrainedPolicy`)
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qhw_diffusion.checkpoints import check_format, frozen_parameters, load_module_state, put_state, save_module
from qhw_diffusion.circuits import PolicyCircuit, load_circuit, policy_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import (
    DamagedFileError,
    InvalidInputError,
    MissingDataError,
    QhwError,
    UnknownNameError,
    reason_of,
)
from qhw_diffusion.execution import Engine, QuantumLayer, engine_of
from qhw_diffusion.execution.layer import read_layer, write_layer
from qhw_diffusion.execution.saving import SNAPSHOT
from qhw_diffusion.guidance.distill import LookupPolicy
from qhw_diffusion.guidance.policies import AnnealingPolicy, MLPPolicy, Policy, QuantumPolicy, compile_policy
from qhw_diffusion.runs import atomic_folder

CLASSICAL: dict[str, type[MLPPolicy] | type[AnnealingPolicy] | type[LookupPolicy]] = {
    "mlp": MLPPolicy,
    "annealing": AnnealingPolicy,
    "lookup": LookupPolicy,
}
# Format 1 held five settings of the circuit instead of the circuit, and no gradient method; 2 no settings of the
# training.
FORMAT = 3


def save_policy_model(policy: Policy, folder: str | Path, settings: Mapping[str, Any] | None = None) -> Path:
    """Write a policy into a folder that `load_policy_model` reads.

    Weights and configuration; of a quantum policy also its layer: the circuit (circuit.qpy, circuit.qasm), the ISA
    circuit (isa.qpy, isa.qasm), observables, engine, gradient method, device.json (layout, cost, provenance) and the
    snapshot it was compiled with. See `execution.save_layer`.

    Args:
        policy: one of the package's policies.
        folder: replaced as a whole if it exists.
        settings: what was trained how, of JSON types; "guidance" is the `GuidanceConfig` that states and actions refer
            to. `saved_settings` reads it.

    Returns:
        The folder.

    Raises:
        InvalidInputError: what `load_policy_model` could not make again: a policy or network of somebody's own, or an
            engine, gradient method or device that files cannot hold. Nothing is written then.
    """
    if type(policy) not in (QuantumPolicy, *CLASSICAL.values()):
        raise InvalidInputError(
            f"a {type(policy).__name__} is none of the package's policies, which load_policy_model makes again; use "
            "qhw_diffusion.runs.save_module(folder, policy, {}) for its weights"
        )
    with atomic_folder(folder) as aside:
        config = {"format": FORMAT, **policy.config(), "frozen": frozen_parameters(policy)}
        if settings is not None:
            config["settings"] = dict(settings)
        if isinstance(policy, QuantumPolicy):
            config |= {"layer": write_layer(policy.layer, aside), "circuit": _circuit_settings(policy.circuit)}
        save_module(aside, policy, config)
        _check_whole(policy, aside)
    return Path(folder)


def load_policy_model(
    folder: str | Path, *, device: str | Path | Device | None = None, engine: str | Engine | None = None
) -> Policy:
    """Read a policy; a quantum one may be put, weights unchanged, on another device (compiled anew) or engine.

    Args:
        folder: what `save_policy_model` wrote (``model/`` in a run folder).
        device: name, path of a snapshot or Device; None: the saved snapshot.
        engine: an Engine, or a text such as "ideal", "noisy+readout" or "shots:4096" (`execution.engine_of`); None: as
            saved. The gradient method stays, as with `QuantumPolicy.on`.

    Returns:
        The policy, in evaluation mode.

    Raises:
        DamagedFileError: the folder does not hold a whole policy.
        InvalidInputError: a device or engine with a classical policy.
    """
    folder = Path(folder)
    state, config = load_module_state(folder)
    config.pop("settings", None)
    try:
        frozen = config.pop("frozen", None)
        policy = _build(folder, config, device, engine)
        put_state(policy, state, frozen)
    except QhwError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedFileError(f"{folder} does not hold a whole policy ({reason_of(error)})") from error
    policy.eval()
    return policy


def saved_settings(folder: str | Path) -> dict[str, Any]:
    """The settings that were saved with a policy (`save_policy_model`).

    Raises:
        DamagedFileError: the folder holds no policy, or one without settings.
    """
    _, config = load_module_state(folder)
    settings = config.get("settings")
    if not isinstance(settings, dict) or "guidance" not in settings:
        raise DamagedFileError(
            f"{folder} holds a policy without the settings of its training (earlier versions did not save them there): "
            "load the run folder instead, guidance.load_policy(run), and save that: .save_pretrained(folder)"
        )
    return settings


def fetch(name: str | Path, **where: Any) -> Path:
    """The folder of a saved policy or guider: `name` itself, or downloaded from the Hub into its cache.

    Args:
        name: a folder; a text may also be a name on the Hub, ``owner/name``, unless there is a folder ``owner`` here.
        where: revision, cache_dir, token, force_download, local_files_only, as `huggingface_hub.snapshot_download`.

    Raises:
        MissingDataError: neither a folder nor found on the Hub.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if isinstance(name, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or folder.parent.is_dir():
        raise MissingDataError(f"{name}: no such folder, and no name on the Hugging Face Hub (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(str(snapshot_download(str(name), **where)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingDataError(f"{name}: no such folder, and the Hugging Face Hub gives none: {reason}") from error


def push(
    write: Callable[[Path], object],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a guidance policy",
    create_pr: bool = False,
) -> str:
    """Write a folder and upload it to the Hub; the repository is made where it is not there.

    Args:
        write: fills the folder it is given.
        repo_id: ``owner/name``.
        private: whether a new repository is private; None: the account's default.
        token: access token; None: that of ``hf auth login``.
        revision: branch; None: main.
        commit_message: of the upload.
        create_pr: open a pull request instead of pushing.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as aside:
        write(Path(aside))  # first: what cannot be saved makes no repository
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        done = api.upload_folder(
            repo_id=repo,
            folder_path=aside,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )
    return str(done)


def _build(
    folder: Path, config: dict[str, Any], device: str | Path | Device | None, engine: str | Engine | None
) -> Policy:
    kind, version = config.pop("kind"), config.pop("format", 1)
    check_format(folder, version, 1, 2, FORMAT)
    if kind in CLASSICAL:
        if device is not None or engine is not None:
            raise InvalidInputError(f"{folder} holds a classical policy ({kind}): it runs on no device and no engine")
        return CLASSICAL[kind](**config)
    if kind != QuantumPolicy.kind:
        raise DamagedFileError(f"{folder} holds a policy of unknown kind {kind!r}")
    trained_on = config.pop("engine")
    config.pop("n_features")
    if version == 1:
        layer, circuit = _first_format(folder, config, device, trained_on if engine is None else engine)
        return QuantumPolicy(layer, circuit, **config)
    layer = read_layer(folder, config.pop("layer"), device=device, engine=engine)
    c = layer.compiled
    observables = c.logical_observables if c.adaptive is None else c.adaptive
    circuit = PolicyCircuit(c.logical, c.inputs, c.weights, observables, **config.pop("circuit"))
    return QuantumPolicy(layer, circuit, **config)


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


def _check_whole(policy: Policy, folder: Path) -> None:
    """Raise InvalidInputError unless what was written makes the same modules again."""
    try:
        again: Policy | None = load_policy_model(folder)
    except DamagedFileError:  # weights that do not fit
        again = None
    if again is None or repr(again) != repr(policy):
        raise InvalidInputError(
            f"this {type(policy).__name__} has parts that its settings do not describe (another network as its head?) "
            "and would come back different; use qhw_diffusion.runs.save_module(folder, policy, {}) for its weights"
        )


def _circuit_settings(circuit: PolicyCircuit) -> dict[str, Any]:
    names = ("n_qubits", "depth", "n_features", "entanglement", "reuploading", "ansatz")
    return {name: getattr(circuit, name) for name in names}
