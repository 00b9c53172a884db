from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from qiskit import QuantumCircuit

import qhw_diffusion as qhw
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment import plots as figures


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_sample_grid_places_each_image() -> None:
    images = np.full((6, 1, 2, 2), -1.0)
    images[4] = 1.0
    tiled = figures._tile(images, rows=2)
    assert tiled.shape == (2 * 3, 3 * 3)
    assert np.all(tiled[3:5, 3:5] == 1.0)  # image 4 of 3 columns: second row, second column
    assert np.all(tiled[0:2, 0:2] == 0.0)
    assert png(figures.sample_grids({"a": images, "b": images}, rows=2)).startswith(b"\x89PNG")
    with pytest.raises(InvalidInputError, match="shape"):
        figures.sample_grids({"a": images[:, 0]})
    with pytest.raises(InvalidInputError, match="at least one"):
        figures.sample_grids({})


def test_trajectories_draw_mean_and_spread() -> None:
    g = np.stack([np.full(10, 1.0), np.linspace(1, 3, 10)])
    figure = figures.guidance_trajectories({"quantum": g}, n_steps=2, constant=1.2)
    line = figure.axes[0].lines[0]
    assert np.allclose(line.get_ydata(), [1.0, 2.0])
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(2.0 + g[1].std())
    assert png(figure)
    with pytest.raises(InvalidInputError, match="samples"):
        figures.guidance_trajectories({"quantum": g}, n_steps=5)


def test_steered_images_stand_under_their_caption_with_their_scales() -> None:
    colour, grey = np.zeros((2, 3, 4, 4)), np.ones((2, 1, 4, 4))
    g = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    figure = figures.steered_images(["a cat", "a dog"], {"constant": colour, "policy": grey}, {"policy": g})
    axes = figure.axes  # two columns: two rows of images and one of scales
    assert [axis.get_title() for axis in axes] == ["a cat", "a dog", "", "", "", ""]
    assert axes[1].images[0].get_array().shape == (4, 4, 3)
    assert axes[3].images[0].get_array().shape == (4, 4)
    assert np.array_equal(axes[5].lines[0].get_ydata(), g[:, 1])
    assert axes[4].get_ylim() == axes[5].get_ylim()
    assert png(figure)
    for images, scales in (({"a": colour[:1]}, {"a": g}), ({"a": colour}, {"a": g[:, :1]}), ({}, {"a": g})):
        with pytest.raises(InvalidInputError, match="need"):
            figures.steered_images(["a cat", "a dog"], images, scales)


def test_trajectories_of_labels_are_means_of_their_images() -> None:
    figure = figures.labelled_trajectories({"a": [[1.0, 3.0], [2.0, 2.0]], "b": [[5.0], [6.0]]}, constant=1.5)
    assert [line.get_ydata()[0] for line in figure.axes[0].lines[:2]] == [2.0, 5.0]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b", "best constant 1.5"]
    assert png(figure)


def test_learning_curves_show_every_seed_and_the_mean() -> None:
    rng = np.random.default_rng(0)
    figure = figures.learning_curves({"a": rng.normal(size=(3, 20)), "b": rng.normal(size=(2, 20))}, baseline=0.0)
    assert len(figure.axes[0].lines) == 3 + 1 + 2 + 1 + 1
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()][:2] == ["a (3 seeds)", "b (2 seeds)"]
    assert png(figure)
    assert png(figures.log_curves({"a": [[1e-3, 1e-2]]}, ylabel="norm"))


def test_smoothing_keeps_lines_and_length() -> None:
    line = np.linspace(0, 1, 11)
    assert np.allclose(figures.smoothed(line)[2:-2], line[2:-2])
    assert len(figures.smoothed([1.0])) == 1


def test_sweep_and_comparison() -> None:
    assert png(figures.sweep_curve([1, 1.2, 3], [3, 2, 5], [2, 2.5, 6], chosen=1.2, floor=1.0))
    figure = figures.comparison({"a": [1.0, 2.0, 3.0], "b": [2.0]}, xlabel="FD", mark=0.0)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert png(figure)


def test_circuit_drawing_leaves_idle_qubits_out() -> None:
    circuit = QuantumCircuit(50)
    circuit.h(7)
    circuit.cx(7, 9)
    figure = figures.circuit_drawing(circuit)
    assert figure.get_size_inches()[1] < 4
    assert png(figure)


@pytest.mark.parametrize("name", ["fake_manila", "fake_torino", "fake_marrakesh"])
def test_every_qubit_of_a_device_has_its_own_place(name: str) -> None:
    target = qhw.Device.load(name).target
    assert target is not None
    edges = [(a, b) for a, b in target.build_coupling_map().get_edges() if a < b]
    place = figures._coordinates(target.num_qubits, edges)
    assert len(set(place.values())) == target.num_qubits
    lengths = [np.hypot(*(np.subtract(place[a], place[b]))) for a, b in edges]
    assert max(lengths) == pytest.approx(1.0)  # heavy-hex drawn as a lattice: no long edges
    assert png(figures.device_layout(target, [0, 1, 2], title=name))


def test_a_coupling_map_that_is_no_lattice_goes_on_a_circle() -> None:
    place = figures._coordinates(4, [(0, 2), (0, 3)])
    assert len(set(place.values())) == 4
