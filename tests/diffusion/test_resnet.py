"""ResNets for CIFAR-10 and their published weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from qhw_diffusion.diffusion import Classifier, ClassifierConfig
from qhw_diffusion.errors import DamagedFileError, InvalidInputError


def published(path: Path, blocks: int = 1, width: int = 4) -> Classifier:
    """Random weights in the format of the published files, and the network they are of."""
    config = ClassifierConfig(
        image_shape=(3, 32, 32), architecture="resnet", blocks=blocks, width=width, n_features=4 * width
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Classifier(config)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    network.eval()
    state = OrderedDict()
    for key, value in network.state_dict().items():
        state[f"module.{key.removeprefix('body.').replace('head.', 'linear.')}"] = value
    torch.save({"state_dict": state, "best_prec1": 93.5}, path)
    return network


def test_published_weights_are_read(tmp_path: Path) -> None:
    network = published(tmp_path / "resnet.th", blocks=2)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    loaded = Classifier.load(tmp_path / "resnet.th", "evaluation")
    assert torch.equal(loaded(images), network(images).detach())
    assert (loaded.role, loaded.accuracy, loaded.n_classes, loaded.n_features) == ("evaluation", 0.935, 10, 16)
    assert (loaded.config.blocks, loaded.training) == (2, False)
    shapes = [tuple(stage.shape) for stage in loaded.stages(images)]
    assert shapes == [(3, 4, 32, 32), (3, 8, 16, 16), (3, 16, 8, 8), (3, 16)]
    assert torch.equal(loaded.stages(images)[-1], loaded.features(images))
    loaded.save(tmp_path / "saved")  # as any other classifier
    assert Classifier.load(tmp_path / "saved", "evaluation").config == loaded.config


def test_a_block_is_that_of_the_paper(tmp_path: Path) -> None:
    """The first block that halves the image, recomputed with NumPy from torch's convolutions."""
    network = published(tmp_path / "resnet.th")
    block = network.body.get_submodule("layer2.0")
    x = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))).numpy()
        given = block(x).numpy()
    shortcut = np.zeros((2, 8, 3, 3), np.float32)
    shortcut[:, 2:6] = x.numpy()[:, :, ::2, ::2]  # shortcut A: no parameters
    np.testing.assert_allclose(given, np.maximum(inner + shortcut, 0), rtol=1e-6)


def test_the_input_is_normalised_as_in_training(tmp_path: Path) -> None:
    network = published(tmp_path / "resnet.th")
    seen = []
    network.body.get_submodule("conv1").register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    network(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32) * 2 - 1)
    assert float(seen[0].abs().max()) < 1e-5


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.th").write_text("no weights")
    with pytest.raises(DamagedFileError, match="akamaster"):
        Classifier.load(tmp_path / "text.th", "evaluation")
    torch.save({"state_dict": {"fc.weight": torch.zeros(10, 4)}}, tmp_path / "other.pth")
    with pytest.raises(DamagedFileError, match="akamaster"):
        Classifier.load(tmp_path / "other.pth", "evaluation")
    published(tmp_path / "resnet.th")
    content = torch.load(tmp_path / "resnet.th", weights_only=True)
    del content["state_dict"]["module.bn1.weight"]
    torch.save(content, tmp_path / "lacking.th")
    with pytest.raises(DamagedFileError, match=r"bn1\.weight"):
        Classifier.load(tmp_path / "lacking.th", "evaluation")
    with pytest.raises(InvalidInputError, match="images of 3 channels and has 4 · width features"):
        ClassifierConfig(image_shape=(3, 32, 32), architecture="resnet", width=8, n_features=64)
