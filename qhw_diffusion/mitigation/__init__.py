"""Error mitigation: strategies that wrap any engine, say what they cost, and compose (`Mitigated`)."""

from __future__ import annotations

from qhw_diffusion.mitigation.decoupling import DynamicalDecoupling
from qhw_diffusion.mitigation.folding import folded
from qhw_diffusion.mitigation.mitigated import Mitigated
from qhw_diffusion.mitigation.mitiq_cdr import MitiqCDR
from qhw_diffusion.mitigation.mitiq_ddd import MitiqDDD
from qhw_diffusion.mitigation.mitiq_lre import MitiqLRE
from qhw_diffusion.mitigation.mitiq_pec import MitiqPEC
from qhw_diffusion.mitigation.mitiq_twirling import MitiqTwirling
from qhw_diffusion.mitigation.mitiq_zne import MitiqZNE
from qhw_diffusion.mitigation.parse import STRATEGIES, engine_of, strategies_of, strategy_of
from qhw_diffusion.mitigation.readout import Readout
from qhw_diffusion.mitigation.strategy import Calibration, Cost, Strategy
from qhw_diffusion.mitigation.twirling import PauliTwirling
from qhw_diffusion.mitigation.zne import EXTRAPOLATIONS, ZNE

__all__ = [
    "EXTRAPOLATIONS",
    "STRATEGIES",
    "ZNE",
    "Calibration",
    "Cost",
    "DynamicalDecoupling",
    "Mitigated",
    "MitiqCDR",
    "MitiqDDD",
    "MitiqLRE",
    "MitiqPEC",
    "MitiqTwirling",
    "MitiqZNE",
    "PauliTwirling",
    "Readout",
    "Strategy",
    "engine_of",
    "folded",
    "strategies_of",
    "strategy_of",
]
