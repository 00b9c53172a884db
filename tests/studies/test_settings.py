from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qhw_diffusion.config import field_docs
from qhw_diffusion.diffusion import BackboneConfig, ClassifierConfig
from qhw_diffusion.errors import InvalidInputError, RunFolderError, UnknownNameError
from qhw_diffusion.experiment import load_study
from qhw_diffusion.experiment import open_study as open_any
from qhw_diffusion.guidance import ActorConfig, GuidanceConfig, PPOConfig, RewardConfig
from qhw_diffusion.guidance.schedules import SCHEDULES
from qhw_diffusion.studies.demo import demo_config
from qhw_diffusion.studies.guidance_study import open_study
from qhw_diffusion.studies.reference_models import ReferenceModelsConfig
from qhw_diffusion.studies.rivals import LABELS, Schedule, candidates
from qhw_diffusion.studies.settings import ACTORS, ModelConfig, StudyConfig, label_of
from qhw_diffusion.studies.single import SingleTraining


@pytest.mark.parametrize("quick", [True, False])
def test_a_study_survives_json(quick: bool) -> None:
    config = demo_config(quick=quick)
    again = StudyConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert isinstance(again.ppo, PPOConfig)
    assert isinstance(again.constants, tuple)


def test_unknown_and_impossible_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="seeds"):
        StudyConfig.from_dict({"seedz": 3})
    with pytest.raises(UnknownNameError, match="quantum"):
        StudyConfig(actors=("quantm",))
    for config in (StudyConfig, ReferenceModelsConfig):
        with pytest.raises(UnknownNameError, match="trailing"):
            config(spacing="trail")
        with pytest.raises(InvalidInputError, match="n_steps"):
            config(n_steps=2.5)  # type: ignore[arg-type]
    for bad in ({"seeds": 0}, {"n_steps": 0}, {"n_steps": 2.5},
                {"constants": (1.0,)}, {"constants": (1.0, float("nan"))}, {"eval_images": 3},
                {"tune_means": ()}, {"actors": ("mlp", "mlp")}):  # fmt: skip
        with pytest.raises(InvalidInputError):
            StudyConfig(**bad)  # type: ignore[arg-type]


def test_minibatches_without_two_rows_are_refused_by_whoever_knows_the_steps(tmp_path: Path) -> None:
    ppo = PPOConfig(num_envs=20, minibatches=31)
    assert StudyConfig(ppo=ppo).ppo == ppo  # 6 steps × 20 environments are enough for 31
    with pytest.raises(InvalidInputError, match="at most 30"):
        StudyConfig(ppo=PPOConfig(num_envs=10, minibatches=31))
    with pytest.raises(InvalidInputError, match="at most 60"):
        ReferenceModelsConfig(num_envs=20, minibatches=61)
    with pytest.raises(InvalidInputError, match="at most 60"):
        SingleTraining(ModelConfig(), GuidanceConfig(), RewardConfig(), ppo.replace(minibatches=61), ActorConfig(),
                       out=tmp_path / "run", resume=False, overwrite=False, sweep_images=512, command="")  # fmt: skip


SHOTS, MITIGATION = load_study("shots"), load_study("mitigation")
OPEN = [
    (open_study, StudyConfig()),
    (partial(open_any, SHOTS), SHOTS.quick),
    (partial(open_any, MITIGATION), MITIGATION.quick),
]


def _sampled(config: Any, **sampler: Any) -> Any:
    """The settings of a study with another sampler."""
    if isinstance(config, StudyConfig):
        return config.replace(**sampler)
    return config.replace(models=config.models.replace(**sampler))


@pytest.mark.parametrize(("open_it", "config"), OPEN)
def test_a_study_of_a_sampler_that_cannot_be_leaves_no_folder(tmp_path: Path, open_it: Any, config: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"timestep 666 of 999.*spacing='trailing' with n_steps = 3"):
        open_it(tmp_path / "study", _sampled(config, n_steps=3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("open_it", "config"), OPEN)
def test_a_study_made_before_spacing_was_a_setting_goes_on(tmp_path: Path, open_it: Any, config: Any) -> None:
    run = open_it(tmp_path / "study", config)
    stored = json.loads((run.path / "config.json").read_text())
    holder = stored if isinstance(config, StudyConfig) else stored["models"]
    del holder["spacing"]
    (run.path / "config.json").write_text(json.dumps(stored))
    again = open_it(run.path, config, resume=True)
    assert type(config).from_dict(again.config) == config
    with pytest.raises(RunFolderError, match="other settings"):
        open_it(run.path, _sampled(config, spacing="trailing"), resume=True)


@pytest.mark.parametrize(
    "cls",
    [ModelConfig, StudyConfig, ActorConfig, GuidanceConfig, RewardConfig, PPOConfig, BackboneConfig, ClassifierConfig],
)
def test_every_setting_is_documented(cls: type) -> None:
    import dataclasses

    docs = field_docs(cls)
    missing = [f.name for f in dataclasses.fields(cls) if len(docs.get(f.name, "")) < 4]
    nested = {"models", "actor", "reward", "ppo"} if cls is StudyConfig else set()
    assert set(missing) <= nested


def test_every_actor_of_the_line_up_can_be_described() -> None:
    config = StudyConfig(actors=tuple(ACTORS))
    kinds = {name: config.actor_config(name).kind for name in ACTORS}
    assert kinds["frozen"] == "frozen"
    assert config.actor_config("quantum_ideal").engine == "ideal"
    labels = [label_of(name) for name in config.evaluated()]
    assert len(set(labels)) == len(labels)


def test_every_schedule_takes_part_and_keeps_its_mean() -> None:
    grid = candidates(1.4, (1.0, 1.25), n_steps=10)
    assert {"constant", *grid} == set(SCHEDULES) == set(LABELS)
    for found in grid.values():
        for candidate in found:
            assert float(candidate.scales(10).mean()) == pytest.approx(candidate.mean, rel=1e-5)
            assert candidate.mean >= 1.0


def test_schedules_that_do_not_exist_at_few_steps_are_left_out() -> None:
    # two steps: no step's centre (0.25, 0.75) lies in an interval from 0.3 to 0.7
    kept = candidates(1.4, (1.0,), n_steps=2)["limited_interval"]
    assert all(len(candidate.scales(2)) == 2 for candidate in kept)
    assert Schedule("constant", 1.5).describe() == "best constant, g = 1.5"
