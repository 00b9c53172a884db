"""One training and the evaluation of its result: `qhw train guidance` and `qhw evaluate guidance`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import check_engine_text
from qhw_diffusion.experiment import p_text
from qhw_diffusion.experiment.statistics import mean_interval, paired_test
from qhw_diffusion.guidance import (
    ActorConfig,
    GuidanceConfig,
    PPOConfig,
    QuantumActor,
    RewardConfig,
    TrainedController,
    check_training,
    load_controller,
    rollout,
    sweep_constants,
    train_guidance,
)
from qhw_diffusion.runs import RunFolder, atomic_write_json, check_place, check_writable, progress, read_json
from qhw_diffusion.studies.flags import given_flags
from qhw_diffusion.studies.measure import EVALUATION_SEED, sample_and_measure
from qhw_diffusion.studies.models import Models, draw_starts, load_models
from qhw_diffusion.studies.settings import ModelConfig

MODELS_FILE = "models.json"


def one_thread() -> None:
    """One torch thread: the fastest for small networks, and what reproducibility is promised for."""
    torch.set_num_threads(1)


def beside(run: Path, ending: str) -> Path:
    """The folder next to `run` with its name and this ending, also where `run` is given as ``.`` or ``..``.

    Raises:
        InvalidInputError: it has no name: the root.
    """
    named = Path(os.path.realpath(run)) if run.name in ("", "..") else run
    if not named.name:
        raise InvalidInputError(f"{named} is no run folder; give the folder that `qhw train guidance` wrote")
    return named.with_name(f"{named.name}{ending}")


def check_out(arguments: argparse.Namespace, kind: str) -> None:
    """Whether a new run of this kind may go to --out, or with --resume go on there; nothing is changed.

    Every command asks this before its work: what --out holds is told at once, and --overwrite deletes nothing until
    all settings have been checked and work begins (`RunFolder.create`).
    Raises InvalidInputError for --overwrite with --resume, RunFolderError as `check_place` and `RunFolder.open`.
    """
    if getattr(arguments, "resume", False):
        if arguments.overwrite:
            raise InvalidInputError("--overwrite and --resume contradict each other: give one of them")
        RunFolder.open(arguments.out, kind=kind)
    else:
        check_place(arguments.out, kind=kind, overwrite=arguments.overwrite)


def new_run(arguments: argparse.Namespace, *, kind: str, config: dict[str, Any]) -> RunFolder:
    """The run folder --out, made anew, or opened when --resume is given."""
    check_out(arguments, kind)
    if not getattr(arguments, "resume", False):
        command, overwrite = arguments.command_line, arguments.overwrite
        return RunFolder.create(arguments.out, kind=kind, config=config, command=command, overwrite=overwrite)
    run = RunFolder.open(arguments.out, kind=kind)
    run.require_settings(config)
    return run


def can_go_on(run: RunFolder) -> bool:
    """For --resume: whether there is a checkpoint. Without one (killed before the first) it starts from the beginning,
    which is told on stderr.
    """
    if not run.has_checkpoint:
        print(f"qhw: {run.path} has no checkpoint yet: starting from the beginning", file=sys.stderr)
        run.truncate_metrics(0)
    return run.has_checkpoint


@dataclasses.dataclass(frozen=True)
class SingleTraining:
    """`qhw train guidance`: settings from flags, a sweep where g0 is not given, one training."""

    models: ModelConfig
    guidance: GuidanceConfig
    reward: RewardConfig
    ppo: PPOConfig
    actor: ActorConfig
    out: Path
    resume: bool
    overwrite: bool
    sweep_images: int
    command: str

    def __post_init__(self) -> None:
        # told now, not after the sweep
        self.ppo.check_minibatches(self.ppo.rollout_steps or self.guidance.n_steps)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> SingleTraining:
        """Settings from the flags; with --resume from the folder, changed by flags (a change is refused later)."""
        check_out(arguments, "guidance")
        saved: dict[str, Any] = {}
        models = ModelConfig()
        if arguments.resume:
            run = RunFolder.open(arguments.out, kind="guidance")
            saved = run.config
            models = models_of(run.path)
        models = models.replace(**given_flags(arguments, ModelConfig))
        parts: dict[str, Any] = {}
        for name, part in (
            ("guidance", GuidanceConfig),
            ("reward", RewardConfig),
            ("ppo", PPOConfig),
            ("actor", ActorConfig),
        ):
            base = part.from_dict(saved[name]) if name in saved else part()
            parts[name] = base.replace(**given_flags(arguments, part))
        given = given_flags(arguments, GuidanceConfig)
        extra = parts["actor"].kind == "annealing" or parts["guidance"].extra_state
        parts["guidance"] = parts["guidance"].replace(dataset=models.data, extra_state=extra)
        # a scale given by hand needs no sweep; neither does a run that had its sweep
        images = 0 if arguments.resume or "g0" in given else arguments.sweep_images
        return cls(models, **parts, out=arguments.out, resume=arguments.resume, overwrite=arguments.overwrite,
                   sweep_images=images, command=arguments.command_line)  # fmt: skip

    def run(self) -> int:
        """Train; returns 0, or 130 when Ctrl-C stopped it with a checkpoint."""
        one_thread()
        # a mistyped device, or whatever else does not fit, is told now, not after the sweep
        device = Device.load(self.actor.device) if self.actor.uses_circuit else None
        models = load_models(self.models)
        checked: dict[str, Any] = {
            "backbone": models.backbone,
            "classifier": models.reward,
            "real": models.train,
            "device": device,
        }
        check_training(self.guidance, self.ppo, self.reward, self.actor, **checked)
        if self.resume:
            can_go_on(RunFolder.open(self.out, kind="guidance"))
        guidance = self._swept(models) if self.sweep_images else self.guidance

        def remember(update: int, metrics: dict[str, float]) -> None:
            # where the models came from: what --resume and `qhw evaluate` need besides the run's own settings
            if not (self.out / MODELS_FILE).exists():
                atomic_write_json(self.out / MODELS_FILE, self.models.to_dict())

        trained = train_guidance(
            guidance,
            self.ppo,
            self.reward,
            self.actor,
            path=self.out,
            command=self.command,
            resume=self.resume,
            overwrite=self.overwrite,
            on_update=remember,
            **checked,
        )
        if len(trained.history) < self.ppo.updates:
            raise KeyboardInterrupt
        for finding in trained.findings:
            print(f"· {finding.sentence}")
        print(f"saved in {self.out}; evaluate it with: qhw evaluate guidance {self.out}")
        return 0

    def _swept(self, models: Models) -> GuidanceConfig:
        with progress(desc="sweep", unit="constant") as bar:
            sweep = sweep_constants(
                models.backbone,
                models.reward,
                models.train,
                n_steps=self.guidance.n_steps,
                spacing=self.guidance.spacing,
                n_images=self.sweep_images,
                on_scale=lambda row: bar.update(1),
            )
        limit = self.guidance.action_limit
        low, high = max(0.0, sweep.g0 - limit), sweep.g0 + limit
        print(f"sweep: best constant g0 = {sweep.g0:g} at {self.guidance.n_steps} steps, range {low:g} to {high:g}")
        return self.guidance.replace(g0=sweep.g0, g_min=low, g_max=high)


def evaluate_run(
    folder: str | Path,
    *,
    device: str | None = None,
    engine: str | None = None,
    judge: str | None = None,
    data_root: str | None = None,
    seeds: int = 5,
    images: int = 500,
) -> str:
    """Evaluate a trained controller against the constant of its base scale, on the same starts; returns a text.

    device, engine: where the policy runs, if not where it was trained; then the trained setting is evaluated as well.
    The engine may be mitigated, "noisy+readout".
    The numbers go into RUN/evaluations/. Raises InvalidInputError for a classical policy with a device or an engine.
    """
    if seeds < 1 or images < 20:
        raise InvalidInputError(f"at least 1 seed and 20 images are needed, not {seeds} and {images}")
    if engine is not None:
        check_engine_text(engine)  # a mistyped engine is told before anything is loaded
    trained = load_controller(folder)
    elsewhere = device is not None or engine is not None
    if elsewhere and not isinstance(trained.actor, QuantumActor):
        raise InvalidInputError(
            f"the policy in {folder} is classical ({trained.actor.kind}); it runs on no device or engine"
        )
    changes = {name: value for name, value in (("judge", judge), ("data_root", data_root)) if value is not None}
    models = load_models(models_of(Path(folder)).replace(**changes))
    home = f"as trained{_where(trained)}"
    players: dict[str, Any] = {f"constant g = {trained.config.g0:g}": trained.config.g0, home: trained.actor}
    if elsewhere:
        assert isinstance(trained.actor, QuantumActor)
        where = Device.load(device) if device is not None else None
        moved = trained.actor.on(where, engine)
        players[f"on {moved.layer.compiled.device.name}, {moved.layer.engine.label}"] = moved
    file = Path(folder) / "evaluations" / f"{device or 'home'}-{engine or 'home'}.json".replace("/", "_")
    check_writable(file)
    values: dict[str, dict[str, list[float]]] = {name: {} for name in players}
    with progress(total=seeds * len(players), desc="evaluation", unit="run") as bar:
        for seed in range(seeds):
            labels, noise = draw_starts(models.backbone, models.heldout, images, EVALUATION_SEED + seed)
            base = rollout(models.backbone, trained.config, labels, noise, trained.config.g0).images
            for name, player in players.items():
                sampled = sample_and_measure(
                    models, trained.config, player, labels, noise, reward=trained.reward, reference=base
                )
                assert sampled.judged is not None
                for key, value in {**sampled.judged, "return": sampled.reward_side["return"]}.items():
                    values[name].setdefault(key, []).append(value)
                bar.update(1)
    sampler = {"n_steps": trained.config.n_steps, "spacing": trained.config.spacing}
    atomic_write_json(file, {"seeds": seeds, "images": images, **sampler, "values": values})
    return _evaluation_text(values, trained.config.n_steps, seeds, images, file)


def models_of(folder: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(read_json(folder / MODELS_FILE))
    except FileNotFoundError:
        # a run made from Python: its data set is known, its models are the shipped ones unless named
        run = RunFolder.open(folder, kind="guidance")
        return ModelConfig(data=run.config["guidance"]["dataset"])


def _where(trained: TrainedController) -> str:
    if not isinstance(trained.actor, QuantumActor):
        kind, asked = trained.actor.kind, trained.actor_config
        return f" ({kind}, distilled from {asked.kind})" if asked.uses_circuit else f" ({asked.kind})"
    layer = trained.actor.layer
    return f" ({layer.compiled.device.name}, {layer.engine.label})"


def _evaluation_text(
    values: dict[str, dict[str, list[float]]], n_steps: int, seeds: int, images: int, file: Path
) -> str:
    lines = [
        f"{n_steps} steps, {seeds} seeds, {images} images each; FD in the judge's features, against held-out images"
    ]
    lines.append(f"{'controller':<36} {'FD [95 %]':>22} {'accuracy':>9} {'reward':>9}")
    for name, metrics in values.items():
        accuracy, reward = mean_interval(metrics["accuracy"]).mean, mean_interval(metrics["return"]).mean
        lines.append(f"{name:<36} {mean_interval(metrics['fd']).format():>22} {accuracy:>9.1%} {reward:>9.3f}")
    names = list(values)
    if seeds >= 2:
        for name in names[1:]:
            test = paired_test(values[name]["fd"], values[names[0]]["fd"])
            d = test.difference
            lines.append(f"{name} minus {names[0]}: {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}], {p_text(test.t_p)}")
        if len(names) == 3:
            d = paired_test(values[names[2]]["fd"], values[names[1]]["fd"]).difference
            lines.append(f"{names[2]} minus {names[1]}: {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]")
    return "\n".join([*lines, f"saved: {file}"])
