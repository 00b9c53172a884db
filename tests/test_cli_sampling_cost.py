"""`qhw cost` of a denoiser: the circuit that an Estimator is sent, and those of a Sampler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister
from qiskit.transpiler import PassManager, Target
from qiskit.transpiler.passes import RemoveFinalReset

from qhw_diffusion.circuits.deferred import preparation_circuit
from qhw_diffusion.cli import main
from qhw_diffusion.denoising import AmplitudeQDM, ForwardConfig, LatentQDM, ReverseConfig, save_pretrained
from qhw_diffusion.denoising.command import KIND, DenoiserTraining
from qhw_diffusion.devices import Device
from qhw_diffusion.execution.transpile import transpiled
from qhw_diffusion.hardware.cost import USUAL_REPETITION_DELAY
from qhw_diffusion.hardware.durations import longest_way
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.runs import RunFolder


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QHW_LEDGER", raising=False)
    monkeypatch.chdir(tmp_path)


def folder_of(path: Path, model: AmplitudeQDM) -> Path:
    """An untrained denoiser as a run folder."""
    training = DenoiserTraining(model=model.kind, reverse=model.reverse.config)
    with RunFolder.create(path, kind=KIND, config=training.to_dict()) as made:
        save_pretrained(model, made.path / "model")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of two qubits and an ancilla, whose outcomes are fed forward; trained for no device."""
    model = LatentQDM(ReverseConfig(n_qubits=2, n_steps=2, depth=1, kind="measured", feed_forward=True))
    return folder_of(tmp_path_factory.mktemp("runs") / "denoiser", model)


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    assert main(["cost", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def last_measured(circuit: QuantumCircuit, target: Target, outcome: int) -> float:
    """Seconds until the last measurement is over where every `if_else` finds this outcome, gate by gate."""
    clock: dict[Any, float] = {}
    end = 0.0

    def walk(part: QuantumCircuit, wires: dict[Any, Any]) -> None:
        nonlocal end
        for instruction in part.data:
            operation = instruction.operation
            places = [wires[q] for q in instruction.qubits]
            waits = [*places, *(wires[c] for c in instruction.clbits)]
            start = max(clock.get(wire, 0.0) for wire in waits)
            for wire in waits:
                clock[wire] = start
            if operation.name == "if_else":
                assert isinstance(operation.condition[0], ClassicalRegister)
                if operation.condition[1] == outcome:
                    (block,) = operation.blocks
                    inner = zip((*block.qubits, *block.clbits), waits, strict=True)
                    walk(block, dict(inner))
                    finish = max(clock[wire] for wire in waits)
                    clock.update(dict.fromkeys(waits, finish))
            elif operation.name != "barrier":
                properties = target[operation.name][tuple(circuit.find_bit(q).index for q in places)]
                clock.update(dict.fromkeys(waits, start + properties.duration))
                if operation.name == "measure":
                    end = max(end, clock[places[0]])

    walk(circuit, {wire: wire for wire in (*circuit.qubits, *circuit.clbits)})
    return end


@pytest.mark.slow
@pytest.mark.parametrize("device", ["fake_marrakesh", "fake_manila"])
def test_an_image_takes_what_its_gates_take_one_after_the_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, device: str
) -> None:
    config = ReverseConfig(n_qubits=2, n_steps=2, depth=2, kind="measured", feed_forward=True, init_scale=1.0)
    model = AmplitudeQDM(config, image_shape=(1, 2, 2))
    run = folder_of(tmp_path / "run", model)
    shown = json.loads(told(capsys, run, "--device", device, "--images", "10", "--shots", "100", "--json"))
    prior, _ = preparation_circuit(2)
    loaded = Device.load(device)
    assert loaded.target is not None
    logical = PassManager([RemoveFinalReset()]).run(model.reverse.dynamic_circuit(0, prior))
    isa = transpiled(logical, loaded, optimization_level=3, seed=0, scheduled=False)
    seconds = max(last_measured(isa, loaded.target, outcome) for outcome in (0, 1))
    assert (shown["inner_measurements"], shown["resets"]) == (1, 1)
    used = {q for step in isa.data if step.operation.name != "barrier" for q in step.qubits}
    assert shown["qubits"] == len(used) >= 3  # two of data and an ancilla
    assert shown["duration"] + shown["readout"] == pytest.approx(seconds, rel=0.02)  # readout: the device's slowest
    execution = seconds + USUAL_REPETITION_DELAY
    assert (shown["jobs"], shown["all_circuits"], shown["executions"]) == (1, 10, 1000)
    assert shown["seconds"] == pytest.approx(2 + 1000 * execution, rel=1e-3)


def test_of_the_branches_the_longest_counts_and_waits_for_the_outcome() -> None:
    device = Device.load("fake_manila")
    assert device.target is not None
    circuit = QuantumCircuit(5)
    register = ClassicalRegister(1, "m")
    circuit.add_register(register)
    circuit.measure(0, 0)
    for outcome, gates in ((0, 7), (1, 3)):
        with circuit.if_test((register, outcome)):
            for _ in range(gates):
                circuit.sx(1)
    circuit.sx(2)
    # an `if_else` that stands on qubit 1 alone waits for the outcome of qubit 0 only through the classical bit
    flat = longest_way(circuit, device)
    assert flat.count_ops()["sx"] == 8
    assert "if_else" not in flat.count_ops()
    both = device.target["measure"][0,].duration + 7 * device.target["sx"][1,].duration
    assert flat.estimate_duration(device.target, unit="s") == pytest.approx(both)


@pytest.mark.slow
@pytest.mark.parametrize(("forward", "settings", "qubits"), [
    ("depolarizing", {}, 6),
    ("scrambling", {}, 4),
    ("gaussian", {"kind": "reset", "ancillas": 2, "ansatz": "cz", "outer": 1}, 6),
    ("gaussian", {"kind": "unitary", "ancillas": 0}, 2),
    ("gaussian", {"conditioning": "qubits", "n_labels": 3}, 8),
    ("gaussian", {"conditioning": "angles", "n_labels": 10, "weight_sharing": "time_embedding"}, 4),
    ("gaussian", {"conditioning": "weights", "n_labels": 2, "weight_sharing": "hypernetwork"}, 4),
])  # fmt: skip
def test_every_kind_that_an_estimator_runs_is_one_circuit_an_image(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, forward: str, settings: dict[str, Any], qubits: int
) -> None:
    """Data, fresh label qubits and ancillas in both steps, and the qubits that purify a mixed start."""
    config = ReverseConfig(**{"n_qubits": 2, "n_steps": 2, "depth": 1, **settings})
    run = folder_of(tmp_path / "run", LatentQDM(config, ForwardConfig(forward)))
    text = told(capsys, run, "--device", "fake_marrakesh")
    assert "2 reverse steps, 32 images on fake_marrakesh" in text
    in_use = int(text.split("circuit         ")[1].split()[0])
    assert qubits <= in_use <= qubits + 2  # those that routing passes through are in use as well
    assert "1 job × 32 circuits × 4,096 shots = 131,072" in text


@pytest.mark.parametrize(("forward", "feed_forward"), [("depolarizing", False), ("gaussian", True)])
def test_kept_outcomes_are_counted_as_what_a_sampler_is_sent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, forward: str, feed_forward: bool
) -> None:
    config = ReverseConfig(n_qubits=2, n_steps=2, depth=1, kind="measured", feed_forward=feed_forward)
    run = folder_of(tmp_path / "run", LatentQDM(config, ForwardConfig(forward)))
    text = told(capsys, run, "--device", "fake_lagosv2")
    assert "2 reverse steps, 32 images on fake_lagos" in text
    assert "1 job × 32 circuits × 4,096 shots = 131,072" in text
    assert ("measured outcome reaches" in text) == feed_forward
    assert f"by a Sampler, {'dynamic' if feed_forward else 'deferred'}" in text
    assert ("resets 1, measurements before the last 1" in text) == feed_forward


def test_mitigation_is_counted_where_expectation_values_are_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Decoupling needs a scheduled circuit, which this compiles; a strategy's circuits are among the executions."""
    run = folder_of(tmp_path / "run", LatentQDM(ReverseConfig(n_qubits=2, n_steps=1, depth=1)))
    flags = (run, "--device", "fake_manila", "--images", "10", "--shots", "100", "--json", "--mitigation")
    for strategies, circuits in (("readout:measured+zne:linear:1,3", 22), ("decoupling", 10)):
        assert json.loads(told(capsys, *flags, strategies))["all_circuits"] == circuits


@pytest.mark.slow
def test_preparing_x_t_and_every_step_take_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Two steps more are two circuits longer; an image of 64 pixels has 2^6 amplitudes to prepare."""
    shown = {}
    for n_qubits, n_steps in ((3, 1), (3, 2), (3, 3), (6, 1)):
        config = ReverseConfig(n_qubits=n_qubits, n_steps=n_steps, depth=1, kind="measured", feed_forward=True)
        model = AmplitudeQDM(config, image_shape=(1, 2**n_qubits // 4, 4))
        run = folder_of(tmp_path / f"{n_qubits}-{n_steps}", model)
        shown[n_qubits, n_steps] = json.loads(told(capsys, run, "--device", "fake_marrakesh", "--json"))
    lengths = {place: each["duration"] for place, each in shown.items()}
    steps = [lengths[3, 2] - lengths[3, 1], lengths[3, 3] - lengths[3, 2]]
    assert min(steps) > Device.load("fake_marrakesh").target["measure"][0,].duration  # type: ignore[union-attr, index]
    assert max(steps) < 2 * min(steps)
    # a preparation takes at least 2^n − n − 1 two-qubit gates
    assert shown[6, 1]["two_qubit_gates"] > shown[3, 1]["two_qubit_gates"] + 2**6 - 6 - 1 - 8


def test_many_images_make_several_jobs_and_the_ledger_s_history_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = folder_of(tmp_path / "run", LatentQDM(ReverseConfig(n_qubits=2, n_steps=1, depth=1)))
    flags = ("--device", "fake_manila", "--json")
    shown = json.loads(told(capsys, run, *flags, "--images", "2500", "--shots", "10000"))
    assert (shown["jobs"], shown["all_circuits"], shown["executions"]) == (3, 2500, 25_000_000)
    with Ledger.open(tmp_path / "runs" / "ledger") as ledger:
        ledger.plan("a" * 64, run="r", purpose="p", device="fake_manila", circuits=1, shots=1, estimate_seconds=4.0,
                    paid=False, summary={})  # fmt: skip
        ledger.submitted("a" * 64, "job")
        ledger.done("a" * 64, "{}", 6.0)
    assert json.loads(told(capsys, run, *flags))["ratio"] == pytest.approx(1.5)


def test_shots_that_pass_are_told_where_an_evaluation_knows_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = folder_of(tmp_path / "run", LatentQDM(ReverseConfig(n_qubits=2, n_steps=1, depth=1)))
    flags = (run, "--device", "fake_manila", "--shots", "1000")
    assert "shots that pass" not in told(capsys, *flags)
    (run / "evaluations").mkdir()
    for device, share in (("fake_manila", 0.25), ("ideal", 0.5)):
        (run / "evaluations" / f"{device}-noisy-seed0.json").write_text(
            json.dumps({"device": device, "share_of_shots": share, "values": {}})
        )
    assert "25.00% by evaluation fake_manila-noisy-seed0: about 250 of 1,000 an image" in told(capsys, *flags)
    assert json.loads(told(capsys, *flags, "--json"))["success_probability"] == 0.25
    (run / "evaluations" / "fake_manila-noisy-seed0.json").write_text("{")
    assert "fake_manila-noisy-seed0.json" in told(capsys, *flags, code=2)


@pytest.mark.parametrize(("flags", "words"), [
    ([], "counted for the ideal device, which is simulated and costs nothing: give --device"),
    (["--device", "ideal"], "give --device"),
    (["--device", "fake_miami"], "fake_miami has no control flow"),
    (["--device", "fake_armonk"], "has 3 qubits, and fake_armonk has 1"),
    (["--device", "fake_manila", "--mitigation", "zne"], "Leave --mitigation out"),
    (["--device", "fake_manila", "--resilience-level", "1"], "Leave --resilience-level out"),
    (["--device", "fake_manila", "--resilience-level", "-1"], "Leave --resilience-level out"),
    (["--device", "fake_manila", "--shots", "0"], "shots is 0"),
    (["--device", "fake_manila", "--shots", "20000000"], "use fewer shots"),
    (["--device", "fake_manila", "--images", "0"], "--images must be at least 1"),
    (["--device", "fake_manila", "--rows", "3"], "--rows does not go with"),
    (["--device", "fake_manila", "--repetition-delay", "9999"], "0 to 500 µs"),
])  # fmt: skip
def test_what_cannot_be_counted_is_told(
    capsys: pytest.CaptureFixture[str], run: Path, flags: list[str], words: str
) -> None:
    error = told(capsys, run, *flags, code=2)
    assert words in error
    assert error.startswith("qhw: error: ")
    assert error.count("\n") == 1


def test_a_denoiser_that_is_not_whole_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = folder_of(tmp_path / "run", LatentQDM(ReverseConfig(n_qubits=2, n_steps=1, depth=1)))
    (run / "model" / "model.safetensors").unlink()
    assert "model.safetensors is missing" in told(capsys, run, "--device", "fake_manila", code=2)


def test_one_step_needs_no_reset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The last reset of a shot is the device's own affair, so a device without resets runs one step."""
    run = folder_of(tmp_path / "run", LatentQDM(ReverseConfig(n_qubits=2, n_steps=1, depth=1, kind="measured")))
    shown = json.loads(told(capsys, run, "--device", "fake_miami", "--json"))
    assert (shown["resets"], shown["inner_measurements"]) == (0, 0)
