from __future__ import annotations

import pytest

from qhw_diffusion.diffusion import Backbone, Classifier, ImageDataset, load_dataset
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance import GuidanceConfig, Sweep, SweepRow, sweep_constants


def test_the_sweep_finds_the_base_and_the_range(
    backbone: Backbone, reward_classifier: Classifier, real: ImageDataset, config: GuidanceConfig
) -> None:
    seen: list[float] = []
    sweep = sweep_constants(
        backbone,
        reward_classifier,
        real,
        n_steps=4,
        scales=(5.0, 0.5, 1.3),
        n_images=120,
        on_scale=lambda row: seen.append(row.g),
    )
    assert seen == [row.g for row in sweep.rows] == [0.5, 1.3, 5.0]
    assert sweep.g0 == min(sweep.rows, key=lambda row: row.distance).g == 1.3
    assert sweep.rows[0].accuracy < 0.8 < sweep.rows[1].accuracy
    assert (sweep.g_min, sweep.g_max) == (0.0, 3.3)
    configured = sweep.configure(config)
    assert (configured.g0, configured.g_max, configured.n_steps) == (1.3, 3.3, 4)
    assert configured.spacing == "leading"
    assert not configured.calibrated  # other scales, other states


def test_the_sweep_is_of_the_spacing_it_was_asked_for(
    backbone: Backbone, reward_classifier: Classifier, real: ImageDataset, config: GuidanceConfig
) -> None:
    few = {"n_steps": 4, "scales": (1.3,), "n_images": 120}
    leading, trailing = (
        sweep_constants(backbone, reward_classifier, real, spacing=s, **few) for s in ("leading", "trailing")
    )
    assert leading.rows[0].distance != trailing.rows[0].distance
    assert trailing.configure(config).spacing == "trailing"


def test_the_sensible_range_is_connected_to_the_best() -> None:
    distances = {0.5: 0.2, 1.0: 0.9, 1.2: 0.25, 1.4: 0.1, 1.8: 0.29, 2.5: 0.31, 4.0: 0.2}
    rows = tuple(SweepRow(g, d, 1.0, 1.0) for g, d in distances.items())
    sweep = Sweep(rows, 1.4, 0.0, 3.4, n_steps=4, n_images=100)
    assert sweep.sensible() == (1.2, 1.8)
    assert sweep.sensible(5.0) == (1.2, 4.0)
    assert sweep.sensible(1.0) == (1.4, 1.4)


def test_the_evaluation_classifier_stays_unseen(
    backbone: Backbone, evaluation_classifier: Classifier, reward_classifier: Classifier, real: ImageDataset
) -> None:
    with pytest.raises(InvalidInputError, match="evaluation classifier"):
        sweep_constants(backbone, evaluation_classifier, real, n_steps=2)
    with pytest.raises(InvalidInputError, match="training split"):
        sweep_constants(backbone, reward_classifier, load_dataset("digits", split="heldout"), n_steps=2)


def test_too_few_images_to_compare_within_a_label_are_told_before_any_is_sampled(
    backbone: Backbone, reward_classifier: Classifier, real: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*_: object) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr("qhw_diffusion.guidance.sweep.rollout", unwanted)
    told = r"among its 40 there is one alone of label 2 and of label 5: take more .*--sweep-images; for 10 .* some 100"
    with pytest.raises(InvalidInputError, match=told):
        sweep_constants(backbone, reward_classifier, real, n_steps=2, n_images=40)
    with pytest.raises(AssertionError, match="sampled"):  # they are enough to compare with all labels
        sweep_constants(backbone, reward_classifier, real, n_steps=2, n_images=40, by_class=False)
