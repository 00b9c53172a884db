"""The tiny pipelines of tests/pipelines.py are genuine: they sample, and the same ones are built twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch

CALL: dict[str, Any] = {"prompt": ["a red seven", "b"], "num_inference_steps": 3, "output_type": "pt"}


@pytest.mark.slow
def test_classic(tmp_path: Path) -> None:
    images = [
        pipelines.stable_diffusion(tmp_path)(**CALL, generator=torch.Generator().manual_seed(0)).images
        for _ in range(2)
    ]
    assert images[0].shape == (2, 3, 16, 16)
    assert torch.equal(*images)
    assert not torch.equal(images[0][0], images[0][1])


@pytest.mark.parametrize("kind", [pipelines.modular_xl, pipelines.modular_sd3])
def test_modular(tmp_path: Path, kind: Any) -> None:
    images = [kind(tmp_path)(**CALL, generator=torch.Generator().manual_seed(0), output="images") for _ in range(2)]
    assert images[0].shape == (2, 3, 16, 16)
    assert torch.equal(*images)
