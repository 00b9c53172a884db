"""Fewer images for the scale of a reward, for tests of what comes after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def few_calibration_images() -> Iterator[None]:
    """40 in place of 200; import it where no number depends on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qhw_diffusion.guidance.training._CALIBRATION_IMAGES", 40)
        yield
