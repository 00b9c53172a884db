"""Data sets of a user's own: named as module:name or file.py:name, checked, and followed by all that is built on it."""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path

import pytest
import torch
from calibrations import few_calibration_images  # noqa: F401 - for every test here

from qhw_diffusion import diffusion, guidance
from qhw_diffusion.diffusion import (
    Backbone,
    BackboneConfig,
    Classifier,
    ClassifierConfig,
    GuidedDDIM,
    ImageDataset,
    datasets,
)
from qhw_diffusion.errors import InvalidInputError, MissingDataError, UnknownNameError
from qhw_diffusion.extensions import load_extension
from qhw_diffusion.runs import RunFolder

SHAPE, CLASSES = (3, 9, 14), 3
BANDS = """
    import torch

    calls = []

    def bands(split, data_root):
        calls.append((split, data_root))
        count = 240 if split == "train" else 90
        generator = torch.Generator().manual_seed(0 if split == "train" else 1)
        labels = torch.arange(count) % 3
        images = torch.full((count, 3, 9, 14), -1.0)
        for row, label in enumerate(labels.tolist()):
            images[row, label, 3 * label : 3 * label + 3] = 0.8  # a band of its own colour and height
        return images + 0.1 * torch.rand(images.shape, generator=generator), labels, 3
"""


def written(folder: Path, source: str, name: str) -> str:
    """A user's file with this source; returns file.py:name."""
    path = folder / "own.py"
    path.write_text(textwrap.dedent(source))
    return f"{path}:{name}"


@pytest.fixture
def bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("QHW_DATA_ROOT", raising=False)
    return written(tmp_path, BANDS, "bands")


def test_the_function_is_asked_for_each_split_and_told_the_folder(bands: str, tmp_path: Path) -> None:
    from qhw_diffusion.extensions import load_extension

    train, heldout = (diffusion.load_dataset(bands, split, tmp_path) for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (240, 90)
    assert (train.image_shape, train.n_classes, train.name, train.split) == (SHAPE, CLASSES, bands, "train")
    assert (heldout.name, heldout.split) == (bands, "heldout")
    calls = load_extension(bands.replace(":bands", ":calls"), what="list")
    assert calls == [("train", tmp_path), ("heldout", tmp_path)]
    assert (diffusion.image_shape_of(bands, tmp_path), diffusion.n_classes_of(bands, tmp_path)) == (SHAPE, CLASSES)
    assert len(calls) == 2  # remembered
    assert diffusion.n_classes_of(bands) == CLASSES  # in no folder it is another data set
    assert calls[2:] == [("train", None)]


def test_an_own_function_becomes_a_built_in_data_set_as_it_is(bands: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets._FUNCTIONS, "bands", load_extension(bands, what="data set"))
    built, own = (diffusion.load_dataset(name, "heldout") for name in ("bands", bands))
    assert torch.equal(built.images, own.images)
    assert (built.name, datasets.image_shape_of("bands")) == ("bands", own.image_shape)
    with pytest.raises(UnknownNameError, match="did you mean bands"):
        diffusion.load_dataset("bandz")


def test_the_folder_may_come_from_the_environment(bands: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qhw_diffusion.extensions import load_extension

    monkeypatch.setenv("QHW_DATA_ROOT", str(tmp_path))
    diffusion.load_dataset(bands)
    assert load_extension(bands.replace(":bands", ":calls"), what="list") == [("train", tmp_path)]


def test_a_function_may_return_the_data_set_itself(tmp_path: Path) -> None:
    source = """
        import torch
        from qhw_diffusion.diffusion import ImageDataset

        def own(split, data_root):
            generator = torch.Generator().manual_seed(len(split))
            images = torch.rand(6, 1, 4, 4, generator=generator) * 2 - 1
            return ImageDataset(images, torch.arange(6) % 2, "a name", split, 2)
    """
    name = written(tmp_path, source, "own")
    assert diffusion.load_dataset(name).name == name  # so that what was trained on it finds it again


def test_a_module_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_bands.py").write_text(textwrap.dedent(BANDS))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert diffusion.load_dataset("module_of_bands:bands").n_classes == CLASSES


# -- faults of a user's function: named, with what was wanted --------------------------------------------------------

GOOD = "torch.rand(6, 1, 4, 4) * 2 - 1"
FAULTS = {
    "no channels": (f"return ({GOOD})[:, 0], torch.arange(6) % 2, 2", r"\[6, 4, 4\].*\[N, C, H, W\] in \[-1, 1\]"),
    "0 to 255": (f"return ({GOOD} + 1) * 127.5, torch.arange(6) % 2, 2", r"pixels go from .* \[-1, 1\]"),
    "NaN": (f"return ({GOOD}) * float('nan'), torch.arange(6) % 2, 2", "NaN or infinite"),
    "NumPy": (f"return ({GOOD}).numpy(), torch.arange(6) % 2, 2", r"numpy\.ndarray.*torch\.from_numpy"),
    "a label too many": (f"return {GOOD}, torch.arange(6) % 3, 2", "labels run from 0 to 2; allowed: 0 to 1"),
    "float labels": (f"return {GOOD}, torch.arange(6) / 6, 2", r"float32.*int64 \[6\]"),
    "fewer labels": (f"return {GOOD}, torch.arange(5) % 2, 2", "5 labels for 6"),
    "empty": (f"return ({GOOD})[:0], torch.arange(0), 2", "no images"),
    "classes as text": (f"return {GOOD}, torch.arange(6) % 2, '2'", "n_classes '2'"),
    "two things": (f"return {GOOD}, torch.arange(6) % 2", "is a tuple of 2; need a function"),
    "nothing": ("pass", "is a NoneType; need a function"),
    "another split": (
        f"return ImageDataset({GOOD}, torch.arange(6) % 2, 'x', 'heldout', 2)",
        "ImageDataset of split 'heldout': the function must heed",
    ),
    "a mistake": ("return 1 / 0", "fails with ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_the_extension_and_what_is_wanted(fault: str, tmp_path: Path) -> None:
    body, message = FAULTS[fault]
    source = (
        f"import torch\nfrom qhw_diffusion.diffusion import ImageDataset\n\ndef own(split, data_root):\n    {body}\n"
    )
    name = written(tmp_path, source, "own")
    for ask in (diffusion.load_dataset, diffusion.image_shape_of, BackboneConfig.for_dataset):
        with pytest.raises(InvalidInputError, match=f"(?s)own.py:own', split 'train'.*{message}"):
            ask(name)


def test_what_is_no_such_function(tmp_path: Path) -> None:
    name = written(tmp_path, "number = 3\ndef one(split):\n    return split\n", "number")
    with pytest.raises(InvalidInputError, match=r"own.py:number' is of type int; need a function \(split, data_root\)"):
        diffusion.load_dataset(name)
    with pytest.raises(InvalidInputError, match=r"own.py:one' cannot be called as function\(split, data_root\)"):
        diffusion.load_dataset(name.replace(":number", ":one"))
    with pytest.raises(InvalidInputError, match="has no 'two'"):
        diffusion.load_dataset(name.replace(":number", ":two"))
    with pytest.raises(UnknownNameError, match=r"did you mean digits.*module:name or file\.py:name"):
        diffusion.load_dataset("digit")


def test_absent_files_are_missing_data(tmp_path: Path) -> None:
    source = "def own(split, data_root):\n    open(data_root / 'images.bin')\n"
    with pytest.raises(MissingDataError, match=r"own.py:own', split 'train': .*images\.bin"):
        diffusion.load_dataset(written(tmp_path, source, "own"), data_root=tmp_path)


@pytest.mark.parametrize(
    ("heldout", "message"),
    [
        ("torch.zeros(6, 1, 4, 4) - 0.5, torch.arange(6) % 2, 2", "same images for both splits"),
        ("torch.zeros(6, 1, 4, 5) - 0.5, torch.arange(6) % 2, 2", "1×4×4 images of 2 classes in split 'train'"),
        ("torch.zeros(6, 1, 4, 4) - 0.4, torch.arange(6) % 2, 3", "of 3 classes in split 'heldout'"),
    ],
)
def test_splits_that_do_not_fit(tmp_path: Path, heldout: str, message: str) -> None:
    source = f"""
        import torch

        def own(split, data_root):
            if split == "heldout":
                return {heldout}
            return torch.zeros(6, 1, 4, 4) - 0.5, torch.arange(6) % 2, 2
    """
    name = written(tmp_path, source, "own")
    diffusion.load_dataset(name)
    with pytest.raises(InvalidInputError, match=message):
        diffusion.load_dataset(name, "heldout")


# -- what follows from the data --------------------------------------------------------------------------------------


def of_shape(shape: tuple[int, int, int], count: int = 30, n_classes: int = 3) -> ImageDataset:
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return ImageDataset(images, torch.arange(count) % n_classes, "made here", "train", n_classes)


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 5, 7), (2, 8, 31), (3, 9, 14), (1, 17, 40), (3, 32, 32), (3, 96, 64)])
def test_recipes_follow_from_the_size(shape: tuple[int, int, int]) -> None:
    data = of_shape(shape)
    config = BackboneConfig.for_dataset(data)
    assert (config.dataset, config.image_shape, config.n_classes) == ("made here", shape, 3)
    _, height, width = shape
    rows, columns = config.padding
    assert (height + rows) % config.side_factor == (width + columns) % config.side_factor == 0
    assert max(rows, columns) < config.side_factor
    if len(config.channels) > 1:  # with one level padding comes from the patch alone
        assert (height + rows) * (width + columns) <= 1.25 * height * width
    backbone = Backbone(config).eval()
    eps, _ = backbone.predict(torch.zeros(2, *shape), 10, torch.tensor([0, 2]))
    assert eps.shape == (2, *shape)
    for role in ("reward", "evaluation"):
        classifier = Classifier(ClassifierConfig.for_dataset(data, role)).eval()
        assert classifier.logits(data.images).shape == (30, 3)
    assert BackboneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_padding_is_cut_off_and_what_it_holds_is_nothing() -> None:
    """The network is told of the image alone: the padded U-Net on the image is the U-Net on the padded image."""
    config = BackboneConfig(image_shape=(1, 7, 5), channels=(8, 8), attention=(False, False))
    assert (config.side_factor, config.padding) == (4, (1, 3))
    torch.manual_seed(0)
    backbone = Backbone(config).eval()
    wide = Backbone(config.replace(image_shape=(1, 8, 8))).eval()
    wide.unet.load_state_dict(backbone.unet.state_dict())
    x, t, labels = torch.randn(2, 1, 7, 5), 300, torch.tensor([1, 2])
    padded = torch.zeros(2, 1, 8, 8)
    padded[..., :7, :5] = x
    with torch.no_grad():
        torch.testing.assert_close(backbone(x, t, labels), wide(padded, t, labels)[..., :7, :5])


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"3 levels after patches of 2×2 .*7×20 images.* is 8, at most 7 fits"):
        BackboneConfig(image_shape=(1, 7, 20), channels=(8, 8, 8), attention=(False,) * 3)
    with pytest.raises(InvalidInputError, match="2×2 pixels or more, got 1×9"):
        ClassifierConfig(image_shape=(1, 1, 9))


def test_nothing_is_shipped_for_it(bands: str) -> None:
    for load, what, shipped in (
        (Backbone.load, "backbone", "cifar10, digits"),
        (lambda n: Classifier.load(n, "reward"), "reward classifier", "cifar10, coloured-digits, digits"),
    ):
        told = rf".* \(but for {shipped}\): train one"
        with pytest.raises(MissingDataError, match=f"no {what} comes with the package for data set {told}"):
            load(bands)
    with pytest.raises(MissingDataError, match="for data set 'mnist16'"):
        Backbone.load("mnist16")


@pytest.mark.slow
def test_a_colour_data_set_from_its_file_to_a_policy(bands: str, tmp_path: Path) -> None:
    """Backbone, both classifiers, sampling, evaluation and an update of a guidance policy, all from the data's name."""
    config = BackboneConfig.for_dataset(bands, channels=(16,), steps=80, batch_size=32, learning_rate=4e-3)
    assert (config.image_shape, config.n_classes, config.padding) == (SHAPE, CLASSES, (1, 0))
    with RunFolder.create(tmp_path / "backbone", kind="backbone", config=config.to_dict()) as run:
        diffusion.train_backbone(config, run)
    backbone = Backbone.load(tmp_path / "backbone")
    assert (backbone.name, backbone.config) == (bands, config)
    loss = [entry["loss"] for entry in backbone.history]
    assert loss[-1] < 0.7 * loss[0]
    classifiers = {}
    for role in ("reward", "evaluation"):
        recipe = ClassifierConfig.for_dataset(bands, role, width=8, n_features=16, steps=60)
        classifiers[role] = diffusion.train_classifier(recipe)
        assert classifiers[role].accuracy == 1.0  # the classes differ in colour and place
    heldout, train = diffusion.load_dataset(bands, "heldout"), diffusion.load_dataset(bands)
    labels, generator = torch.arange(60) % CLASSES, torch.Generator().manual_seed(0)
    noise = torch.randn(60, *SHAPE, generator=generator)
    images = GuidedDDIM(backbone, 8).sample(labels, 1.0, noise)
    evaluated = diffusion.evaluate_samples(images, labels, classifiers["evaluation"], heldout)
    unguided = GuidedDDIM(backbone, 8).sample(labels.roll(1), 1.0, noise)
    wrong = diffusion.evaluate_samples(unguided, labels, classifiers["evaluation"], heldout)
    assert evaluated["accuracy"] > wrong["accuracy"] + 0.3  # the label decides what is made
    assert all(math.isfinite(value) for value in evaluated.values())
    assert diffusion.paired_similarity(images, unguided)["psnr"] < 40
    means = guidance.rewards.class_means(train)
    assert means.shape == (CLASSES, *SHAPE)

    sampler = guidance.GuidanceConfig(dataset=bands, n_steps=4, noise_pool=24)
    ppo = guidance.PPOConfig(num_iterations=1, num_envs=12, num_minibatches=2, update_epochs=1)
    reward = guidance.RewardConfig(confidence=0.1, stepwise=0.1, stepwise_kind="ssim", total_variation=0.01)
    seen = []
    trained = guidance.train_guidance(
        sampler, ppo, reward, guidance.PolicyConfig(kind="mlp"), backbone=backbone, scorer=classifiers["reward"],
        on_update=lambda update, metrics: seen.append(metrics),
    )  # fmt: skip
    assert len(seen) == 1
    assert math.isfinite(seen[0]["charts/episodic_return"])
    played = guidance.rollout(backbone, trained.config, labels, noise, trained.policy, scorer=classifiers["reward"])
    assert played.images.shape == (60, *SHAPE)
    assert diffusion.evaluate_samples(played.images, labels, classifiers["evaluation"], heldout)["fd"] > 0


def test_a_training_needs_no_evaluation_classifier_and_an_evaluation_does(bands: str, tmp_path: Path) -> None:
    from qhw_diffusion.guidance.config import ModelConfig
    from qhw_diffusion.guidance.evaluation import load_models

    Backbone(BackboneConfig.for_dataset(bands, channels=(8,))).save(tmp_path / "backbone")
    for role in ("reward", "evaluation"):
        Classifier(ClassifierConfig.for_dataset(bands, role, width=4)).save(tmp_path / role)
    config = ModelConfig(data=bands, backbone=str(tmp_path / "backbone"), reward_classifier=str(tmp_path / "reward"))
    assert load_models(config, evaluates=False).reward.name == bands
    with pytest.raises(MissingDataError, match="no evaluation classifier comes with the package"):
        load_models(config)
    with pytest.raises(InvalidInputError, match="must never evaluate"):
        load_models(config.replace(evaluation_classifier=str(tmp_path / "reward")))
    with pytest.raises(InvalidInputError, match=r"evaluation classifier 'digits' .*do not fit"):
        load_models(config.replace(evaluation_classifier="digits"))
    whole = load_models(config.replace(evaluation_classifier=str(tmp_path / "evaluation")))
    assert whole.heldout_features.shape == (90, whole.evaluation_classifier.n_features)


def test_pictures_of_it_can_be_drawn(bands: str) -> None:
    from qhw_diffusion.experiment.plots import sample_grids

    data = diffusion.load_dataset(bands)
    (axis,) = sample_grids({"bands": data.images[:8].numpy()}, rows=2).axes
    picture = axis.get_images()[0].get_array()
    assert picture.shape[2] == 3
    assert picture.shape[0] < picture.shape[1]


def test_a_denoiser_of_a_colour_data_set(bands: str) -> None:
    """Everything a tiny quantum denoiser needs follows from the data: labels, and the shape of what comes out."""
    from qhw_diffusion import denoising

    train, heldout = diffusion.load_dataset(bands), diffusion.load_dataset(bands, "heldout")
    config = denoising.AutoencoderConfig(image_shape=train.image_shape, latent_qubits=3, steps=20)
    autoencoder = denoising.train_autoencoder(config, train, heldout)
    reverse = denoising.ReverseConfig(
        n_qubits=3, n_steps=2, depth=2, conditioning="weights", n_labels=train.n_classes, ancillas=1
    )
    model = denoising.LatentQDM(reverse, denoising.ForwardConfig(), autoencoder=autoencoder)
    settings = denoising.TrainConfig("mmd", iterations=2, batch_size=12, targets=12)
    history = denoising.train_qdm(model, train.images, settings, labels=train.labels)
    assert all(math.isfinite(row["losses/train"]) for row in history)
    labels = torch.arange(12) % CLASSES
    made = model.images(model.sample(12, torch.Generator().manual_seed(0), labels).states)
    recipe = ClassifierConfig.for_dataset(bands, "evaluation", width=4, n_features=8, steps=2)
    found = diffusion.evaluate_samples(made, labels, diffusion.train_classifier(recipe), heldout)
    assert made.shape == (12, *SHAPE)
    assert math.isfinite(found["fd"])
