"""From settings to a trained policy: device → circuit → layer → policy → PPO or pathwise training, in a run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from qhw_diffusion.circuits import AdaptiveObservables, PolicyCircuit, policy_ansatz, save_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import Backbone, Denoiser, ImageDataset, load_dataset, pooled_width
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, UnknownNameError, reason_of
from qhw_diffusion.execution import Engine, QuantumLayer
from qhw_diffusion.extensions import extension_text
from qhw_diffusion.guidance.card import save_with_card
from qhw_diffusion.guidance.config import (
    BUILT_IN_SCORER,
    FIXED,
    OBJECT,
    GuidanceConfig,
    PathwiseConfig,
    PolicyConfig,
    PPOConfig,
    RewardConfig,
    today,
)
from qhw_diffusion.guidance.diagnostics import Finding, diagnose
from qhw_diffusion.guidance.environment import GuidanceEnv, check_num_envs
from qhw_diffusion.guidance.episode import GuidedEpisode, calibrate_state, draw_episode
from qhw_diffusion.guidance.pathwise import check_pathwise, train_pathwise
from qhw_diffusion.guidance.policies import (
    AnnealingPolicy,
    Critic,
    MLPPolicy,
    Policy,
    QuantumPolicy,
    compile_policy,
    matched_mlp,
    mlp_parameters,
)
from qhw_diffusion.guidance.ppo import History, train_ppo
from qhw_diffusion.guidance.rewards import Distribution, Reward, as_term
from qhw_diffusion.guidance.rollout import rollout
from qhw_diffusion.guidance.saving import fetch, load_policy_model, push, save_policy_model, saved_settings
from qhw_diffusion.guidance.scorers import (
    Scorer,
    as_scorer,
    check_scorer,
    check_scorer_fit,
    scorer_for,
    scorer_name,
    scorer_of,
    scorer_text,
)
from qhw_diffusion.runs import RunFolder, atomic_write_bytes, atomic_write_json, read_json
from qhw_diffusion.runs.folder import MANIFEST

KIND = "guidance"
MODELS_FILE = "models.json"
EVALUATIONS = "evaluations"
_PARTS: dict[str, Any] = {
    "guidance": GuidanceConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "pathwise": PathwiseConfig,
    "policy": PolicyConfig,
}
_CALIBRATION_SEED, _CALIBRATION_IMAGES = 20_240_901, 200


@dataclass(frozen=True)
class TrainedPolicy:
    """A trained policy with everything needed to use it.

    Attributes:
        policy: the policy.
        config: calibrated configuration that its states and actions refer to.
        reward: calibrated reward.
        ppo: settings of a training by PPO; of one trained pathwise the defaults, for training it further by PPO.
        policy_config: which policy it is.
        history: metrics of every iteration.
        findings: the diagnostics.
        record: what its run folder knows besides, for the model card: the manifest's command, date, commit and
            versions, the models, and the evaluations (`qhw evaluate guidance`).
        pathwise: settings of a pathwise training; None of one by PPO.
    """

    policy: Policy
    config: GuidanceConfig
    reward: RewardConfig
    ppo: PPOConfig
    policy_config: PolicyConfig
    history: History
    findings: tuple[Finding, ...]
    record: Mapping[str, Any] = field(default_factory=dict)
    pathwise: PathwiseConfig | None = None

    @property
    def num_iterations(self) -> int:
        """Iterations the training was to have."""
        return (self.pathwise or self.ppo).num_iterations

    def settings(self) -> dict[str, Any]:
        """What is saved with the policy: every setting, and the record."""
        method: dict[str, Any] = {"ppo": self.ppo} if self.pathwise is None else {"pathwise": self.pathwise}
        parts = {"guidance": self.config, "reward": self.reward, **method, "policy": self.policy_config}
        return {**{name: part.to_dict() for name, part in parts.items()}, "record": dict(self.record)}

    def save_pretrained(self, folder: str | Path, *, name: str | None = None, license: str = "apache-2.0") -> Path:
        """Write a folder to share: the policy with its settings, and a model card (README.md).

        Args:
            folder: new, or one whose files give way.
            name: what the card says to load: the name on the Hub, ``owner/name``; None: the folder's name.
            license: that of the weights, by its name on the Hub.

        Returns:
            The folder, for `from_pretrained`, here or uploaded. Metrics and checkpoint stay in the run folder.

        Raises:
            InvalidInputError: a policy that files cannot hold (`save_policy_model`).
        """
        return save_with_card(self.policy, folder, self.settings(), name=name, license=license)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | Path | Device | None = None,
        engine: str | Engine | None = None,
        **where: Any,
    ) -> TrainedPolicy:
        """The policy that `save_pretrained` wrote or `push_to_hub` uploaded, without the history of its training.

        A run folder is loaded too, as by `load_policy`.

        Args:
            name: folder, or name on the Hub, ``owner/name``.
            device: see `load_policy_model`.
            engine: see `load_policy_model`.
            where: revision, token, cache_dir, local_files_only, force_download, as `huggingface_hub.snapshot_download`.

        Raises:
            MissingDataError: neither a folder nor found on the Hub.
            DamagedFileError: it does not hold a whole policy with its settings.
        """
        folder = fetch(name, **where)
        if is_run(folder):
            return load_policy(folder, device=device, engine=engine)
        saved = saved_settings(folder)
        config, reward, ppo, policy_config, pathwise = configurations_of(saved, folder)
        policy = load_policy_model(folder, device=device, engine=engine)
        record = saved.get("record", {})
        return cls(policy, config, reward, ppo, policy_config, [], (), record, pathwise)

    def push_to_hub(self, repo_id: str, *, license: str = "apache-2.0", **how: Any) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub, into a repository that is made if need be.

        Args:
            repo_id: ``owner/name``.
            license: that of the weights.
            how: private, token, revision, commit_message, create_pr (`saving.push`).

        Returns:
            The address of the commit.
        """
        return push(lambda folder: self.save_pretrained(folder, name=repo_id, license=license), repo_id, **how)


def policy_circuit_of(config: PolicyConfig, n_features: int, ansatz: Callable[..., Any] | None = None) -> PolicyCircuit:
    """The circuit that these settings describe.

    Args:
        config: ansatz, qubits, layers, entanglement, re-uploading.
        n_features: its inputs: entries of the state, and those of an embedding.
        ansatz: a function that takes the place of the one `config.ansatz` names.

    Raises:
        InvalidInputError, UnknownNameError: see `circuits.policy_ansatz`.
    """
    if ansatz is None and config.ansatz.startswith(OBJECT):
        raise InvalidInputError(
            f"the ansatz {config.ansatz.removeprefix(OBJECT)!r} was passed as an object in Python; pass it again: "
            "ansatz=…"
        )
    circuit = policy_ansatz(
        config.ansatz if ansatz is None else ansatz,
        n_features=n_features,
        n_qubits=config.n_qubits,
        depth=config.depth,
        entanglement="none" if config.kind == "unentangled" else config.entanglement,
        reuploading=config.reuploading,
    )
    if config.observables == FIXED:
        return circuit
    return replace(circuit, observables=AdaptiveObservables.of(config.observables, circuit.circuit.num_qubits))


def quantum_parameters(config: PolicyConfig, n_features: int, ansatz: Callable[..., Any] | None = None) -> int:
    """Trainable parameters of circuit and head of the quantum policy these settings describe, read off its circuit.

    n_features: inputs of the circuit. An embedding is not counted.
    """
    circuit = policy_circuit_of(config, n_features, ansatz)
    outputs = len(circuit.observables)
    quantum = len(circuit.weights) + len(circuit.inputs) + (outputs if config.output_scaling else 0)
    if isinstance(circuit.observables, AdaptiveObservables):
        quantum += circuit.observables.n_coefficients
    return quantum + mlp_parameters([outputs, *_hidden(config), len(config.discrete_actions) or 2])


def _hidden(config: PolicyConfig) -> tuple[int, ...]:
    """Hidden widths of a quantum policy's head."""
    return () if config.linear_head else QuantumPolicy.HIDDEN


def build_policy(
    config: PolicyConfig,
    *,
    n_features: int = 6,
    n_pooled: int = 0,
    seed: int = 0,
    device: Device | None = None,
    ansatz: Callable[..., Any] | None = None,
) -> Policy:
    """The untrained policy.

    Args:
        config: which policy, and for a quantum one circuit, device and engine.
        n_features: length of the state (`GuidanceConfig.n_state`).
        n_pooled: how many numbers at its end are pooled features (`GuidanceConfig.n_pooled`), which the embedding of
            `config` takes in.
        seed: seed of every initial weight.
        device: device in place of `config.device`, when already loaded.
        ansatz: a function that takes the place of the one `config.ansatz` names.
    """
    common: dict[str, Any] = {"initial_std": config.initial_std, "gain": config.gain, "seed": seed}
    if config.discrete_actions:
        common["choices"] = config.discrete_actions
    inputs = n_features - n_pooled + config.embedding
    if config.embedding or n_pooled:
        common |= {"n_pooled": n_pooled, "embedding": config.embedding}
    if config.kind == "mlp":
        return MLPPolicy(() if config.linear_head else MLPPolicy.HIDDEN, n_features=n_features, **common)
    if config.kind == "annealing":
        return AnnealingPolicy(n_features=n_features, **common)
    if config.kind == "matched":
        matched = quantum_parameters(config, inputs, ansatz) + mlp_parameters([n_pooled, config.embedding])
        return matched_mlp(matched, n_features=n_features, **common)
    circuit = policy_circuit_of(config, inputs, ansatz)
    compiled = compile_policy(
        circuit,
        device if device is not None else Device.load(config.device),
        seed=config.transpile_seed,
        scheduled=config.scheduled,
        optimization_level=config.optimization_level,
    )
    return QuantumPolicy(
        QuantumLayer(compiled, config.engine, seed=seed),
        circuit,
        hidden=_hidden(config),
        output_scaling=config.output_scaling,
        freeze_circuit=config.kind == "frozen",
        freeze_head=config.kind == "frozen_head",
        **common,
    )


def _untrained(policy: PolicyConfig, guidance: GuidanceConfig, backbone: Denoiser, **how: Any) -> Policy:
    """`build_policy` for the states of a configuration, which need not be calibrated yet."""
    n_pooled = pooled_width(backbone) if guidance.pooled_features else 0
    return build_policy(policy, n_features=guidance.n_entries + n_pooled, n_pooled=n_pooled, **how)


def calibrate(
    guidance: GuidanceConfig, reward: RewardConfig, backbone: Denoiser, scorer: Scorer, real: ImageDataset
) -> tuple[GuidanceConfig, RewardConfig]:
    """Both configurations with their measured numbers filled in.

    Args:
        guidance: configuration whose state centre and width are measured where they are not known.
        reward: configuration whose witness offset and scale are measured where they are not known and needed.
        backbone: makes the images.
        scorer: what state and reward look through.
        real: the training split.

    Returns:
        The two configurations, calibrated.
    """
    guidance = calibrate_state(guidance, backbone, scorer)
    if reward.distribution and reward.distribution_scale is None:
        term = Distribution.from_config(reward, scorer, real, device=backbone.alphas_cumprod.device)
        term = measured_scale(term, backbone, guidance)
        reward = reward.replace(distribution_offset=term.offset, distribution_scale=term.scale)
    return guidance, reward


def measured_scale(term: Distribution, backbone: Denoiser, guidance: GuidanceConfig) -> Distribution:
    """A distribution term with its offset and scale measured on images of the base scale and of random actions.

    Args:
        term: the term.
        backbone: makes the images.
        guidance: sampler, base scale and range.
    """
    generator = torch.Generator().manual_seed(_CALIBRATION_SEED)
    device = backbone.alphas_cumprod.device
    # of every class two images at least, where the term compares within classes
    images = max(_CALIBRATION_IMAGES, term.smallest_batch(backbone.n_classes))
    labels, noise = draw_episode(backbone, images, generator, device)
    steps = GuidedEpisode(backbone, guidance, None).n_steps
    draws = torch.rand((steps, images), generator=generator).to(device)
    bases = guidance.base_scales(steps).to(draws)[:, None]
    random = guidance.scale(guidance.action_limit * (2.0 * draws - 1.0), bases)
    base_images, random_images = (
        rollout(backbone, guidance, labels, noise, policy).images for policy in (None, random)
    )
    return term.calibrated(base_images, random_images, labels)


def check_training(
    guidance: GuidanceConfig,
    method: PPOConfig | PathwiseConfig,
    reward: RewardConfig,
    policy: PolicyConfig,
    *,
    backbone: Denoiser,
    scorer: Any = None,
    real: ImageDataset,
    terms: Sequence[tuple[float, Any]] = (),
    ansatz: Callable[..., Any] | None = None,
    device: Device | None = None,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Raise what `train_guidance` would for settings that do not fit, before anything is sampled, trained or written.

    The arguments are those of `train_guidance`. Circuit, reward and environment are built; scorer and reward terms of
    a user's own are called on a few random images.
    """
    guidance, scorer = _scorer(guidance, scorer, backbone)
    own, reward = _with_objects(reward, terms)
    _check_parts(guidance, method, policy, backbone, scorer, real)
    model = _untrained(policy, guidance, backbone, seed=method.seed, device=device, ansatz=ansatz)
    reward_function = _checked_reward(reward, backbone, scorer, real, own, distance)
    _check_method(method, reward_function, guidance, backbone, model)
    if isinstance(method, PathwiseConfig):
        return
    n = model.n_features
    bare = guidance.replace(noise_pool=0, state_centre=(0.0,) * n, state_width=(1.0,) * n)  # nothing to be sampled
    GuidanceEnv(backbone, reward_function, bare, num_envs=method.num_envs)


def _scorer(guidance: GuidanceConfig, given: Any, backbone: Denoiser) -> tuple[GuidanceConfig, Scorer]:
    """The scorer, passed as an object or named by the configuration, and the configuration that records it."""
    if given is None:
        return guidance, scorer_for(scorer_of(guidance.scorer, guidance.dataset), backbone)
    scorer = as_scorer(given)
    text = extension_text(given) or scorer_text(scorer)
    if guidance.scorer not in (BUILT_IN_SCORER, text):
        raise InvalidInputError(
            f"the configuration names the scorer {guidance.scorer!r} and {scorer_name(scorer)!r} is passed as an "
            "object; give one of them"
        )
    return guidance.replace(scorer=text), scorer_for(scorer, backbone)


def _with_objects(reward: RewardConfig, terms: Sequence[tuple[float, Any]]) -> tuple[list[Any], RewardConfig]:
    """The terms without a name by which they are found again, and the configuration that names all terms."""
    nameless, named = [], []
    for weight, given in terms:
        term, text = as_term(given), extension_text(given)
        if text is None:
            nameless.append(term)
        named.append(f"{float(weight)!r}*{text or OBJECT + term.name}")
    return nameless, reward.replace(extra=(*reward.extra, *named)) if named else reward


def _checked_reward(
    reward: RewardConfig,
    backbone: Denoiser,
    scorer: Scorer,
    real: ImageDataset,
    objects: Sequence[Any],
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
) -> Reward:
    """The reward, after a call of the scorer and of the terms that are not built in."""
    device = backbone.alphas_cumprod.device
    check_scorer(
        scorer,
        backbone.image_shape,
        backbone.n_classes,
        device=device,
        needs_features=reward.distribution > 0 and "classifier" in reward.distribution_features.split("+"),
    )
    made = Reward.from_config(reward, scorer, real, objects=objects, distance=distance, device=device)
    made.check(backbone.image_shape, backbone.n_classes, device=device)
    return made


def _check_parts(
    guidance: GuidanceConfig,
    method: PPOConfig | PathwiseConfig,
    policy: PolicyConfig,
    backbone: Denoiser,
    scorer: Scorer,
    real: ImageDataset,
) -> None:
    if policy.kind == "annealing" and not guidance.extra_state:
        raise InvalidInputError("the annealing policy needs the seventh state entry: GuidanceConfig(extra_state=True)")
    if bool(policy.embedding) != guidance.pooled_features:
        raise InvalidInputError(
            f"the policy's embedding is {policy.embedding} and pooled_features is {guidance.pooled_features}: the one "
            "takes in the other, so give both or neither (an embedding of 2 with pooled_features, say)"
        )
    far = [value for value in policy.discrete_actions if abs(value) > guidance.action_limit]
    if far:
        raise InvalidInputError(
            f"discrete_actions {', '.join(f'{value:g}' for value in far)}: allowed is up to ± action_limit = "
            f"{guidance.action_limit:g}"
        )
    check_scorer_fit(backbone=backbone, reward_classifier=scorer, data_set=real)
    if isinstance(method, PPOConfig):
        method.check_minibatches(method.num_steps or guidance.n_steps)
    GuidedEpisode(backbone, guidance, scorer)  # refuses a sampler that does not start in noise


def _check_method(
    method: PPOConfig | PathwiseConfig, reward: Reward, guidance: GuidanceConfig, backbone: Denoiser, policy: Policy
) -> None:
    if isinstance(method, PathwiseConfig):
        check_pathwise(backbone, reward, guidance, policy, method)
    else:
        check_num_envs(method.num_envs, reward, guidance, backbone.n_classes)


def train_guidance(
    guidance: GuidanceConfig,
    method: PPOConfig | PathwiseConfig,
    reward: RewardConfig,
    policy: PolicyConfig,
    *,
    path: str | Path | None = None,
    command: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    backbone: Denoiser | None = None,
    scorer: Any = None,
    terms: Sequence[tuple[float, Any]] = (),
    ansatz: Callable[..., Any] | None = None,
    real: ImageDataset | None = None,
    device: Device | None = None,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    on_update: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainedPolicy:
    """Train one policy; with `path`, in a run folder that holds all that is needed to say what was run.

    Folder: config.json, manifest.json, metrics.jsonl, TensorBoard events, checkpoint.safetensors, model/ (the policy),
    findings.json (the diagnostics, also while it runs) and, for a quantum policy, circuit.qpy, circuit.qasm and
    device.json. Ctrl-C stops after the present update with a checkpoint; the model written is then the one reached. A
    run that is refused or cut short before its first checkpoint leaves no folder.

    Args:
        guidance: sampler, guidance range, state, and the scorer's name.
        method: training by PPO or pathwise, by the settings given; its seed seeds everything.
        reward: weights of the reward terms, and the names of own ones.
        policy: policy, circuit, device and engine.
        path: run folder; None: nothing is written.
        command: what was typed, for the manifest.
        resume: continue the run in `path` bit for bit (from the beginning where it has no checkpoint yet), with the
            settings stored there (those given must agree).
        overwrite: an earlier run in `path` gives way once the first checkpoint is written.
        backbone: model that samples; None: loaded by `guidance.dataset`.
        scorer: a scorer as an object (`scorers.as_scorer`), in place of the one that `guidance.scorer` names.
        terms: reward terms as objects with their weights (`rewards.as_term`), besides those that `reward` names; they
            are to be given again where the run is resumed, unless they are functions or classes that are found by
            name.
        ansatz: a function that builds the policy circuit (`circuits.policy_ansatz`), in place of the one that
            `policy.ansatz` names.
        real: training split; None: loaded by `guidance.dataset`.
        device: device the circuit is compiled for, in place of `policy.device`.
        distance: LPIPS network for that reward term, in place of `reward.lpips_weights`.
        on_update: called with (update, metrics) after each update.

    Returns:
        The trained policy with the configurations its states and actions refer to.

    Raises:
        InvalidInputError: settings, scorer or reward terms that do not fit, before anything is trained or written.
        RunFolderError: an impossible resume, or a folder that is in use.
    """
    backbone = backbone if backbone is not None else Backbone.load(guidance.dataset)
    guidance, scorer = _scorer(guidance, scorer, backbone)
    real = real if real is not None else load_dataset(guidance.dataset, split="train")
    own, reward = _with_objects(reward, terms)
    if ansatz is not None:
        name = getattr(ansatz, "__name__", type(ansatz).__name__)
        policy = policy.replace(ansatz=extension_text(ansatz) or f"{OBJECT}{name}")
    _check_parts(guidance, method, policy, backbone, scorer, real)
    if resume and path is None:
        raise InvalidInputError("resuming needs the path of the run folder")
    model = _untrained(policy, guidance, backbone, seed=method.seed, device=device, ansatz=ansatz)
    checked = _checked_reward(reward, backbone, scorer, real, own, distance)
    _check_method(method, checked, guidance, backbone, model)
    guidance, reward = calibrate(guidance, reward, backbone, scorer, real)
    settings = {
        "guidance": guidance.to_dict(),
        "reward": reward.to_dict(),
        "pathwise" if isinstance(method, PathwiseConfig) else "ppo": method.to_dict(),
        "policy": policy.to_dict(),
    }
    reward_function = Reward.from_config(
        reward, scorer, real, objects=own, distance=distance, device=backbone.alphas_cumprod.device
    )
    run = None
    if path is not None and resume:
        run = RunFolder.open(path, kind=KIND)
        _same_settings(with_later_settings(run.config), settings)
        if not run.has_checkpoint:
            run.truncate_metrics(0)
    elif path is not None:
        run = RunFolder.create(path, kind=KIND, config=settings, command=command, overwrite=overwrite)
    with run or contextlib.nullcontext():
        if run is not None and isinstance(model, QuantumPolicy):
            save_circuit(model.circuit.circuit, run.path, "circuit")
        trains_circuit = bool(model.parameter_groups()["circuit"])

        def watch(update: int, metrics: dict[str, float]) -> None:
            if run is not None and (update + 1) % method.checkpoint_every == 0:
                _write_findings(run, diagnose(_plain(run.metrics()), trains_circuit=trains_circuit))
            if on_update is not None:
                on_update(update, metrics)

        going_on = run is not None and run.has_checkpoint
        how: dict[str, Any] = {"run": run, "resume": going_on, "on_update": watch}
        if isinstance(method, PathwiseConfig):
            history = train_pathwise(backbone, reward_function, guidance, model, method, **how)
        else:
            env = GuidanceEnv(backbone, reward_function, guidance, num_envs=method.num_envs, seed=method.seed)
            history = train_ppo(env, model, Critic(guidance.n_state, seed=method.seed), method, **how)
        findings = tuple(diagnose(history, trains_circuit=trains_circuit))
        if run is not None:
            save_policy_model(model, run.path / "model", settings)
            if isinstance(model, QuantumPolicy):
                atomic_write_bytes(run.path / "device.json", (run.path / "model" / "device.json").read_bytes())
            _write_findings(run, findings)
    ppo, pathwise = _both(method)
    record = {} if run is None else _record(run)
    return TrainedPolicy(model, guidance, reward, ppo, policy, history, findings, record, pathwise)


def _both(method: PPOConfig | PathwiseConfig) -> tuple[PPOConfig, PathwiseConfig | None]:
    return (PPOConfig(seed=method.seed), method) if isinstance(method, PathwiseConfig) else (method, None)


def load_policy(
    path: str | Path, *, device: str | Path | Device | None = None, engine: str | Engine | None = None
) -> TrainedPolicy:
    """A trained policy from its run folder, a quantum one on another device or engine if asked.

    Args:
        path: run folder.
        device: see `load_policy_model`.
        engine: see `load_policy_model`.

    Raises:
        RunFolderError: the folder is missing or of another kind.
        DamagedFileError: it is damaged (DamagedRunError is both).
    """
    run = RunFolder.open(path, kind=KIND)
    config, reward, ppo, policy_config, pathwise = configurations_of(today(run.config, "run"), run.path / "config.json")
    with run.whole():
        model = load_policy_model(run.path / "model", device=device, engine=engine)
    history = _plain(run.metrics())
    findings = tuple(diagnose(history, trains_circuit=bool(model.parameter_groups()["circuit"])))
    return TrainedPolicy(model, config, reward, ppo, policy_config, history, findings, _record(run), pathwise)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder, and not that of a policy alone."""
    return (folder / MANIFEST).is_file()


def configurations_of(
    saved: Mapping[str, Any], where: Path
) -> tuple[GuidanceConfig, RewardConfig, PPOConfig, PolicyConfig, PathwiseConfig | None]:
    """The configurations of a saved training, in the order of `TrainedPolicy`, that of a pathwise one last.

    Raises:
        DamagedFileError: something is missing or does not fit; the message names the file `where` it is saved.
    """
    try:
        name = "pathwise" if "pathwise" in saved else "ppo"
        guidance, reward, method, policy = (
            _PARTS[part].from_dict(saved[part]) for part in ("guidance", "reward", name, "policy")
        )
    except (KeyError, TypeError, InvalidInputError, UnknownNameError) as error:
        raise DamagedFileError(f"{where} does not describe a guidance run ({reason_of(error)})") from error
    ppo, pathwise = _both(method)
    return guidance, reward, ppo, policy, pathwise


def _record(run: RunFolder) -> dict[str, Any]:
    names = ("command", "created", "commit", "qhw_diffusion", "packages")
    record: dict[str, Any] = {name: run.manifest[name] for name in names if run.manifest.get(name) is not None}
    if (run.path / MODELS_FILE).is_file():
        record["models"] = read_json(run.path / MODELS_FILE)
    files = sorted((run.path / EVALUATIONS).glob("*.json"))
    if files:
        record["evaluations"] = {file.stem: read_json(file) for file in files}
    return record


def with_later_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a saved run under today's names, with defaults for those that came after it was made."""
    return {
        name: _PARTS[name].from_dict(value).to_dict() if name in _PARTS else value
        for name, value in today(config, "run").items()
    }


def _plain(rows: list[dict[str, Any]]) -> History:
    return [{name: value for name, value in row.items() if name != "step"} for row in rows]


def _write_findings(run: RunFolder, findings: Iterable[Finding]) -> None:
    atomic_write_json(run.path / "findings.json", [finding.to_dict() for finding in findings])


def _same_settings(stored: dict[str, Any], given: dict[str, Any]) -> None:
    for part, values in given.items():
        for name, value in values.items():
            if part not in stored:
                raise InvalidInputError(
                    f"the run was started by {'PPO' if part == 'pathwise' else 'pathwise training'}; it goes on the "
                    "same way: leave out --method, or start another run"
                )
            before = stored[part].get(name)
            if before != value:
                raise InvalidInputError(
                    f"the run was started with {part}.{name} = {before!r}, now {value!r} is given; "
                    f"resume with the settings of the run's config.json"
                )
