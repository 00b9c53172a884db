"""One training and the evaluation of its result: `qhw train guidance` and `qhw evaluate guidance`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import one_thread
from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion.pipeline import PROMPTS_FILE
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import check_engine_text
from qhw_diffusion.experiment import p_text
from qhw_diffusion.experiment.statistics import mean_interval, paired_test
from qhw_diffusion.guidance import (
    FreeSchedule,
    GuidanceConfig,
    GuidedEpisode,
    PathwiseConfig,
    PPOConfig,
    QuantumPolicy,
    Reward,
    TrainedPolicy,
    check_training,
    load_policy,
    rollout,
    sweep_constants,
    train_guidance,
    train_pathwise,
)
from qhw_diffusion.guidance.config import BUILT_IN_SCORER, GuidanceTraining, ModelConfig, today
from qhw_diffusion.guidance.evaluation import (
    EVALUATION_SEED,
    Models,
    NoImages,
    draw_initial_noise,
    load_models,
    sample_and_measure,
)
from qhw_diffusion.guidance.training import EVALUATIONS, KIND, MODELS_FILE, configurations_of
from qhw_diffusion.runs import (
    Place,
    RunFolder,
    atomic_write_json,
    atomic_write_text,
    check_writable,
    evaluation_metrics,
    progress,
    read_json,
)

SCHEDULE_ITERATIONS = 30
"""Updates of the free schedule that an evaluation trains to compare with."""


def train_policy(training: GuidanceTraining, place: Place) -> TrainedPolicy:
    """Train a guidance policy: a sweep where the training asks for one, then PPO or pathwise; prints what is found.

    Args:
        training: everything that decides it.
        place: run folder to write.

    Raises:
        KeyboardInterrupt: after Ctrl-C, with a checkpoint.
    """
    one_thread()
    # a mistyped device, or whatever else does not fit, is told now, not after the sweep
    device = Device.load(training.policy.device) if training.policy.uses_circuit else None
    models = load_models(training.models, evaluates=False)
    if isinstance(models.train, NoImages) and (training.reward.distribution or training.sweep_images):
        _ = models.train.images  # refuses
    if training.guidance.scorer == BUILT_IN_SCORER:
        models.scorer(BUILT_IN_SCORER)  # a pipeline has none
    checked: dict[str, Any] = {
        "backbone": models.backbone,
        "scorer": models.reward if training.guidance.scorer == BUILT_IN_SCORER else None,
        "real": models.train,
        "device": device,
    }
    method = training.method_config
    check_training(training.guidance, method, training.reward, training.policy, **checked)
    if place.resume:
        place.goes_on(RunFolder.open(place.out, kind=KIND))
    guidance = _swept(training, models) if training.sweep_images else training.guidance

    def remember(update: int, metrics: dict[str, float]) -> None:
        # where the models came from: what --resume and `qhw evaluate` need besides the run's own settings
        if not (place.out / MODELS_FILE).exists():
            atomic_write_json(place.out / MODELS_FILE, training.models.to_dict())
            if training.models.pipeline is not None:
                atomic_write_text(place.out / PROMPTS_FILE, "\n".join(models.backbone.prompts) + "\n")

    trained = train_guidance(
        guidance,
        method,
        training.reward,
        training.policy,
        path=place.out,
        command=place.command,
        resume=place.resume,
        overwrite=place.overwrite,
        on_update=remember,
        **checked,
    )
    if len(trained.history) < method.num_iterations:
        raise KeyboardInterrupt
    for finding in trained.findings:
        print(f"· {finding.sentence}")
    print(f"saved in {place.out}; evaluate it with: qhw evaluate guidance {place.out}")
    return trained


def _swept(training: GuidanceTraining, models: Models) -> GuidanceConfig:
    guidance = training.guidance
    with progress(desc="sweep", unit="constant") as bar:
        sweep = sweep_constants(
            models.backbone,
            models.reward,
            models.train,
            n_steps=guidance.n_steps,
            spacing=guidance.spacing,
            n_images=training.sweep_images,
            by_class=training.reward.distribution_by_class,
            kernel=training.reward.distribution_kernel,
            features=training.reward.distribution_features,
            on_scale=lambda row: bar.update(1),
        )
    around = GuidanceConfig.around(sweep.g0, guidance.action_limit, guidance.base_schedule)
    print(
        f"sweep: best constant g0 = {sweep.g0:g} at {guidance.n_steps} steps, "
        f"range {around['g_min']:g} to {around['g_max']:g}"
    )
    return guidance.replace(**around)


def saved_training(place: Place) -> GuidanceTraining | None:
    """The training that goes on in a folder; None where a new one begins.

    Raises:
        RunFolderError: a new one cannot begin there, or none can go on.
        DamagedFileError: its config.json does not describe a training.
    """
    saved = place.saved(KIND)
    if saved is None:
        return None
    guidance, reward, ppo, policy, pathwise = configurations_of(today(saved, "run"), place.out / "config.json")
    return GuidanceTraining(
        models=models_of(place.out),
        guidance=guidance,
        reward=reward,
        method="ppo" if pathwise is None else "pathwise",
        ppo=ppo if pathwise is None else PPOConfig(),
        pathwise=pathwise or PathwiseConfig(),
        policy=policy,
        sweep_images=0,  # it had its sweep
    )


def evaluate_run(
    folder: str | Path,
    *,
    device: str | None = None,
    engine: str | None = None,
    evaluation_classifier: str | None = None,
    data_root: str | None = None,
    seeds: int = 5,
    images: int = 500,
    schedule_iterations: int | None = None,
) -> str:
    """Evaluate a trained policy against the constant of its base scale and a free schedule, on the same initial noise.

    Returns a text. The free schedule is trained pathwise on the run's own reward, once: RUN/evaluations/ keeps it.
    schedule_iterations: updates of that training; 0: no free schedule; None: `SCHEDULE_ITERATIONS`, and none for a
    pipeline, whose gradients take long.

    device, engine: where the policy runs, if not where it was trained; then the trained setting is evaluated as well.
    The engine may be mitigated, "noisy+readout".
    The numbers go into RUN/evaluations/. Raises InvalidInputError for a classical policy with a device or an engine.
    """
    if seeds < 1 or images < 20:
        raise InvalidInputError(f"at least 1 seed and 20 images are needed, not {seeds} and {images}")
    if schedule_iterations is not None and schedule_iterations < 0:
        raise InvalidInputError(f"schedule_iterations must not be negative, got {schedule_iterations}")
    if engine is not None:
        check_engine_text(engine)  # a mistyped engine is told before anything is loaded
    trained = load_policy(folder)
    elsewhere = device is not None or engine is not None
    if elsewhere and not isinstance(trained.policy, QuantumPolicy):
        raise InvalidInputError(
            f"the policy in {folder} is classical ({trained.policy.kind}); it runs on no device or engine"
        )
    moved = None
    if elsewhere:
        assert isinstance(trained.policy, QuantumPolicy)
        # before the free schedule is trained: an engine that does not take the circuit is told now
        moved = trained.policy.on(Device.load(device) if device is not None else None, engine)
    changes = {
        name: value
        for name, value in (("evaluation_classifier", evaluation_classifier), ("data_root", data_root))
        if value is not None
    }
    models = load_models(models_of(Path(folder)).replace(**changes))
    if models.config.pipeline is not None and models.config.evaluation_classifier == trained.config.scorer:
        raise InvalidInputError(f"the training looked through {trained.config.scorer}: name another evaluation scorer")
    home = f"as trained{_where(trained)}"
    players: dict[str, Any] = {trained.config.base_name: None}
    note = ""
    if schedule_iterations is None:
        schedule_iterations = SCHEDULE_ITERATIONS if models.config.pipeline is None else 0
    if schedule_iterations:
        try:
            players["free schedule (pathwise)"] = free_schedule(Path(folder), trained, models, schedule_iterations)
        except InvalidInputError as error:
            note = f"no free schedule beside it: {error}"
    players[home] = trained.policy
    if moved is not None:
        players[f"on {moved.layer.compiled.device.name}, {moved.layer.engine.label}"] = moved
    file = Path(folder) / EVALUATIONS / f"{device or 'home'}-{engine or 'home'}.json".replace("/", "_")
    check_writable(file)
    values: dict[str, dict[str, list[float]]] = {name: {} for name in players}
    with progress(total=seeds * len(players), desc="evaluation", unit="run") as bar:
        for seed in range(seeds):
            labels, noise = draw_initial_noise(models.backbone, models.heldout, images, EVALUATION_SEED + seed)
            base = rollout(models.backbone, trained.config, labels, noise, None).images
            for name, player in players.items():
                sampled = sample_and_measure(
                    models, trained.config, player, labels, noise, reward=trained.reward, reference=base
                )
                assert sampled.judged is not None
                returns = {name: value for name, value in sampled.reward_side.items() if name.startswith("return")}
                for key, value in {**sampled.judged, **returns}.items():
                    values[name].setdefault(key, []).append(value)
                bar.update(1)
    sampler = {"n_steps": trained.config.n_steps, "spacing": trained.config.spacing}
    atomic_write_json(file, {"seeds": seeds, "images": images, **sampler, "values": values})
    with RunFolder.open(folder, kind=KIND) as run:
        run.tell(evaluation_metrics(values))
    text = _evaluation_text(values, trained.config.n_steps, seeds, images, file)
    return f"{text}\n{note}" if note else text


def free_schedule(folder: Path, trained: TrainedPolicy, models: Models, iterations: int) -> Tensor:
    """The free schedule [T] of a run's reward, trained pathwise from the base scale on and kept in its folder.

    Raises:
        InvalidInputError: the reward has a term without gradient, or one that was passed as an object.
    """
    file = folder / "evaluations" / "free-schedule.json"
    if file.exists() and (kept := read_json(file))["iterations"] == iterations:
        return torch.tensor(kept["g"])
    reward = Reward.from_config(trained.reward, models.scorer(trained.config.scorer), models.train)
    n_steps = GuidedEpisode(models.backbone, trained.config, None).n_steps
    free = FreeSchedule(n_steps, trained.config.base_scales(n_steps))
    images = max(PathwiseConfig().num_images, reward.smallest_batch(models.backbone.n_classes))
    settings = PathwiseConfig(num_iterations=iterations, num_images=images, learning_rate_schedule=0.03)
    train_pathwise(models.backbone, reward, trained.config, free, settings)
    atomic_write_json(file, {"iterations": iterations, "g": free.g.tolist()})
    return free.g.detach()


def models_of(folder: Path) -> ModelConfig:
    """Data set, backbone and classifiers of a run; the shipped ones of its data set for a run made from Python.

    The table of prompts of a pipeline is the run's own copy.
    """
    try:
        found = ModelConfig.from_dict(read_json(folder / MODELS_FILE))
        own = folder / PROMPTS_FILE
        return found.replace(prompts=str(own)) if found.pipeline is not None and own.exists() else found
    except FileNotFoundError:
        # a run made from Python: its data set is known, its models are the shipped ones unless named
        run = RunFolder.open(folder, kind="guidance")
        return ModelConfig(data=run.config["guidance"]["dataset"])


def _where(trained: TrainedPolicy) -> str:
    if not isinstance(trained.policy, QuantumPolicy):
        kind, asked = trained.policy.kind, trained.policy_config
        return f" ({kind}, distilled from {asked.kind})" if asked.uses_circuit else f" ({asked.kind})"
    layer = trained.policy.layer
    return f" ({layer.compiled.device.name}, {layer.engine.label})"


def _evaluation_text(
    values: dict[str, dict[str, list[float]]], n_steps: int, seeds: int, images: int, file: Path
) -> str:
    names = list(values)
    judged, where = ["probability"], "probability of the prompts by the evaluation scorer"
    if "fd" in values[names[0]]:
        judged = [key for key in ("energy", "fd") if key in values[names[0]]]
        where = (
            "energy distance within each class and FD in the evaluation classifier's features, against held-out images"
        )
    lines = [f"{n_steps} steps, {seeds} seeds, {images} images each; {where}"]
    shown = [name for name in ("accuracy", "return") if name in values[names[0]]]
    titles = {"energy": "energy", "fd": "FD", "probability": "probability", "accuracy": "accuracy", "return": "reward"}
    heads = [f"{titles[key] + ' [95 %]':>22}" for key in judged] + [f"{titles[name]:>9}" for name in shown]
    lines.append(f"{'policy':<36} {' '.join(heads)}")
    for name, metrics in values.items():
        cells = [f"{mean_interval(metrics[key]).format():>22}" for key in judged]
        means = {one: mean_interval(metrics[one]).mean for one in shown}
        cells += [f"{mean:>9.1%}" if one == "accuracy" else f"{mean:>9.3f}" for one, mean in means.items()]
        lines.append(f"{name:<36} {' '.join(cells)}")
    if seeds >= 2:
        for name in names[1:]:
            told = []
            for key in judged:
                test = paired_test(values[name][key], values[names[0]][key])
                d = test.difference
                told.append(f"{titles[key]} {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}], {p_text(test.t_p)}")
            lines.append(f"{name} minus {names[0]}: {'; '.join(told)}")
        for name in (name for name in names if name.startswith("on ")):
            home = names[names.index(name) - 1]
            d = paired_test(values[name][judged[-1]], values[home][judged[-1]]).difference
            lines.append(f"{name} minus {home}: {titles[judged[-1]]} {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]")
    return "\n".join([*lines, f"saved: {file}"])
