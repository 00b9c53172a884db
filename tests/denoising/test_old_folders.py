"""Folders and settings of earlier versions: old names of settings, values and weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qhw_diffusion.checkpoints import read_tensors
from qhw_diffusion.denoising import from_pretrained, save_pretrained
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.models import QDM
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.denoising.training import TrainConfig
from qhw_diffusion.errors import InvalidInputError, UnknownNameError

FOLDERS = Path(__file__).parent / "format2"  # as version 0.1.0 wrote them before the names changed


def samples(model: QDM) -> torch.Tensor:
    return model.sample(3, torch.Generator().manual_seed(3), torch.tensor([0, 1, 1])).states


@pytest.mark.parametrize(
    ("name", "weight_sharing", "conditioning"),
    [("amplitude", "hypernetwork", "weights"), ("latent", "time_embedding", "qubits")],
)
def test_a_folder_of_format_2_loads_and_samples_the_same(
    name: str, weight_sharing: str, conditioning: str, tmp_path: Path
) -> None:
    model = from_pretrained(FOLDERS / name)
    config = model.reverse.config
    assert isinstance(config, ReverseConfig)
    assert (config.weight_sharing, config.conditioning, config.n_labels) == (weight_sharing, conditioning, 2)
    if name == "amplitude":
        assert config.hypernetwork_width == 3
    tensors, _ = read_tensors(FOLDERS / f"{name}.safetensors", kind="samples")
    torch.testing.assert_close(torch.view_as_real(samples(model)), tensors["states"], atol=1e-6, rtol=0)
    again = from_pretrained(save_pretrained(model, tmp_path / "new"))
    assert again.config() == model.config()
    assert torch.equal(samples(again), samples(model))


def test_frozen_weights_of_an_old_folder_stay_frozen(tmp_path: Path) -> None:
    from qhw_diffusion.denoising.saving import _frozen

    assert _frozen({"frozen": ["reverse.map_in", "reverse.weight"]}) == ["reverse.hypernetwork_in", "reverse.weight"]
    assert _frozen({}) is None


def test_a_checkpoint_with_old_names_of_weights_is_read() -> None:
    process = ReverseProcess(ReverseConfig(n_qubits=1, n_steps=2, depth=1, weight_sharing="hypernetwork"))
    state = {name: torch.full_like(value, 0.25) for name, value in process.state_dict().items()}
    assert set(state) == {"weight", "hypernetwork_in", "hypernetwork_out"}
    process.load_state_dict({name.replace("hypernetwork", "map"): value for name, value in state.items()})
    for name, value in process.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize(
    ("old", "new"), [("separate", "per_step"), ("angle", "time_embedding"), ("map", "hypernetwork")]
)
def test_old_names_of_settings(old: str, new: str) -> None:
    found = ReverseConfig.from_dict({"sharing": old, "labels_by": "weights", "n_labels": 3, "map_width": 5})
    assert found == ReverseConfig(weight_sharing=new, conditioning="weights", n_labels=3, hypernetwork_width=5)
    assert set(found.to_dict()).isdisjoint({"sharing", "labels_by", "map_width"})
    with pytest.raises(UnknownNameError, match="per_step"):
        ReverseConfig(weight_sharing=old)
    assert TrainConfig.from_dict({"loss": "mmd", "pool": 7}) == TrainConfig("mmd", buffer_size=7)


def test_an_old_and_a_new_name_together_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="'labels_by', which is the old name of 'conditioning'"):
        ReverseConfig.from_dict({"labels_by": "none", "conditioning": "none"})
    with pytest.raises(UnknownNameError, match="weight_sharing 'mapp'"):
        ReverseConfig.from_dict({"sharing": "mapp"})
