"""One process on several threads: the same bits on one, two and three, forked processes, and QHW_NUM_THREADS."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib.externals.loky import process_executor
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp
from torch.utils.data import DataLoader, Dataset

import qhw_diffusion as qhw
from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import cores, noise_trajectories, simulator
from qhw_diffusion.execution.cores import InOrder, in_blocks, number_of_threads
from qhw_diffusion.execution.evolution import Evolution
from qhw_diffusion.experiment.workers import _guarded

THREADS = (1, 2, 3)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that small circuits have several blocks, of unequal sizes where batches are odd."""
    monkeypatch.setattr(simulator, "WORK", 1)
    monkeypatch.setattr(simulator, "CHUNK_BYTES", 1)
    monkeypatch.setattr(simulator, "PRODUCT_BYTES", 1)
    monkeypatch.setattr(simulator, "UNITARY_BYTES", 1)
    monkeypatch.setattr(simulator, "UNITARY_COLUMNS", 8)
    monkeypatch.setattr(simulator, "THREAD_WORK", 1)
    monkeypatch.setattr(simulator, "TAIL_COLUMNS", 2)
    monkeypatch.setattr(noise_trajectories, "CHUNK_COLUMNS", (8, 8))
    monkeypatch.delenv("QHW_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@cache
def policy(device: str) -> qhw.CompiledCircuit:
    made = policy_circuit(n_qubits=3, depth=1, n_features=3)
    return qhw.compile_circuit(
        made.circuit, qhw.Device.load(device), inputs=made.inputs, weights=made.weights, observables=made.observables
    )


@cache
def conditional() -> qhw.CompiledCircuit:
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(2, 1)
    circuit.ry(x, 0)
    circuit.cx(0, 1)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.rx(w, 1)
    observables = [SparsePauliOp("ZI"), SparsePauliOp("YI")]
    return qhw.compile_circuit(
        circuit, qhw.Device.load("fake_manila"), inputs=[x], weights=[w], observables=observables
    )


def of_a_layer(compiled: Callable[[], qhw.CompiledCircuit], engine: str) -> Callable[[int], list[torch.Tensor]]:
    """Values with gradient and without, and the gradients, of a batch."""

    def run(batch: int) -> list[torch.Tensor]:
        layer = qhw.QuantumLayer(replace(compiled()), engine, seed=1)  # which shares nothing with others
        draws = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, layer.compiled.n_inputs, generator=draws).requires_grad_()
        values = layer(x)
        gradients = torch.autograd.grad((values * torch.randn(values.shape, generator=draws)).sum(), (x, layer.weight))
        return [values.detach(), layer.estimate(x.detach()).values, *gradients]

    return run


def of_an_evolution(engine: str) -> Callable[[int], list[torch.Tensor]]:
    def run(batch: int) -> list[torch.Tensor]:
        step = Evolution(replace(policy("fake_manila")), data=[0, 1], measured=[2], engine=engine)
        draws = torch.Generator().manual_seed(batch)
        states = torch.randn(batch, 4, dtype=torch.complex64, generator=draws)
        states = (states / states.norm(dim=1, keepdim=True)).requires_grad_()
        inputs = torch.randn(batch, 3, generator=draws).requires_grad_()
        weights = torch.randn(step.compiled.n_weights, generator=draws).requires_grad_()
        found = step(states, weights, inputs)
        value = found.states[0].real.square().sum() + found.probabilities[1].square().sum()
        return [found.probabilities.detach(), *torch.autograd.grad(value, (states, weights, inputs))]

    return run


CASES: dict[str, Callable[[int], list[torch.Tensor]]] = {
    "ideal": of_a_layer(lambda: policy("ideal"), "ideal"),
    "noisy": of_a_layer(lambda: policy("fake_manila"), "noisy"),
    "conditions": of_a_layer(conditional, "noisy"),
    "shots": of_a_layer(lambda: policy("fake_manila"), "shots:50:seed=3"),
    "trajectories": of_a_layer(lambda: policy("fake_manila"), "trajectories:5:seed=3"),
    "ideal map": of_an_evolution("ideal"),
    "noisy map": of_an_evolution("noisy"),
    "sampled map": of_an_evolution("trajectories:3"),
}


@pytest.mark.parametrize("batch", [1, 2, 33, 64])
@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_on_any_number_of_threads(case: str, batch: int) -> None:
    found = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        found[threads] = CASES[case](batch)
    for threads in THREADS[1:]:
        for one, other in zip(found[1], found[threads], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("case", ["noisy", "trajectories", "noisy map"])
def test_the_same_bits_where_the_rows_are_made_again(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(simulator, "KEEP_BYTES", 0)
    monkeypatch.setattr(noise_trajectories, "KEEP_BYTES", 0)
    test_the_same_bits_on_any_number_of_threads(case, 33)


def test_several_threads_do_work_on_the_blocks() -> None:
    torch.set_num_threads(2)
    together = threading.Barrier(2, timeout=60)  # passed only if two blocks are in work at a time

    def one(block: int) -> tuple[int, str]:
        together.wait()
        return block * block, threading.current_thread().name

    found = in_blocks(one, range(6))
    assert [square for square, _ in found] == [0, 1, 4, 9, 16, 25]
    assert len({name for _, name in found}) == 2


def test_blocks_are_asked_for_in_order_and_one_at_a_time() -> None:
    torch.set_num_threads(3)
    asked, busy = [], threading.Lock()

    def blocks() -> Iterator[int]:
        for block in range(50):
            assert busy.acquire(blocking=False)
            asked.append(block)
            busy.release()
            yield block

    assert in_blocks(lambda block: block, blocks()) == asked == list(range(50))


def test_parts_are_taken_in_the_order_of_their_blocks() -> None:
    taken: list[int] = []
    in_order = InOrder(taken.append)
    for number in (2, 0, 3, 1):
        in_order(number, number)
    assert taken == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_in_a_block_is_raised_and_the_next_call_works(threads: int) -> None:
    torch.set_num_threads(threads)

    def one(block: int) -> int:
        if block == 3:
            raise InvalidInputError("block 3")
        return block

    with pytest.raises(InvalidInputError, match="block 3"):
        in_blocks(one, range(10))
    assert in_blocks(one, range(3)) == [0, 1, 2]


def test_layers_in_threads_of_the_caller() -> None:
    """Which wait for one another nowhere: every caller works on its own blocks."""
    torch.set_num_threads(2)
    wanted = CASES["noisy"](33)
    found: list[list[torch.Tensor]] = []
    callers = [threading.Thread(target=lambda: found.append(CASES["noisy"](33))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    assert len(found) == 4
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, wanted, strict=True))


# -- how many threads --------------------------------------------------------------------------------------------------


def test_as_many_threads_as_torch_unless_the_variable_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in THREADS:
        torch.set_num_threads(threads)
        assert number_of_threads() == threads
    monkeypatch.setenv("QHW_NUM_THREADS", "5")
    assert number_of_threads() == 5


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "1.5", " 2", "²", "1000000", "9" * 5000])
def test_a_wrong_number_of_threads_is_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("QHW_NUM_THREADS", text)
    with pytest.raises(InvalidInputError, match=r"QHW_NUM_THREADS is .*allowed: whole numbers from 1"):
        CASES["ideal"](2)


def test_the_variables_of_a_process() -> None:
    """OMP_NUM_THREADS counts, QHW_NUM_THREADS more."""
    code = (
        "import os; from qhw_diffusion.execution.cores import number_of_threads\n"
        "print(number_of_threads()); os.environ['QHW_NUM_THREADS'] = '3'; print(number_of_threads())"
    )
    others = {name: text for name, text in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment = {**others, "OMP_NUM_THREADS": "2"}  # which torch reads when it starts
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["2", "3"]


# -- processes that inherit a pool -------------------------------------------------------------------------------------


def test_a_forked_process_makes_a_pool_of_its_own() -> None:
    torch.set_num_threads(2)
    wanted = CASES["noisy"](33)[0].numpy()  # the circuit is compiled here: Qiskit's own threads are not inherited
    assert cores._pool is not None
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads
        child = os.fork()
    if child == 0:  # no assertion in here: pytest is not to go on twice
        code = 1
        try:
            inherited = cores._pool is not None
            os.write(write, CASES["noisy"](33)[0].numpy().tobytes())
            code = 2 if inherited else 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = np.frombuffer(pipe.read(), np.float32)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(found, wanted.reshape(-1))


class Values(Dataset):  # type: ignore[type-arg]
    """Evaluated in workers: the values of a layer made before, and the worker's number of threads."""

    def __init__(self, layer: qhw.QuantumLayer, x: torch.Tensor) -> None:
        self.layer, self.x = layer, x

    def __len__(self) -> int:
        return 2

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        return self.layer(self.x).detach(), number_of_threads()


def test_workers_of_a_data_loader() -> None:
    torch.set_num_threads(2)
    layer, x = qhw.QuantumLayer(policy("fake_manila"), "noisy"), torch.linspace(-2, 2, 99).reshape(33, 3)
    wanted = layer(x).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loader = DataLoader(Values(layer, x), batch_size=1, num_workers=1, multiprocessing_context="fork")
        found = list(loader)
    assert [int(threads) for _, threads in found] == [1, 1]
    assert all(torch.equal(values[0], wanted) for values, _ in found)


def test_workers_of_studies_have_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the backend: all go through `_guarded`. With a torch that is loaded later: experiment/test_study.py."""
    for name, text in (("QHW", "3"), ("OMP", "2"), ("MKL", "2")):
        monkeypatch.setenv(f"{name}_NUM_THREADS", text)
    monkeypatch.setenv("QHW_PROGRESS", "1")  # restored: the worker sets these, and what loky takes for a leak
    monkeypatch.setattr(process_executor, "_MAX_MEMORY_LEAK_SIZE", process_executor._MAX_MEMORY_LEAK_SIZE)
    torch.set_num_threads(2)
    assert number_of_threads() == 3
    found: list[int] = []
    assert _guarded("", lambda: found.append(number_of_threads()), (), str(tmp_path / "stop")) == ("done", None)
    assert found == [1]
    assert torch.get_num_threads() == 1
