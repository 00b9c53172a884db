"""One job of a call, on its way through the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qhw_diffusion.hardware.cost import Added
from qhw_diffusion.hardware.service import Pub
from qhw_diffusion.hardware.split import Piece, asked


@dataclass(eq=False)
class Job:
    """What is sent, under which key, and what is known of it so far.

    Attributes:
        key: of the ledger.
        pieces: which rows of which PUBs of the call it holds.
        pubs: the PUBs to send.
        options: of the client's estimator.
        purpose: as the caller names it.
        added: what the client's own mitigation executes besides.
        seconds: estimate of its QPU time.
        summary: what the ledger's row should say besides.
        max_seconds: QPU seconds after which the service cancels it.
        sent_before: whether an earlier call has sent it.
        uncertain: whether a submission got no usable reply, or may have got none in an earlier call.
        reused: whether its answer was in the ledger already.
    """

    key: str
    pieces: list[Piece]
    pubs: list[Pub]
    options: Mapping[str, Any]
    purpose: str
    added: Added = field(default_factory=Added)
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)
    max_seconds: int | None = None
    sent_before: bool = False
    uncertain: bool = False
    reused: bool = False

    @property
    def whole_seconds(self) -> int:
        """The estimate in whole seconds, as the service takes limits."""
        return math.ceil(self.seconds)

    @property
    def executed(self) -> tuple[int, int]:
        """(circuits, shots of each): rows of parameters times settings of the measurement, with what the client's
        mitigation adds; the most shots, if they differ.
        """
        return self.added.executed(*asked(self.pubs))


def distinct(jobs: Sequence[Job]) -> list[Job]:
    """One job for each key, in order: equal work in one call is done once."""
    return list({job.key: job for job in jobs}.values())
