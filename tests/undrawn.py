"""Reports whose figures are made, not drawn, for tests that look at a report's words: drawing takes a second each."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@contextmanager
def figures_undrawn() -> Iterator[None]:
    """Within it pages are written with pictures of one pixel; each kind of page is drawn by a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qhw_diffusion.experiment.page.png", lambda figure, dpi=100: PIXEL)
        yield
