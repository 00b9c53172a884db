"""A data set for workers of a data loader. A new process imports this file alone, and not all that a test does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from qhw_diffusion.execution import QuantumLayer


class Evaluated(Dataset[Tensor]):
    """The values of one row each."""

    def __init__(self, circuit: QuantumLayer, rows: Tensor) -> None:
        self.circuit, self.rows = circuit, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            values: Tensor = self.circuit(self.rows[index : index + 1])[0]
        return values
