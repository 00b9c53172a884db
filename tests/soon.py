"""Short pauses for commands that wait for a stand-in: its answers are there at once, those of a queue are not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qhw_diffusion.hardware.wait import Times

QUICK = Times(poll=0.05, poll_most=0.2, backoff=0.05)


@pytest.fixture(autouse=True)
def short_pauses() -> Iterator[None]:
    """Runners look for their jobs twenty times a second; import it where they do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qhw_diffusion.hardware.runner.Times", lambda: QUICK)
        yield
