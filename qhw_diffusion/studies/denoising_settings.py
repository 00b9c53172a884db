"""Settings of a denoising study, and the rows of its table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qhw_diffusion.config import Config
from qhw_diffusion.denoising import RECONSTRUCTION, ForwardConfig, ReverseConfig, TrainConfig
from qhw_diffusion.denoising.baselines import ClassicalProcess, LinearProcess
from qhw_diffusion.denoising.states import qubits_for
from qhw_diffusion.diffusion.datasets import image_shape_of
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.runs import settings_from_dict

# What is trained, and what it is called.
ARMS = {
    "postselected": "ancillas post-selected",
    "measured": "ancillas measured, outcomes kept",
    "feedforward": "measured, outcomes fed forward",
    "noise": "post-selected, trained under noise",
    "reconstruction": "1,110-parameter reconstruction",
    "contraction": "trained linear map (any contraction)",
    "classical": "classical network of equal size",
}
# Trained by the same loop with no circuit in them.
RIVALS = {"contraction": LinearProcess, "classical": ClassicalProcess}
# What is drawn without a training of its own.
CONTROLS = {
    "frozen": "random circuit, not trained",
    "bypass": "circuit bypassed",
    "linear": "linear map in closed form",
    "linear1": "linear map of rank 1 (mean image)",
}


@dataclass(frozen=True)
class DenoisingStudyConfig:
    """One denoising study: models, rivals and controls on one data set.

    Attributes:
        data: digits, mnist16, mnist28, fashion16 or fashion28.
        data_root: folder of the data set, in torchvision's layout.
        classes: labels used, in order; empty: all ten.
        latent_qubits: qubits of the autoencoder's latent; 0: the pixels themselves are the amplitudes.
        n_steps: T.
        depth: layers of a step.
        ancillas: ancillas of the post-selected models.
        measured_ancillas: ancillas of the measured models.
        arms: what is trained: postselected, measured, feedforward, noise, reconstruction, contraction, classical.
        device: fake device or snapshot of the noisy rows.
        iterations: updates of a training.
        noise_iterations: further updates under noise of the arm "noise", which starts from the post-selected weights.
        batch_size: samples a label in an update.
        targets: data a label in an update.
        learning_rate: of Adam.
        similarity: what training compares states by. "measured": the magnitudes of their amplitudes, which is all that
            a device gives and the decoder sees; "fidelity": signs and phases too ("superfidelity" under noise), which
            pixels need.
        kernels: widths of the Gaussian kernels of the MMD, beside the fidelity kernel.
        probability_weight: weight of −log(success) in the loss of post-selected models.
        autoencoder_steps: updates of the autoencoder.
        eval_images: images a row and seed.
        shots: shots an image in the rows with shots, of which post-selection, or the image's record of outcomes, leaves
            a share.
        seeds: number of seeds: a seed is one training of everything and one evaluation.
    """

    data: str = "digits"
    data_root: str | None = None
    classes: tuple[int, ...] = ()
    latent_qubits: int = 3
    n_steps: int = 4
    depth: int = 8
    ancillas: int = 1
    measured_ancillas: int = 2
    arms: tuple[str, ...] = ("postselected", "measured", "feedforward", "noise", "contraction", "classical")
    device: str = "fake_marrakesh"
    iterations: int = 500
    noise_iterations: int = 60
    batch_size: int = 12
    targets: int = 48
    learning_rate: float = 0.03
    similarity: str = "measured"
    kernels: tuple[float, ...] = (0.3, 0.1)
    probability_weight: float = 0.002
    autoencoder_steps: int = 1500
    eval_images: int = 600
    shots: int = 4096
    seeds: int = 5

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or "postselected" not in self.arms:
            raise InvalidInputError(f"arms are {self.arms}; allowed: {', '.join(ARMS)}, with postselected among them")
        if len(set(self.classes)) != len(self.classes) or any(not 0 <= y <= 9 for y in self.classes):
            raise InvalidInputError(
                f"classes are {self.classes}; allowed: different labels from 0 to 9, or none for all"
            )
        if len(self.classes) == 1:
            raise InvalidInputError(
                "classes has one label; a conditioned model needs two or more (or none for all ten)"
            )
        if "reconstruction" in self.arms and (self.latent_qubits, len(self.labels)) != (3, 10):
            raise InvalidInputError("the reconstruction is a model of ten classes in a latent space of three qubits")
        if self.eval_images < 20 or self.seeds < 1 or self.shots < 1:
            raise InvalidInputError("eval_images is 20 or more, seeds and shots are 1 or more")

    @property
    def labels(self) -> tuple[int, ...]:
        """The classes in use."""
        return self.classes or tuple(range(10))

    def reverse(self, arm: str, seed: int, n_qubits: int) -> ReverseConfig:
        """Reverse process of an arm."""
        if arm == "reconstruction":
            return replace(RECONSTRUCTION, seed=seed)
        measured = arm in ("measured", "feedforward")
        return ReverseConfig(
            n_qubits=n_qubits,
            n_steps=self.n_steps,
            kind="measured" if measured else "postselected",
            ancillas=self.measured_ancillas if measured else self.ancillas,
            feed_forward=arm == "feedforward",
            depth=self.depth,
            conditioning="angles",
            n_labels=len(self.labels),
            init_scale=3.0 if arm == "frozen" else 0.1,
            seed=seed,
        )

    @property
    def forward(self) -> ForwardConfig:
        """Complex Gaussian noise on amplitudes, cosine schedule."""
        return ForwardConfig("gaussian", "cosine")

    def training(self, arm: str, seed: int) -> TrainConfig:
        """Training settings of an arm: all steps together, on the ensembles that come out."""
        base = TrainConfig(
            "mmd",
            "joint",
            iterations=self.iterations,
            batch_size=self.batch_size,
            targets=self.targets,
            kernels=("fidelity", *self.kernels),
            similarity="superfidelity" if arm == "noise" and self.similarity == "fidelity" else self.similarity,
            learning_rate=self.learning_rate,
            probability_weight=self.probability_weight,
            seed=seed,
        )
        if arm == "noise":  # from trained weights on: smaller steps
            return replace(base, iterations=self.noise_iterations, learning_rate=self.learning_rate / 3)
        return base

    def rows(self) -> list[str]:
        """Rows of the table, ``arm`` or ``arm@how``: how is noisy, shots or noisy-shots."""
        found = ["postselected", "postselected@noisy", "postselected@shots", "postselected@noisy-shots"]
        if "noise" in self.arms:
            found += ["noise@noisy", "noise@noisy-shots"]
        for arm in ("measured", "feedforward"):
            if arm in self.arms:
                found += [arm, f"{arm}@noisy", f"{arm}@shots"]
        found += [arm for arm in ("reconstruction", *RIVALS) if arm in self.arms]
        return [*found, *CONTROLS]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DenoisingStudyConfig:
        """Raises InvalidInputError on unknown entries."""
        return settings_from_dict(cls, data, "a denoising study")


MODELS = ("latent", "amplitude")
_STUDY = DenoisingStudyConfig()


@dataclass(frozen=True)
class DenoiserTraining(Config):
    """Everything that decides one training of a quantum denoiser."""

    model: str = "latent"
    """Model: latent (in the latent space of an autoencoder) or amplitude (pixels as amplitudes)."""
    data: str = "digits"
    """Data set: digits, mnist16, mnist28, fashion16 or fashion28."""
    data_root: str | None = None
    """Folder that holds MNIST or FashionMNIST (torchvision's layout); digits need none."""
    autoencoder_steps: int = _STUDY.autoencoder_steps
    """Updates of the autoencoder."""
    reverse: ReverseConfig = field(
        default_factory=lambda: replace(_STUDY.reverse("postselected", 0, _STUDY.latent_qubits), n_labels=10)
    )
    """Reverse process; its number of labels is ten, or one without conditioning."""
    forward: ForwardConfig = field(default_factory=lambda: _STUDY.forward)
    """Forward process."""
    train: TrainConfig = field(default_factory=lambda: _STUDY.training("postselected", 0))
    """Training; its seed is that of the reverse process."""

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UnknownNameError.of("model", self.model, MODELS)
        object.__setattr__(self, "train", replace(self.train, seed=self.reverse.seed))

    @classmethod
    def amplitude(cls, data: str = "digits") -> DenoiserTraining:
        """Defaults of the model of pixels: a qubit for every halving of them.

        On pixels, training by magnitudes alone failed: they are compared by fidelity.
        """
        base = cls(model="amplitude", data=data)
        qubits = qubits_for(image_shape_of(data))
        return base.replace(
            reverse=replace(base.reverse, n_qubits=qubits), train=replace(base.train, similarity="fidelity")
        )


HOW = {
    "": "ideal",
    "noisy": "with the device's noise",
    "shots": "ideal, finite shots",
    "noisy-shots": "with noise and finite shots",
}


def row_label(row: str) -> str:
    """What a table calls a row."""
    arm, _, how = row.partition("@")
    name = ARMS.get(arm) or CONTROLS[arm]
    return name if arm in CONTROLS or arm in RIVALS else f"{name}: {HOW[how]}"
