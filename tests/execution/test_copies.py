"""Layers copied, pickled, saved whole by torch, and inherited by worker processes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import qhw_diffusion as qhw
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import Engine, Hardware, ParameterShift, Shots, aer_estimator, runtime_estimator
from qhw_diffusion.hardware import Ledger, open_runner
from qhw_diffusion.mitigation import Mitigated, Readout

X = [Parameter("x")]
W = [Parameter("w")]


def compiled() -> qhw.CompiledCircuit:
    qc = QuantumCircuit(2)
    qc.ry(X[0], 0)
    qc.rx(W[0], 1)
    qc.cx(0, 1)
    return qhw.compile_circuit(
        qc,
        qhw.Device.load("fake_manila"),
        inputs=X,
        weights=W,
        observables=[SparsePauliOp("ZZ"), SparsePauliOp("IX")],
    )


COMPILED = compiled()
INPUTS = torch.tensor([[0.3], [1.2]])
ENGINES: dict[str, Callable[[Path], str | Engine]] = {
    "ideal": lambda folder: "ideal",
    "noisy": lambda folder: "noisy",
    "shots": lambda folder: Shots(100, seed=2),
    "mitigated": lambda folder: Mitigated(Shots(100, seed=2), [Readout("measured")]),
    "statevector": lambda folder: qhw.Primitive(StatevectorEstimator(seed=1)),
    "aer": lambda folder: qhw.Primitive(aer_estimator(COMPILED, seed=1), reduced=True),
    "client": lambda folder: qhw.Primitive(runtime_estimator(_manila(), legacy=True)),
    "hardware": lambda folder: Hardware(
        open_runner("fake_manila", ledger=Ledger.open(folder / "ledger"), run="copies"), shots=64
    ),
}


def _manila() -> object:
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    return FakeManilaV2()


def layer(engine: str, folder: Path) -> qhw.QuantumLayer:
    chosen = ENGINES[engine](folder)
    made = qhw.QuantumLayer(COMPILED, chosen, gradient=ParameterShift())
    made.double()
    return made


@pytest.mark.parametrize("engine", ENGINES)
def test_a_deep_copy_answers_as_the_layer_does_and_has_weights_of_its_own(engine: str, tmp_path: Path) -> None:
    original = layer(engine, tmp_path)
    twin = copy.deepcopy(original)
    assert twin.weight is not original.weight
    assert twin.compiled is original.compiled, "circuits do not change, so copies share them"
    assert type(twin.gradient) is ParameterShift
    with torch.no_grad():
        values, again = original(INPUTS), twin(INPUTS)
        twin.weight.add_(1)
        assert not torch.equal(original.weight, twin.weight)
    # estimators of others are shared and draw on; the rest repeats
    tolerance = 0.5 if engine in ("statevector", "aer", "client", "hardware") else 0
    torch.testing.assert_close(again, values, atol=tolerance, rtol=0)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name not in ("hardware", "client")])
def test_a_pickle_answers_as_the_layer_does(engine: str, tmp_path: Path) -> None:
    original = layer(engine, tmp_path)
    original(INPUTS)  # simulators have been made
    file = io.BytesIO()
    torch.save(original, file)
    assert file.tell() < 2_000_000, "simulators do not travel"
    file.seek(0)
    again = torch.load(file, weights_only=False)
    with torch.no_grad():
        torch.testing.assert_close(again(INPUTS), original(INPUTS), atol=0, rtol=0)
    assert again.compiled.inputs == COMPILED.inputs
    twice = pickle.loads(pickle.dumps(again))
    assert twice.engine.name == original.engine.name


@pytest.mark.parametrize("engine", ["hardware", "wrapped hardware"])
@pytest.mark.parametrize("save", [pickle.dumps, lambda thing: torch.save(thing, io.BytesIO())])
def test_a_ledger_cannot_be_pickled_and_says_what_to_do(
    engine: str, save: Callable[[object], object], tmp_path: Path
) -> None:
    hardware = ENGINES["hardware"](tmp_path)
    chosen = Mitigated(hardware, [Readout()]) if engine == "wrapped hardware" else hardware
    with pytest.raises(InvalidInputError, match=r"open ledger.*state_dict"):
        save(qhw.QuantumLayer(COMPILED, chosen))


def test_an_estimator_that_cannot_be_pickled_says_what_to_do() -> None:
    class Stubborn(StatevectorEstimator):
        def __reduce__(self) -> str:
            raise TypeError("cannot pickle '_thread.RLock' object")

    with pytest.raises(InvalidInputError, match=r"Stubborn cannot be pickled.*RLock.*state_dict"):
        pickle.dumps(qhw.QuantumLayer(COMPILED, qhw.Primitive(Stubborn())))


class Evaluated(Dataset[Tensor]):
    """Every item is the same circuit evaluated by the layer: equal but for shot noise."""

    def __init__(self, layer: qhw.QuantumLayer) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            values: Tensor = self.layer(INPUTS[:1])[0]
        return values


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["shots", "mitigated", "aer"])
def test_workers_of_a_data_loader_draw_different_noise(engine: str, tmp_path: Path) -> None:
    data = Evaluated(layer(engine, tmp_path))
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
    epochs = [torch.cat(list(loader)) for _ in range(2)]
    values = torch.cat(epochs)
    assert len({tuple(row.tolist()) for row in values}) >= 7, "eight evaluations with noise of their own"
    torch.testing.assert_close(values.std(0) > 0, torch.tensor([True, True]))
