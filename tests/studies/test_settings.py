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
from qhw_diffusion.guidance import ActorConfig, GuidanceConfig, PPOConfig, RewardConfig
from qhw_diffusion.studies.guidance.experiment import GuidanceStudyConfig
from qhw_diffusion.studies.reference_models import ReferenceModelsConfig
from qhw_diffusion.studies.settings import ModelConfig
from qhw_diffusion.studies.single import SingleTraining


def test_a_sampler_that_cannot_be_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="trailing"):
        ReferenceModelsConfig(spacing="trail")
    with pytest.raises(InvalidInputError, match="n_steps"):
        ReferenceModelsConfig(n_steps=2.5)  # type: ignore[arg-type]


def test_minibatches_without_two_rows_are_refused_by_whoever_knows_the_steps(tmp_path: Path) -> None:
    ppo = PPOConfig(num_envs=20, minibatches=31)
    assert GuidanceStudyConfig(ppo=ppo).ppo == ppo  # 6 steps × 20 environments are enough for 31
    with pytest.raises(InvalidInputError, match="at most 30"):
        GuidanceStudyConfig(ppo=PPOConfig(num_envs=10, minibatches=31))
    with pytest.raises(InvalidInputError, match="at most 60"):
        ReferenceModelsConfig(num_envs=20, minibatches=61)
    with pytest.raises(InvalidInputError, match="at most 60"):
        SingleTraining(ModelConfig(), GuidanceConfig(), RewardConfig(), ppo.replace(minibatches=61), ActorConfig(),
                       out=tmp_path / "run", resume=False, overwrite=False, sweep_images=512, command="")  # fmt: skip


STUDIES = [load_study(name) for name in ("guidance", "shots", "mitigation")]
OPEN = [(partial(open_study, study), study.quick) for study in STUDIES]


def _sampled(config: Any, **sampler: Any) -> Any:
    """The settings of a study with another sampler."""
    if isinstance(config, GuidanceStudyConfig):
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
    holder = stored if isinstance(config, GuidanceStudyConfig) else stored["models"]
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
        ActorConfig,
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
