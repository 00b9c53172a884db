"""Settings of trainings and studies: frozen dataclasses, each field documented, saved as JSON with every result."""

from __future__ import annotations

from dataclasses import dataclass

from qhw_diffusion.config import Config, require


@dataclass(frozen=True)
class ModelConfig(Config):
    """Data set, backbone and the two classifiers. A shipped one is named by its data set, others by their folder."""

    data: str = "digits"
    """Data set: digits, mnist16, mnist28, fashion16 or fashion28."""
    data_root: str | None = None
    """Folder that holds MNIST or FashionMNIST (torchvision's layout); digits need none."""
    backbone: str | None = None
    """Folder of a trained backbone; without it the one shipped for the data set."""
    reward_classifier: str | None = None
    """Folder of the reward classifier; without it the shipped one."""
    judge: str | None = None
    """Folder of the judging classifier; without it the shipped one."""
    reference_images: int = 5000
    """Training images (at most) that the reward side compares with, a fixed random choice."""

    def __post_init__(self) -> None:
        require(self.reference_images >= 10, f"reference_images must be at least 10, got {self.reference_images}")
