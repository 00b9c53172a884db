"""`qhw distill`: a trained quantum policy as a table or a small network, and what is lost by it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qhw_diffusion.checkpoints import one_thread
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Engine, Noisy, engine_of
from qhw_diffusion.experiment.statistics import mean_interval, paired_test
from qhw_diffusion.guidance import (
    LookupPolicy,
    Policy,
    QuantumPolicy,
    TrainedPolicy,
    action_error,
    explored_states,
    fit_network,
    load_policy,
    load_policy_model,
    save_policy_model,
    tabulate,
    visited_states,
)
from qhw_diffusion.guidance.command import MODELS_FILE, models_of
from qhw_diffusion.guidance.distill import HIDDEN, input_degrees, table_rows
from qhw_diffusion.guidance.evaluation import (
    EVALUATION_SEED,
    Models,
    draw_initial_noise,
    load_models,
    sample_and_measure,
)
from qhw_diffusion.guidance.training import KIND, with_later_settings
from qhw_diffusion.on_device.access import AccessConfig, at_device, open_access
from qhw_diffusion.on_device.filed import spent_so_far
from qhw_diffusion.on_device.receipt import Receipt, run_name
from qhw_diffusion.runs import Place, RunFolder, atomic_write_json, check_place, evaluation_metrics, progress

FORMS, ORIGINAL = ("lookup", "network"), "original"
_FIT_SEED, _HELDOUT_SEED = 7_000_000, 8_000_000
_STARTS = 512


@dataclass(frozen=True)
class Distillation:
    """What `qhw distill` was asked for.

    run: folder of the trained policy; out: run folder to write; form: "lookup" or "network"; device, engine: where the
    original is evaluated, if not as it was trained; hidden, iterations, seed: of the network; seeds, images: of the
    comparison of images.
    """

    run: Path
    out: Path
    form: str = "lookup"
    device: str | None = None
    engine: str | Engine | None = None
    evaluation_classifier: str | None = None
    data_root: str | None = None
    hidden: tuple[int, ...] = HIDDEN
    iterations: int = 4000
    seed: int = 0
    seeds: int = 5
    images: int = 500

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UnknownNameError.of("form of a distilled policy", self.form, FORMS)
        if self.engine is not None:
            engine_of(self.engine)  # a mistyped engine is told before anything is loaded
        if self.seeds < 1 or self.images < 20:
            raise InvalidInputError(f"at least 1 seed and 20 images are needed, not {self.seeds} and {self.images}")


def distill_run(asked: Distillation, *, command: str | None = None, overwrite: bool = False) -> str:
    """Distil, compare with the original, and write the run folder `asked.out`; returns a text.

    The folder is of the kind `qhw train guidance` writes, so `load_policy` and `qhw evaluate guidance` take it;
    distillation.json has the numbers. overwrite: as in `RunFolder.create`.
    Raises InvalidInputError for a classical policy and for a circuit that no table of reasonable size holds.
    """
    check_place(asked.out, kind=KIND, overwrite=overwrite)  # before minutes of work
    trained, policy = _load(asked)
    original = policy
    if asked.device is not None or asked.engine is not None:
        device = None if asked.device is None else Device.load(asked.device)
        original = policy.on(device, asked.engine)
    models = _models(asked)
    stand_in = _distil(asked, trained, original, models)
    record = _compare(asked, trained, original, stand_in, models)
    config = _config(asked, trained, original)
    with RunFolder.create(asked.out, kind=KIND, config=config, command=command, overwrite=overwrite) as run:
        _save(run, stand_in, record, models_of(asked.run).to_dict())
    return _text(asked, trained, record)


def distill_on_device(
    asked: Distillation,
    access_config: AccessConfig,
    *,
    resume: bool,
    command: str | None = None,
    overwrite: bool = False,
) -> str:
    """Distil into a lookup whose table is measured on a device, by one job; the rest as `distill_run`.

    The original it is compared with is the policy under the simulated noise of the device's snapshot, which is kept in
    the folder: a distillation that goes on asks for the same circuits, and finds them in the ledger.
    """
    if asked.form != "lookup" or asked.engine is not None:
        raise InvalidInputError(
            "on a device (--shots) the table of a lookup is measured; leave --engine and --into network out"
        )
    if not resume:
        check_place(asked.out, kind=KIND, overwrite=overwrite)
    access_config.strategies()  # a mistyped strategy is told now
    trained, policy = _load(asked)
    table_rows(input_degrees(policy.layer.compiled))  # refused before anything is made
    models = _models(asked)
    out = asked.out
    names = ("device", "shots", "resilience_level", "mitigation", "ledger")
    settings = _config(asked, trained, policy) | {"access": {name: getattr(access_config, name) for name in names}}
    settings["distilled"] |= {"device": access_config.device, "engine": "hardware"}
    there = resume and (out / ORIGINAL / "device.json").exists()
    moved = None if there else policy.on(Device.load(access_config.device), Noisy())
    if resume:
        run = RunFolder.open(out, kind=KIND)
        run.require_settings(settings, with_later_settings)
    else:
        run = RunFolder.create(out, kind=KIND, config=settings, command=command, overwrite=overwrite)
    with run:
        with open_access(access_config, run_name(run, access_config.device)) as access:
            access.require_cap()
            if moved is not None:
                save_policy_model(moved, out / ORIGINAL)
            original = load_policy_model(out / ORIGINAL, engine="noisy")
            assert isinstance(original, QuantumPolicy)
            rows = table_rows(input_degrees(original.layer.compiled))
            print(access.cost_text(access.cost(original.layer.compiled, rows)), flush=True)
            purpose = f"{access.run} table"
            with at_device(run, access):
                stand_in = tabulate(original.on(engine=access.engine(purpose)))
                run.begin()
            receipt, spent = access.receipt(purpose), spent_so_far(access)
        compared = _compare(asked, trained, original, stand_in, models)
        record = {**compared, **receipt.to_dict(), "shots": access_config.shots}
        _save(run, stand_in, record, models_of(asked.run).to_dict(), spent)
    return _text(asked, trained, record)


def distil_policy(asked: Distillation, access_config: AccessConfig | None, place: Place) -> str:
    """`distill_on_device` where there is access to a device, else `distill_run`.

    Args:
        asked: what is distilled, and into what; its `out` is the folder of `place`.
        access_config: how circuits get to the device; None to evaluate them here.
        place: run folder to write.
    """
    one_thread()
    if os.path.realpath(asked.out) == os.path.realpath(asked.run):
        raise InvalidInputError("--out is the folder of the policy itself; choose another one")
    if access_config is None and place.resume:
        raise InvalidInputError(
            "--resume is for a table measured on a device (--shots); a simulated one is quickly made"
        )
    place.check(KIND)
    if access_config is None:
        return distill_run(asked, command=place.command, overwrite=place.overwrite)
    return distill_on_device(
        asked, access_config, command=place.command, resume=place.resume, overwrite=place.overwrite
    )


def _load(asked: Distillation) -> tuple[TrainedPolicy, QuantumPolicy]:
    trained = load_policy(asked.run)
    if not isinstance(trained.policy, QuantumPolicy):
        raise InvalidInputError(
            f"the policy in {asked.run} is classical ({trained.policy.kind}) already; distil a quantum one"
        )
    return trained, trained.policy


def _models(asked: Distillation) -> Models:
    changes = {name: v for name in ("evaluation_classifier", "data_root") if (v := getattr(asked, name)) is not None}
    return load_models(models_of(asked.run).replace(**changes))


def _compare(
    asked: Distillation, trained: TrainedPolicy, original: QuantumPolicy, stand_in: Policy, models: Models
) -> dict[str, Any]:
    """What distillation.json holds."""
    config, layer = trained.config, original.layer
    states = visited_states(
        original, config, models.backbone, models.scorer(config.scorer), images=_STARTS, seed=_HELDOUT_SEED
    )
    return {
        "from": str(asked.run),
        "form": asked.form,
        "device": layer.compiled.device.name,
        "engine": layer.engine.label,
        "numbers": sum(t.numel() for t in stand_in.state_dict().values()),
        "circuits": len(stand_in.table) if isinstance(stand_in, LookupPolicy) else 0,
        "action_error": action_error(original, stand_in, states, config).to_dict(),
        "judged": _compare_images(asked, trained, original, stand_in, models),
        "seeds": asked.seeds,
        "images": asked.images,
    }


def _distil(asked: Distillation, trained: TrainedPolicy, original: QuantumPolicy, models: Models) -> Policy:
    if asked.form == "lookup":
        return tabulate(original)
    backbone, scorer = models.backbone, models.scorer(trained.config.scorer)
    states = explored_states(original, trained.config, backbone, scorer, images=_STARTS, seed=_FIT_SEED + asked.seed)
    return fit_network(original, states, hidden=asked.hidden, iterations=asked.iterations, seed=asked.seed)


def _compare_images(
    asked: Distillation, trained: TrainedPolicy, original: Policy, stand_in: Policy, models: Models
) -> dict[str, dict[str, list[float]]]:
    """The evaluation of both policies, a value per seed, on the same starts; how far apart their images are."""
    out: dict[str, dict[str, list[float]]] = {"original": {}, "distilled": {}, "between": {"pixel_rms": []}}
    with progress(total=2 * asked.seeds, desc="images", unit="run") as bar:
        for seed in range(asked.seeds):
            labels, noise = draw_initial_noise(models.backbone, models.heldout, asked.images, EVALUATION_SEED + seed)
            images = []
            for name, actor in (("original", original), ("distilled", stand_in)):
                sampled = sample_and_measure(models, trained.config, actor, labels, noise, reward=trained.reward)
                assert sampled.judged is not None
                for key in ("energy", "fd", "kd", "accuracy"):
                    out[name].setdefault(key, []).append(sampled.judged[key])
                images.append(sampled.rollout.images)
                bar.update(1)
            out["between"]["pixel_rms"].append(float((images[1] - images[0]).square().mean().sqrt()))
    return out


def _config(asked: Distillation, trained: TrainedPolicy, original: QuantumPolicy) -> dict[str, Any]:
    layer = original.layer
    return {
        "guidance": trained.config.to_dict(),
        "reward": trained.reward.to_dict(),
        "ppo": trained.ppo.to_dict(),
        "policy": trained.policy_config.to_dict(),
        "distilled": {"from": str(asked.run), "form": asked.form, "device": layer.compiled.device.name,
                      "engine": layer.engine.label},
    }  # fmt: skip


def _save(
    run: RunFolder,
    stand_in: Policy,
    record: dict[str, Any],
    models: dict[str, Any],
    spent: Mapping[str, float] | None = None,
) -> None:
    """Write what was distilled, and tell the run's loggers how it compares, and what it has `spent` on a device."""
    atomic_write_json(run.path / MODELS_FILE, models)
    save_policy_model(stand_in, run.path / "model")
    atomic_write_json(run.path / "distillation.json", record)
    judged = record["judged"]
    compared = {**judged, "between": {**judged["between"], **record["action_error"]}}
    run.tell({**(spent or {}), **evaluation_metrics(compared)})


def _text(asked: Distillation, trained: TrainedPolicy, record: dict[str, Any]) -> str:
    error, judged = record["action_error"], record["judged"]
    made = (
        f"{record['circuits']:,} circuits evaluated once{_where(record)}, {record['numbers']:,} numbers kept"
        if asked.form == "lookup"
        else f"{record['numbers']:,} weights"
    )
    lines = [
        f"{asked.form} of the policy in {asked.run} ({record['device']}, {record['engine']}): {made}",
        f"on {error['states']:,} held-out states: |Δaction| {error['action_mean']:.2g} mean, {error['action_max']:.2g} "
        f"max (the original's action varies by {error['action_spread']:.2g}); |Δg| {error['g_mean']:.2g} mean, "
        f"{error['g_max']:.2g} max",
        f"images: {asked.seeds} seeds × {asked.images}, {trained.config.n_steps} steps, distances to held-out images "
        "by the evaluation classifier",
    ]
    for name in ("original", "distilled"):
        energy, fd = (mean_interval(judged[name][key]).format(3) for key in ("energy", "fd"))
        accuracy = mean_interval(judged[name]["accuracy"]).mean
        lines.append(f"  {name:<10} energy {energy}   FD {fd}   accuracy {accuracy:.1%}")
    if asked.seeds >= 2:
        told = []
        for key, title in (("energy", "energy"), ("fd", "FD")):
            d = paired_test(judged["distilled"][key], judged["original"][key]).difference
            told.append(f"{title} {d.mean:+.2g} [{d.low:+.2g}, {d.high:+.2g}]")
        lines.append(f"  distilled minus original (95 %, paired): {'; '.join(told)}")
    rms = mean_interval(judged["between"]["pixel_rms"]).mean
    lines.append(f"  root mean square between their pixels {rms:.2g} (range of a pixel: −1 to 1)")
    lines.append(f"saved in {asked.out}; it needs no circuit: qhw evaluate guidance {asked.out}")
    return "\n".join(lines)


def _where(record: dict[str, Any]) -> str:
    if "shots" not in record:
        return ""
    seconds = record["qpu_seconds"]
    used = "QPU seconds not stated yet" if seconds is None else f"{seconds:.1f} QPU seconds"
    return f" on {record['device']} ({record['shots']:,} shots; {Receipt.from_dict(record).jobs_text}; {used})"
