"""Error mitigation: strategies that wrap any engine, say what they cost, and compose (`Mitigated`)."""

from __future__ import annotations

from qhw_diffusion.mitigation.folding import folded
from qhw_diffusion.mitigation.mitigated import Mitigated
from qhw_diffusion.mitigation.strategy import Calibration, Cost, Strategy
from qhw_diffusion.mitigation.zne import EXTRAPOLATIONS, ZNE

__all__ = ["EXTRAPOLATIONS", "ZNE", "Calibration", "Cost", "Mitigated", "Strategy", "folded"]
