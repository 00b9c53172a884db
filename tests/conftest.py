"""Shared settings: one torch thread, so that numbers and timings do not depend on the machine's core count."""

from __future__ import annotations

import matplotlib
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)
