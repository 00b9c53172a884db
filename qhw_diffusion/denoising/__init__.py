"""Quantum diffusion models: forward processes, reverse circuits, losses, training, sampling, reading images out."""

from __future__ import annotations

from qhw_diffusion.denoising.autoencoder import AutoencoderConfig, LatentAutoencoder, train_autoencoder
from qhw_diffusion.denoising.baselines import ClassicalDenoiser, LinearMap
from qhw_diffusion.denoising.channels import choi_matrix, is_completely_positive, is_trace_preserving, superoperator_of
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.deferred import Denoised, DenoiserLayer, compile_deferred
from qhw_diffusion.denoising.device_noise import DeviceNoise
from qhw_diffusion.denoising.ensembles import (
    fidelity_matrix,
    mean_fidelity,
    measured_fidelity_matrix,
    mmd,
    superfidelity_matrix,
    wasserstein,
)
from qhw_diffusion.denoising.forward import (
    Depolarizing,
    ForwardProcess,
    GaussianAmplitudes,
    NoiseSchedule,
    Scrambling,
    noise_schedule,
)
from qhw_diffusion.denoising.hybrid import HybridBackbone, HybridConfig
from qhw_diffusion.denoising.losses import fidelity, hilbert_schmidt, infidelity, trace_distance
from qhw_diffusion.denoising.models import (
    QDM,
    RECONSTRUCTION,
    AmplitudeQDM,
    DensityMatrixQDM,
    EnsembleQDM,
    ForwardConfig,
    LatentQDM,
)
from qhw_diffusion.denoising.quotient import Quotient, quotient_of
from qhw_diffusion.denoising.readout import (
    ImageEstimate,
    images_from_counts,
    images_from_states,
    images_from_strings,
    sample_counts,
    sample_images,
    shots_needed,
)
from qhw_diffusion.denoising.reverse import ReverseProcess, Trajectory
from qhw_diffusion.denoising.saving import from_pretrained, save_pretrained
from qhw_diffusion.denoising.states import (
    as_density,
    check_density,
    check_pure,
    decode_images,
    encode_images,
    haar_states,
)
from qhw_diffusion.denoising.training import MixedStateWarning, TrainConfig, check_qdm_training, train_qdm

__all__ = [
    "QDM",
    "RECONSTRUCTION",
    "AmplitudeQDM",
    "AutoencoderConfig",
    "ClassicalDenoiser",
    "Denoised",
    "DenoiserLayer",
    "DensityMatrixQDM",
    "Depolarizing",
    "DeviceNoise",
    "EnsembleQDM",
    "ForwardConfig",
    "ForwardProcess",
    "GaussianAmplitudes",
    "HybridBackbone",
    "HybridConfig",
    "ImageEstimate",
    "LatentAutoencoder",
    "LatentQDM",
    "LinearMap",
    "MixedStateWarning",
    "NoiseSchedule",
    "Quotient",
    "ReverseConfig",
    "ReverseProcess",
    "Scrambling",
    "TrainConfig",
    "Trajectory",
    "as_density",
    "check_density",
    "check_pure",
    "check_qdm_training",
    "choi_matrix",
    "compile_deferred",
    "decode_images",
    "encode_images",
    "fidelity",
    "fidelity_matrix",
    "from_pretrained",
    "haar_states",
    "hilbert_schmidt",
    "images_from_counts",
    "images_from_states",
    "images_from_strings",
    "infidelity",
    "is_completely_positive",
    "is_trace_preserving",
    "mean_fidelity",
    "measured_fidelity_matrix",
    "mmd",
    "noise_schedule",
    "quotient_of",
    "sample_counts",
    "sample_images",
    "save_pretrained",
    "shots_needed",
    "superfidelity_matrix",
    "superoperator_of",
    "trace_distance",
    "train_autoencoder",
    "train_qdm",
    "wasserstein",
]
