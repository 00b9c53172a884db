"""Error mitigation: strategies that wrap any engine, say what they cost, and compose (`Mitigated`)."""

from __future__ import annotations

from qhw_diffusion.mitigation.checks import check_strategies
from qhw_diffusion.mitigation.decoupling import DynamicalDecoupling
from qhw_diffusion.mitigation.mitigated import Mitigated, planned
from qhw_diffusion.mitigation.mitiq_cdr import MitiqCDR
from qhw_diffusion.mitigation.mitiq_pec import MitiqPEC
from qhw_diffusion.mitigation.mitiq_weighted import MitiqDDD, MitiqLRE, MitiqTwirling, MitiqZNE
from qhw_diffusion.mitigation.readout import Readout
from qhw_diffusion.mitigation.registry import GRAMMAR, STRATEGIES, engine_of, strategies_of, strategy_of
from qhw_diffusion.mitigation.rewriting import folded, kept, with_isa, without_delays
from qhw_diffusion.mitigation.strategy import NOISE_DATA, Calibration, Cost, Need, Strategy
from qhw_diffusion.mitigation.twirling import PauliTwirling
from qhw_diffusion.mitigation.zne import EXTRAPOLATIONS, ZNE

__all__ = [
    "EXTRAPOLATIONS",
    "GRAMMAR",
    "NOISE_DATA",
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
    "Need",
    "PauliTwirling",
    "Readout",
    "Strategy",
    "check_strategies",
    "engine_of",
    "folded",
    "kept",
    "planned",
    "strategies_of",
    "strategy_of",
    "with_isa",
    "without_delays",
]
