"""What a fine-tuning of a denoiser on a device is: its configuration.

Light: the command line shows it without loading what runs circuits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qhw_diffusion.config import check_whole, require
from qhw_diffusion.on_device.settings import TuningConfig

# of one update: their parameters have to fit into memory to be sent
MOST_UPDATE_IMAGES = 100_000


@dataclass(frozen=True)
class DenoiserTuningConfig(TuningConfig):
    """What decides the numbers of a denoiser's fine-tuning; it goes on with exactly these."""

    label_images: int = 0
    """Images of every label in an update, a circuit each; 0: as many as the training had."""
    learning_rate: float = 0.01
    """Learning rate of Adam for all parameters of the reverse process; falls to zero by a cosine."""
    evaluation_classifier: str = ""
    """Folder of the evaluation classifier of the comparison; without it the one shipped for the data set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "label_images", least=0)
        most = MOST_UPDATE_IMAGES
        require(self.label_images != 1, "label_images is 1; allowed: 2 or more, whose spread is compared, or 0")
        require(self.label_images <= most, f"label_images is {self.label_images}; allowed: at most {most:,}")
        rate = self.learning_rate
        require(math.isfinite(rate) and rate > 0, f"learning_rate is {rate}; allowed: positive numbers")
