"""Measurements and resets in mid-circuit by the device's own instructions for these: `measure_2` and `reset_2`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, QuantumRegister
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import PassManager
from qiskit_aer.primitives import SamplerV2
from qiskit_ibm_runtime.circuit import MidCircuitMeasure
from qiskit_ibm_runtime.transpiler.passes.basis.convert_mid_circ_meas import (
    ConvertToMidCircuitMeasure,
    ConvertToMidCircuitResetAndMeasure,
)
from records_by_hand import A, B, assert_drawn_from, dynamic, noisy_by_hand

from qhw_diffusion.circuits.library import load_circuit, save_circuit, with_usual_instructions
from qhw_diffusion.denoising import AmplitudeQDM, ReverseConfig
from qhw_diffusion.denoising.on_device.evaluation import shown_circuit
from qhw_diffusion.denoising.on_device.predictions import record_predictions_of
from qhw_diffusion.denoising.on_device.sampler import DenoiserSampler
from qhw_diffusion.devices import Device
from qhw_diffusion.devices.snapshot import canonical_json
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution import (
    CompiledCircuit,
    Noisy,
    QuantumLayer,
    SamplerEngine,
    compile_circuit,
    compile_sampled,
    outcome_distribution,
)
from qhw_diffusion.execution.transpile import transpiled
from qhw_diffusion.hardware import Ledger, SamplerPub, open_runner
from qhw_diffusion.hardware.durations import duration_of
from qhw_diffusion.hardware.keys import job_key
from qhw_diffusion.hardware.local import check_known
from qhw_diffusion.hardware.sampling import operations_of, sample_counts
from qhw_diffusion.hardware.split import row_cost
from qhw_diffusion.hardware.standin.programs import NotOfThisTargetError, check_instructions

ROW = np.array([2.0, 1.1])  # b, a
FED: dict[str, Any] = {"n_qubits": 2, "n_steps": 2, "depth": 1, "kind": "measured", "feed_forward": True, "seed": 3}


def altered(device: Device, name: str, **values: float | None) -> Device:
    """The device with other numbers for one instruction, everywhere; None takes them out."""
    properties = json.loads(device.snapshot.properties)
    for gate in properties["gates"]:
        if gate["gate"] == name:
            gate["parameters"] = [
                record | {"value": values.get(record["name"], record["value"])}
                for record in gate["parameters"]
                if values.get(record["name"], 0) is not None
            ]
    return Device(replace(device.snapshot, properties=canonical_json(properties)))


@pytest.fixture(scope="module")
def kingston() -> Device:
    return Device.load("fake_kingston")


@pytest.fixture(scope="module")
def boston() -> Device:
    return Device.load("fake_boston")


@pytest.fixture(scope="module")
def misread(kingston: Device) -> Device:
    """Kingston, where `measure_2` is wrong in a quarter of the shots."""
    return altered(kingston, "measure_2", gate_error=0.25)


def twice() -> QuantumCircuit:
    """A qubit that is read, turned, and read again at the end."""
    circuit = QuantumCircuit(QuantumRegister(1), ClassicalRegister(1, "first"), ClassicalRegister(1, "last"))
    circuit.ry(0.9, 0)
    circuit.measure(0, 0)
    circuit.rx(0.7, 0)
    circuit.measure(0, 1)
    return circuit


def content(circuit: QuantumCircuit) -> str:
    """What the ledger takes a circuit for."""
    parameters = tuple(circuit.parameters)
    return job_key([SamplerPub(circuit, parameters, np.zeros((1, len(parameters))), 1)], {}, "device", "purpose")


# -- the circuit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [dynamic, twice])
def test_converted_as_the_clients_own_passes_do(
    make: Callable[[], QuantumCircuit], kingston: Device, boston: Device
) -> None:
    for device, convert in (
        (kingston, ConvertToMidCircuitMeasure(kingston.target)),
        (boston, ConvertToMidCircuitResetAndMeasure(boston.target)),
    ):
        isa = compile_sampled(make(), device)
        plain = transpiled(make(), device, optimization_level=3, seed=0, scheduled=False)
        assert content(isa) == content(PassManager([convert]).run(plain)) != content(plain)
        assert isa.layout.final_index_layout() == plain.layout.final_index_layout()
        assert all(device.target.instruction_supported(*operation) for operation in operations_of(isa))  # type: ignore[union-attr]
    counts = compile_sampled(dynamic(), boston).count_ops()
    assert [counts.get(name) for name in ("measure_2", "reset_2", "measure", "reset")] == [1, 1, 2, None]


def test_what_a_condition_asks_for_is_in_mid_circuit_and_what_comes_last_is_not(kingston: Device) -> None:
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.measure(0, 0)  # the last on its qubit
    with circuit.if_test((0, 1)):
        circuit.x(1)
    circuit.measure(1, 1)
    circuit.barrier()
    assert [one.name for one in compile_sampled(circuit, kingston).data if one.clbits and one.qubits] == [
        "measure_2",
        "if_else",
        "measure",
    ]
    manila = Device.load("fake_manila")
    usual = transpiled(dynamic(), manila, optimization_level=3, seed=0, scheduled=False)
    assert content(compile_sampled(dynamic(), manila)) == content(usual)


def test_a_qubit_without_calibration_of_it_is_read_as_usual(kingston: Device) -> None:
    """Absent is not perfect."""
    bare = altered(kingston, "measure_2", gate_error=None)
    assert bare.usable_qubits == kingston.usable_qubits
    assert "measure_2" not in compile_sampled(twice(), bare).count_ops()
    with pytest.raises(InvalidInputError, match="no 'measure_2' on qubit 3: read it by 'measure'"):
        bare.readout_error(3, "measure_2")
    with pytest.raises(InvalidInputError, match="'reset' is no measurement; allowed: measure, measure_2"):
        kingston.readout_error(3, "reset")


def test_a_snapshot_keeps_it(boston: Device, tmp_path: Path) -> None:
    loaded = Device.load(boston.save(tmp_path / "boston.json.gz"))
    for name in ("measure_2", "reset_2"):
        for place, entry in boston.target[name].items():  # type: ignore[index]
            kept = loaded.target[name][place]  # type: ignore[index]
            assert (kept.duration, kept.error) == (entry.duration, entry.error)
    assert content(compile_sampled(dynamic(), loaded)) == content(compile_sampled(dynamic(), boston))


def test_keys_and_files(kingston: Device, boston: Device, tmp_path: Path) -> None:
    """Another measurement is other work; the file of a circuit keeps the key; circuits without it have the old one."""
    plain = transpiled(twice(), kingston, optimization_level=3, seed=0, scheduled=False)
    isa = compile_sampled(twice(), kingston)
    assert content(isa) != content(plain)
    for number, circuit in enumerate((isa, compile_sampled(dynamic(), boston))):
        path, qasm = save_circuit(circuit, tmp_path, f"circuit{number}")
        assert content(load_circuit(path)) == content(circuit)
        place = next(places[0] for name, places in operations_of(circuit) if name == "measure_2")
        assert f"measure ${place};" in qasm.read_text()
    usual = QuantumCircuit(QuantumRegister(1, "q"), ClassicalRegister(1, "c"))
    usual.sx(0)
    usual.measure(0, 0)
    usual.reset(0)
    usual.measure(0, 0)
    assert content(usual) == "c74950ed743a1cfe918df52a6192f33fad69f20f1072b4d5ea8727cc6a2975ef"


# -- errors and durations ----------------------------------------------------------------------------------------------


def test_each_measurement_is_read_with_its_own_error(boston: Device, misread: Device) -> None:
    """Sampled against density matrices by hand, of records, with the errors out of the provider's documents."""
    for device, circuit, row in (
        (misread, twice(), None),
        (misread, dynamic(), ROW),
        (boston, dynamic(), ROW),
    ):
        isa = compile_sampled(circuit, device)
        values = np.array([ROW[[1, 0]]]) if row is not None else np.zeros((1, 0))  # a, b
        bits = sample_counts(isa, values, 6000, device, np.random.default_rng(4))
        places = np.concatenate([bits[register.name][0] for register in isa.cregs], axis=1)
        seen = np.bincount(places @ 2 ** np.arange(places.shape[1]), minlength=2 ** places.shape[1])
        exact = noisy_by_hand(isa, device, row)
        assert_drawn_from(seen[None], exact[None])
    usual = transpiled(twice(), misread, optimization_level=3, seed=0, scheduled=False)
    assert np.abs(noisy_by_hand(usual, misread) - noisy_by_hand(compile_sampled(twice(), misread), misread)).sum() > 0.2


def test_a_condition_in_a_branch_of_measurements_on_one_qubit_by_both(misread: Device) -> None:
    """Measured by `measure` in a branch, by `measure_2` before it."""
    circuit = QuantumCircuit(QuantumRegister(2), ClassicalRegister(1, "m"), ClassicalRegister(2, "x"))
    circuit.h(0)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.cregs[0], 1)):
        circuit.measure(0, 1)
        circuit.x(1)
    circuit.rx(0.4, 0)
    circuit.measure(1, 2)
    isa = compile_sampled(circuit, misread)
    names = [name for name, _ in operations_of(isa)]
    assert (names.count("measure_2"), names.count("measure")) == (1, 2)
    bits = sample_counts(isa, np.zeros((1, 0)), 4000, misread, np.random.default_rng(8))
    places = np.concatenate([bits["m"][0], bits["x"][0]], axis=1)
    seen = np.bincount(places @ [1, 2, 4], minlength=8)
    assert_drawn_from(seen[None], noisy_by_hand(isa, misread)[None])


def test_the_noisy_engine_evaluates_it(misread: Device) -> None:
    """⟨Z⟩ of what is read at the end, given what was read on the way, by the engine with feed-forward."""
    isa = compile_sampled(dynamic(), misread)
    exact = noisy_by_hand(isa, misread, ROW)
    bare, read = isa.copy_empty_like(), {}
    for one in isa.data:
        if one.operation.name == "measure":
            read[isa.find_bit(one.clbits[0]).index] = isa.find_bit(one.qubits[0]).index
        else:
            bare.append(one)
    strings = tuple(
        SparsePauliOp.from_sparse_list(
            [("Z" * bin(s).count("1"), [read[1 + k] for k in (0, 1) if s >> k & 1], 1.0)], 156
        )
        for s in range(4)
    )
    used = tuple(sorted({isa.find_bit(q).index for one in isa.data for q in one.qubits}))
    for kept in (None, 0, 1):  # without, the outcome is averaged over: misread, it chooses the wrong branch
        compiled = CompiledCircuit(
            bare, misread, (B, A), (), strings, used, postselect=() if kept is None else ((0, kept),)
        )
        found = outcome_distribution(Noisy().estimate(compiled, torch.from_numpy(ROW[None])).values.numpy())
        wanted = exact[0::2] + exact[1::2] if kept is None else exact[kept::2] / exact[kept::2].sum()
        np.testing.assert_allclose(found[0], wanted, atol=1e-9)


def test_circuits_that_have_it_from_the_start(misread: Device, kingston: Device) -> None:
    """The client's own instruction in a circuit of one's own: outcomes kept on the exact engines; elsewhere refused."""
    circuit = QuantumCircuit(2, 1)
    circuit.ry(0.8, 0)
    circuit.append(MidCircuitMeasure(), [0], [0])
    circuit.cx(0, 1)
    z = [SparsePauliOp("ZI")]
    made = compile_circuit(circuit, misread, inputs=[], weights=[], observables=z, postselect={0: 1})
    p, wrong = np.sin(0.4) ** 2, 0.25
    ideal_gates = QuantumLayer(made, engine="noisy")(torch.zeros(1, 0)).item()
    assert ideal_gates == pytest.approx(1 - 2 * (1 - wrong) * p / ((1 - wrong) * p + wrong * (1 - p)), abs=0.03)
    assert QuantumLayer(made, engine="ideal")(torch.zeros(1, 0)).item() == pytest.approx(-1)
    for device in ("fake_manila", "ideal"):
        with pytest.raises(InvalidInputError, match=f"'measure_2', which {device} does not have: write 'measure'"):
            compile_circuit(circuit, Device.load(device), inputs=[], weights=[], observables=z)
    measured = circuit.copy()
    measured.add_register(ClassicalRegister(1, "x"))
    measured.measure(1, 1)
    with pytest.raises(InvalidInputError, match="fake_manila does not have"):
        compile_sampled(measured, Device.load("fake_manila"))
    with pytest.raises(UnsupportedCircuitError, match="has measure_2, which estimators of this process do not know"):
        check_known(made.isa)
    with pytest.raises(NotOfThisTargetError, match="measure_2 on qubits"):
        check_instructions(compile_sampled(twice(), kingston), Device.load("fake_marrakesh"))


def test_it_takes_its_own_time_and_counts_among_the_instructions(kingston: Device) -> None:
    usual = transpiled(dynamic(), kingston, optimization_level=3, seed=0, scheduled=False)
    isa = compile_sampled(dynamic(), kingston)
    (place,) = [qubits for name, qubits in operations_of(isa) if name == "measure_2"]
    spared = kingston.target["measure"][place].duration - kingston.target["measure_2"][place].duration  # type: ignore[union-attr, index]
    assert spared > 4e-7
    assert duration_of(usual, kingston) - duration_of(isa, kingston) == pytest.approx(spared)
    asked = QuantumCircuit(2, 1)  # a branch begins when the outcome is there
    asked.sx(0)
    asked.measure(0, 0)
    with asked.if_test((0, 1)):
        asked.x(1)
    asked = compile_sampled(asked, kingston)
    wanted = [kingston.target[name][place] for name, place in operations_of(asked) if name != "rz"]  # type: ignore[index]
    assert [name for name, _ in operations_of(asked) if name != "rz"] == ["sx", "measure_2", "x"]
    assert duration_of(asked, kingston) == pytest.approx(sum(entry.duration for entry in wanted), rel=1e-6)
    longer = altered(kingston, "measure_2", gate_length=9000.0)  # ns
    assert duration_of(isa, longer) - duration_of(isa, kingston) == pytest.approx(9e-6 - 1.76e-6)
    engine = SamplerEngine(SamplerV2(), shots=100)
    costs = [engine.cost([engine.pub(isa, ROW[None], parameters=[B, A])], device) for device in (kingston, longer)]
    assert costs[1].duration - costs[0].duration == pytest.approx(9e-6 - 1.76e-6)
    pubs = [engine.pub(each, ROW[None], parameters=[B, A]) for each in (usual, isa)]
    assert row_cost(pubs[0]).tolist() == row_cost(pubs[1]).tolist()


def test_samplers_of_this_process_are_sent_what_they_know(boston: Device) -> None:
    isa = compile_sampled(dynamic(), boston)
    samples = SamplerEngine(SamplerV2(seed=3), shots=3000).sample(isa, ROW[None], parameters=[B, A])
    b, a = ROW
    p = np.zeros(8)
    for m, first in enumerate((np.cos(a / 2) ** 2, np.sin(a / 2) ** 2)):
        for q2, second in enumerate((np.cos, np.sin)):
            p[m + 2 * (m * q2) + 4 * q2] = first * second((b if m else b / 2) / 2) ** 2
    assert_drawn_from(samples.counts(every=True).counts, p[None])


# -- denoisers ---------------------------------------------------------------------------------------------------------


def test_a_denoiser_with_feed_forward(misread: Device, tmp_path: Path) -> None:
    """Sampled through the ledger, as predicted: the whole circuit by hand, and step by step."""
    model = AmplitudeQDM(ReverseConfig(**FED, init_scale=0.9), image_shape=(1, 2, 2))
    sampler = DenoiserSampler(model, misread)
    names = [name for name, _ in operations_of(sampler.circuit())]
    assert (names.count("measure_2"), names.count("measure"), sampler.way) == (1, 3, "dynamic")
    states = model.forward_process.prior(1, 4, torch.Generator().manual_seed(5))
    shots = 1500
    with Ledger.open(tmp_path / "ledger") as ledger, open_runner(misread, ledger=ledger, run="r") as runner:
        engine = SamplerEngine(runner, shots=shots)
        ((pub, _),) = sampler.pubs(engine, states)
        (samples,) = engine.sample_many([pub])
    circuit, parameters = sampler.compiled()[0]
    bound = circuit.assign_parameters(
        {p: v for p, v in zip(parameters, sampler.values(states)[0], strict=True) if p in set(circuit.parameters)}
    )
    whole = noisy_by_hand(bound, misread)
    assert_drawn_from(samples.counts(every=True).counts, whole[None])
    # step by step, on qubits of their own: close to it; with the error of `measure` far from it
    register = {register.name: [circuit.find_bit(bit).index for bit in register] for register in circuit.cregs}
    first, last = register["m2"][0], register["m1"][0]
    numbers = np.arange(len(whole))
    for outcome in (0, 1):
        history = torch.tensor([[outcome, 0]])
        rows = torch.from_numpy(sampler.values(states))
        step = record_predictions_of(sampler, _shown(sampler), states, None, rows, history)[0]
        share = whole[(numbers >> first & 1 == outcome) & (numbers >> last & 1 == 0)].sum()
        assert step.name == "simulated step by step, noise of fake_kingston"
        assert float(step.success[0]) == pytest.approx(share, abs=0.02)
    assert sampler.mid_circuit
    before = DenoiserSampler(model, misread, circuits={0: (with_usual_instructions(circuit), parameters)})
    assert not before.mid_circuit, "an evaluation that was begun without it goes on, and is predicted, without it"
    process = model.reverse
    usual, way = (process.on(device=misread, engine="noisy", mid_circuit=by) for by in (False, True))  # type: ignore[operator]
    place = usual.compiled.physical_qubits[usual.evolution._read[0]]
    p10, p01 = misread.readout_error(place)
    true = np.linalg.solve([[1 - p10, p01], [p10, 1 - p01]], usual.step(states, 2).probabilities.detach()[:, 0].numpy())
    found = way.step(states, 2).probabilities.detach()[:, 0].numpy()
    np.testing.assert_allclose(found, np.array([[0.75, 0.25], [0.25, 0.75]]) @ true, atol=1e-6)
    torch.testing.assert_close(way.step(states, 1).probabilities, usual.step(states, 1).probabilities)


def _shown(sampler: DenoiserSampler) -> CompiledCircuit:
    return shown_circuit(sampler, None)
