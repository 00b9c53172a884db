"""A data set of your own: a function (split, data_root) that returns images, labels and their number of classes.

Here colour images of 9×12 pixels in three classes (horizontal stripes, vertical stripes, a disc), drawn on the spot. A
tiny backbone and an evaluation classifier are trained on them for a few steps, then images are sampled and measured.

From Python: as below. On the command line, wherever a data set is named:

    qhw train backbone --data examples/own_data_set.py:shapes --out runs/shapes-backbone
    qhw train classifier --data examples/own_data_set.py:shapes --role evaluation --out runs/shapes-evaluation
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qhw_diffusion import diffusion

HEIGHT, WIDTH = 9, 12


def shapes(split: str, data_root: Path | None) -> tuple[Tensor, Tensor, int]:
    """Coloured shapes on a dark ground.

    Args:
        split: "train" (600 images) or "heldout" (300 others).
        data_root: folder of files, which these images do not need.

    Returns:
        Images float32 [N, 3, 9, 12] in [-1, 1], labels int64 [N], and the number of classes, 3.
    """
    count, seed = (600, 0) if split == "train" else (300, 1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    shift = torch.randint(4, (count, 1, 1), generator=generator)
    disc = (y - HEIGHT / 2 + 2 - shift) ** 2 + (x - WIDTH / 2) ** 2 < 9
    masks = torch.stack([(y + shift) % 4 < 2, (x + shift) % 4 < 2, disc], dim=1)  # [N, 3 classes, H, W]
    mask = masks[torch.arange(count), labels][:, None].float()
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    return 2.0 * mask * (0.4 + 0.6 * colour) - 1.0, labels, 3


def main() -> None:
    """Train on it, sample, evaluate."""
    torch.set_num_threads(1)
    name = f"{__file__}:shapes"
    train, heldout = diffusion.load_dataset(name, "train"), diffusion.load_dataset(name, "heldout")
    recipe = diffusion.BackboneConfig.for_dataset(name, channels=(16,), steps=100, batch_size=64)
    backbone = diffusion.train_backbone(recipe, dataset=train)
    recipe_of_classifier = diffusion.ClassifierConfig.for_dataset(name, "evaluation", width=4, steps=60)
    classifier = diffusion.train_classifier(recipe_of_classifier, dataset=train, heldout=heldout)
    labels, generator = torch.arange(150) % 3, torch.Generator().manual_seed(0)
    noise = torch.randn(len(labels), *backbone.image_shape, generator=generator)
    images = diffusion.GuidedDDIM(backbone, n_steps=10).sample(labels, 1.5, noise)
    found = diffusion.evaluate_samples(images, labels, classifier, heldout)
    print(f"{train.image_shape} images, {train.n_classes} classes; the classifier sees {classifier.accuracy:.0%} right")
    print(
        f"samples: {found['accuracy']:.0%} as asked for, FD {found['fd']:.2f} in the evaluation classifier's features"
    )


if __name__ == "__main__":
    main()
