from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qhw_diffusion.config import field_docs
from qhw_diffusion.diffusion import BackboneConfig, ClassifierConfig
from qhw_diffusion.errors import InvalidInputError, RunFolderError, UnknownNameError
from qhw_diffusion.experiment import load_study, open_study
from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig, RewardConfig
from qhw_diffusion.guidance.config import GuidanceTraining, ModelConfig
from qhw_diffusion.studies.guidance.experiment import GuidanceStudyConfig
from qhw_diffusion.studies.reference_models import ReferenceModelsConfig


def test_a_sampler_that_cannot_be_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="trailing"):
        GuidanceStudyConfig(spacing="trail")
    with pytest.raises(InvalidInputError, match="n_steps"):
        GuidanceStudyConfig(n_steps=2.5)  # type: ignore[arg-type]


def test_folders_saved_under_former_names_are_read() -> None:
    """The evaluation classifier was called "judge" before."""
    old = {"data": "digits", "judge": "runs/mine"}
    assert ModelConfig.from_dict(old) == ModelConfig(evaluation_classifier="runs/mine")


@pytest.mark.parametrize(("name", "most"), [("shots", 3), ("mitigation", 1)])
def test_the_time_a_study_takes_goes_with_its_settings(name: str, most: float) -> None:
    """`--dry-run` of the quick configuration does not tell the time of the whole one."""
    study = load_study(name)
    assert study.quick is not None
    whole, quick = study.config(), study.quick
    seconds = {
        config: {cell.name: cell.seconds for cell in study.cells_of(config).values()} for config in (whole, quick)
    }
    shared = seconds[whole].keys() & seconds[quick].keys()
    assert len(shared) >= 3
    assert all(seconds[quick][cell] < seconds[whole][cell] for cell in shared)
    assert sum(seconds[quick].values()) < 60 * most
    twice = study.config.from_dict({**whole.to_dict(), "states": 2 * whole.states})
    assert sum(cell.seconds for cell in study.cells_of(twice).values()) > sum(seconds[whole].values())


def test_minibatches_without_two_rows_are_refused_by_whoever_knows_the_steps() -> None:
    ppo = PPOConfig(num_envs=20, num_minibatches=31)
    assert GuidanceStudyConfig(ppo=ppo).ppo == ppo  # 6 steps × 20 environments are enough for 31
    with pytest.raises(InvalidInputError, match="at most 30"):
        GuidanceStudyConfig(ppo=PPOConfig(num_envs=10, num_minibatches=31))
    with pytest.raises(InvalidInputError, match="at most 60"):
        ReferenceModelsConfig(ppo=PPOConfig(num_envs=20, num_minibatches=61))
    with pytest.raises(InvalidInputError, match="at most 60"):
        GuidanceTraining(ppo=ppo.replace(num_minibatches=61))


def test_a_training_knows_its_data_set_and_the_state_its_policy_reads() -> None:
    training = GuidanceTraining(models=ModelConfig(data="mnist16"), policy=PolicyConfig(kind="annealing"))
    assert training.guidance == GuidanceConfig(dataset="mnist16", extra_state=True)
    assert GuidanceTraining().guidance == GuidanceConfig()
    assert GuidanceTraining.from_dict(json.loads(json.dumps(training.to_dict()))) == training
    with pytest.raises(InvalidInputError, match="sweep_images"):
        GuidanceTraining(sweep_images=-1)


STUDIES = [load_study(name) for name in ("guidance", "shots", "mitigation")]
OPEN = [(partial(open_study, study), study.quick) for study in STUDIES]


def _sampled(config: Any, **sampler: Any) -> Any:
    """The settings of a study with another sampler."""
    if isinstance(config, GuidanceStudyConfig):
        return config.replace(**sampler)
    return config.replace(models=config.models.replace(guidance=config.models.guidance.replace(**sampler)))


@pytest.mark.parametrize(("open_it", "config"), OPEN)
def test_a_study_of_a_sampler_that_cannot_be_leaves_no_folder(tmp_path: Path, open_it: Any, config: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"timestep 666 of 999.*spacing='trailing' with n_steps = 3"):
        open_it(tmp_path / "study", _sampled(config, n_steps=3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("open_it", "config"), OPEN)
def test_a_study_made_before_spacing_was_a_setting_goes_on(tmp_path: Path, open_it: Any, config: Any) -> None:
    run = open_it(tmp_path / "study", config)
    stored = json.loads((run.path / "config.json").read_text())
    holder = stored if isinstance(config, GuidanceStudyConfig) else stored["models"]["guidance"]
    del holder["spacing"]
    (run.path / "config.json").write_text(json.dumps(stored))
    again = open_it(run.path, config, resume=True)
    assert type(config).from_dict(again.config) == config
    with pytest.raises(RunFolderError, match="other settings"):
        open_it(run.path, _sampled(config, spacing="trailing"), resume=True)


@pytest.mark.parametrize(
    "cls",
    [
        ModelConfig,
        GuidanceStudyConfig,
        PolicyConfig,
        GuidanceConfig,
        RewardConfig,
        PPOConfig,
        BackboneConfig,
        ClassifierConfig,
    ],
)
def test_every_setting_is_documented(cls: type) -> None:
    import dataclasses

    docs = field_docs(cls)
    missing = [f.name for f in dataclasses.fields(cls) if len(docs.get(f.name, "")) < 4]
    assert missing == []
