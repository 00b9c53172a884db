"""A study of your own: does the gradient of a policy circuit shrink with its depth?

A study is a configuration, a list of cells, a function that runs one cell, and a page. The runner does the rest:

    python examples/own_study.py
    qhw study examples/own_study.py:STUDY --depths 1,2,4,8 --workers 2 --out runs/depth
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qhw_diffusion import Device, QuantumLayer
from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.config import Config
from qhw_diffusion.experiment import Cell, Page, Results, Study, open_study, plots, run_study, write_page
from qhw_diffusion.guidance import compile_policy


@dataclass(frozen=True)
class DepthConfig(Config):
    """Gradients of the policy circuit at random angles, by depth."""

    depths: tuple[int, ...] = (1, 2, 4)
    """Layers of the circuit."""
    points: int = 200
    """Random points at which a gradient is taken."""
    seeds: int = 2
    """Seeds."""


def cells(config: DepthConfig) -> list[Cell]:
    """One cell a depth and seed."""
    return [
        Cell(f"depth{depth}-seed{seed}", {"depth": depth, "seed": seed})
        for depth in config.depths
        for seed in range(config.seeds)
    ]


def run_cell(config: DepthConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Variance of the gradient of the first ⟨Z⟩ by the inputs."""
    compiled = compile_policy(policy_circuit(4, cell["depth"]), Device.load("ideal"))
    generator = torch.Generator().manual_seed(cell["seed"])
    layer = QuantumLayer(compiled, "ideal")
    torch.nn.init.uniform_(layer.weight, -torch.pi, torch.pi, generator=generator)
    angles = 2 * torch.pi * torch.rand(config.points, len(compiled.inputs), generator=generator)
    angles.requires_grad_(True)
    (gradient,) = torch.autograd.grad(layer(angles)[:, 0].sum(), angles)
    return {"variance": float(gradient.var())}


def page(results: Results[DepthConfig]) -> Page:
    """One table and one plot."""
    depths = results.config.depths
    found = {depth: results.interval("variance", depth=depth) for depth in depths}
    shown = Page(findings=[f"At depth {d} the variance of a gradient is {v.format(4)}." for d, v in found.items()])
    section = shown.section("Variance of gradients").bullets(shown.findings)
    section.table(["depth", "variance"], [[d, v.format(4)] for d, v in found.items()])
    values = {"variance": {"measured": (depths, [results.values("variance", depth=d) for d in depths])}}
    section.figure(plots.against(values, xlabel="depth"), alt="Variance of the gradient against the depth.")
    return shown


STUDY = Study("depth", "Gradients and depth", DepthConfig, cells, run_cell, page)

if __name__ == "__main__":
    results = run_study(STUDY, open_study(STUDY, "runs/own-study", DepthConfig(), overwrite=True))
    print(*results.table.groupby("depth").value.mean().items(), write_page(results)[1])
