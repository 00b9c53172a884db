"""`qhw devices`, `qhw cost` and `qhw standin` without an account; with one, against the stand-in, further down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits import dynamic_circuit, load_circuit, published_circuit, reverse_circuit, save_circuit
from qhw_diffusion.cli import main
from qhw_diffusion.devices import Calibration, Device, rank_layouts
from qhw_diffusion.guidance import (
    GuidanceConfig,
    PolicyConfig,
    PPOConfig,
    QuantumPolicy,
    RewardConfig,
    build_policy,
    load_policy_model,
    save_policy_model,
)
from qhw_diffusion.guidance.distill import tabulate
from qhw_diffusion.hardware.cost import job_estimator
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import open_runner
from qhw_diffusion.hardware.service import Pub, precision_of
from qhw_diffusion.hardware.standin import TOKEN, StandIn, Status
from qhw_diffusion.on_device.access import AccessConfig, open_access
from qhw_diffusion.runs import RunFolder

CALIBRATED = {"distribution_offset": 0.0, "distribution_scale": 1.0}

KEYS = ("a" * 64, "b" * 64)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No account, no ledger, an empty folder to stand in."""
    for name in ("QISKIT_IBM_TOKEN", "QISKIT_IBM_URL", "QISKIT_IBM_INSTANCE", "QHW_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained quantum policy as a run folder, compiled for fake_manila, six sampling steps."""
    actor = PolicyConfig(device="fake_manila")
    config = {"guidance": GuidanceConfig(n_steps=6).to_dict(), "reward": RewardConfig(**CALIBRATED).to_dict(),
              "ppo": PPOConfig().to_dict(), "policy": actor.to_dict()}  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "policy"
    with RunFolder.create(folder, kind="guidance", config=config) as made:
        save_policy_model(build_policy(actor, seed=0, device=Device.load("fake_manila")), made.path / "model")
    return folder


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


# -- devices without an account ----------------------------------------------------------------------------------------


def test_devices_without_an_account_are_the_fake_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    captured = capsys.readouterr()
    assert {"ideal", "fake_marrakesh", "fake_manila"} <= set(captured.out.split())
    assert "live devices are listed too" in captured.err
    assert "save_account" in captured.err
    assert main(["devices", "--fake", "--json"]) == 0
    captured = capsys.readouterr()
    assert {"name": "fake_manila"} in json.loads(captured.out)
    assert captured.err == ""


@pytest.mark.parametrize("arguments", [
    ["cost", "{circuit}", "--device", "ibm_marrakesh"],
    ["calibration", "snapshot", "ibm_marrakesh"],
])  # fmt: skip
def test_a_live_device_without_an_account_is_exit_code_four(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str]
) -> None:
    path, _ = save_circuit(published_circuit("policy_4q_2l_chain").circuit, tmp_path, "chain")
    error = told(capsys, *(word.format(circuit=path) for word in arguments), code=4)
    assert error.startswith("qhw: error: no IBM Quantum account")
    assert "qhw standin" in error


# -- cost --------------------------------------------------------------------------------------------------------------


def test_cost_of_a_run_is_what_the_runner_plans_for_each_step(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    """One job a step, one circuit an image: the runner's own estimate of such a job, six times."""
    device = Device.load("fake_manila")
    isa = load_circuit(run / "model" / "isa.qpy")
    zs = [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], 4).apply_layout(isa.layout) for q in range(4)]
    parameters = tuple(isa.parameters)
    pub = Pub(isa, tuple(zs), parameters, np.zeros((40, len(parameters))), precision_of(1000))
    for level in (0, 2):
        planned = job_estimator(device, list)([pub], {"resilience_level": level})
        shown = json.loads(told(capsys, "cost", run, "--images", "40", "--shots", "1000",
                                "--resilience-level", str(level), "--json"))  # fmt: skip
        assert shown["seconds"] == pytest.approx(6 * planned.seconds)
        assert (shown["jobs"], shown["circuits"], shown["shots"]) == (6, planned.circuits, planned.shots)
    text = told(capsys, "cost", run, "--images", "40", "--shots", "1000")
    assert "6 jobs × 40 circuits × 1,000 shots = 240,000" in text
    assert "6 sampling steps, 40 images on fake_manila" in text
    assert "charges nothing" in text


def test_cost_on_another_device_compiles_for_it(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    shown = [json.loads(told(capsys, "cost", run, "--device", name, "--images", "10", "--json"))
             for name in ("fake_manila", "fake_miami")]  # fmt: skip
    assert [s["repetition_delay"] for s in shown] == pytest.approx([250e-6, 4e-3])
    assert shown[0]["duration"] > 3 * shown[1]["duration"]  # fake_manila's CX gates take a third of a microsecond


def test_large_work_is_counted_in_several_jobs(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    """10 million executions are the most of one job: 2,500 images × 10,000 shots make three of each step's."""
    shown = json.loads(told(capsys, "cost", run, "--images", "2500", "--shots", "10000", "--json"))
    assert (shown["jobs"], shown["circuits"]) == (18, 834)
    assert "use fewer shots" in told(capsys, "cost", run, "--shots", "20000000", code=2)


def test_cost_of_a_circuit_file_logical_or_compiled(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path
) -> None:
    path, _ = save_circuit(published_circuit("policy_4q_2l_ring").circuit, tmp_path, "ring")
    logical = told(capsys, "cost", path, "--device", "fake_manila", "--rows", "30", "--shots", "100")
    compiled = told(capsys, "cost", run / "model" / "isa.qpy", "--device", "fake_manila", "--rows", "30",
                    "--shots", "100")  # fmt: skip
    assert "30 rows of parameters" in logical
    assert "1 job × 30 circuits × 100 shots = 3,000" in logical
    assert "QPU seconds     2.8" in logical  # 2 + 3000 × (250 + 5.4 + some 5) µs
    assert compiled.splitlines()[1:] == logical.splitlines()[1:]


def test_the_ledger_s_history_corrects_the_cost(capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path) -> None:
    arguments = ("cost", run, "--images", "10", "--shots", "100")
    assert "history         none" in told(capsys, *arguments)
    with Ledger.open(tmp_path / "runs" / "ledger") as ledger:
        for key, measured in zip(KEYS, (14.0, 3.0), strict=True):
            ledger.plan(key, run="r", purpose="p", device="fake_manila", circuits=1, shots=1,
                        estimate_seconds=measured / 1.7, paid=False, summary={})  # fmt: skip
            ledger.submitted(key, f"job-{key[0]}")
            ledger.done(key, "{}", measured)
    assert "× 1.7: measured / estimated over 2 jobs of fake_manila" in told(capsys, *arguments)
    assert "history         none" in told(capsys, *arguments, "--device", "fake_miami")
    assert "no ledger" in told(capsys, *arguments, "--ledger", tmp_path / "nowhere", code=6)


def test_repetition_delay_and_mitigation(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    """ZNE at three scales runs three circuits for one; readout is calibrated by circuits on top."""
    arguments = ("cost", run, "--images", "10", "--shots", "100", "--json")
    shown = json.loads(told(capsys, *arguments, "--repetition-delay", "100", "--mitigation", "zne:linear:1,3,5"))
    assert shown["repetition_delay"] == pytest.approx(100e-6)
    assert shown["circuits"] == 30
    assert json.loads(told(capsys, *arguments, "--mitigation", "readout:measured"))["circuits"] == 12


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "words", "code"), [
    (["nowhere"], "does not exist", 2),
    (["."], "not a run folder", 2),
    (["{run}", "--rows", "3"], "--rows does not go with", 2),
    (["{run}", "--images", "0"], "--images must be at least 1", 2),
    (["{run}", "--shots", "0"], "shots is 0", 2),
    (["{run}", "--device", "ideal"], "simulated and costs nothing", 2),
    (["{run}", "--device", "fake_manla"], "did you mean fake_manila", 2),
    (["{run}", "--device", "fake_armonk"], "4 qubits but fake_armonk has 1", 2),
    (["{run}", "--repetition-delay", "9999"], "0 to 500 µs, not 9999 µs", 2),
    (["{run}", "--mitigation", "zme"], "did you mean zne", 2),
    (["{run}", "--resilience-level", "7"], "allowed: 0, 1, 2", 2),
    (["{circuit}"], "names no device: give --device", 2),
    (["{circuit}", "--device", "fake_manila", "--images", "3"], "--images does not go with", 2),
    (["{circuit}", "--device", "fake_armonk"], "4 qubits but fake_armonk has 1", 2),
    (["{isa}", "--device", "fake_marrakesh"], "compiled for a device of 5 qubits", 2),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path, arguments: list[str], words: str, code: int
) -> None:
    path, _ = save_circuit(published_circuit("policy_4q_2l_chain").circuit, tmp_path, "chain")
    places = {"run": run, "circuit": path, "isa": run / "model" / "isa.qpy"}
    error = told(capsys, "cost", *(word.format(**places) for word in arguments), code=code)
    assert error.startswith("qhw: error: ")
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("mitigation", [
    "readout:measured+zne:linear:1,3", "readout:correlated+twirling:2", "readout", "mitiq-cdr:6",
    "zne:linear:1,3,5+readout",
])  # fmt: skip
def test_what_is_announced_is_what_the_ledger_says_was_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path, mitigation: str
) -> None:
    """`qhw cost` of a policy, what a run on the device announces, and the ledger's rows after two of its steps."""
    if mitigation.startswith("mitiq"):
        pytest.importorskip("mitiq")
    shown = json.loads(
        told(capsys, "cost", run, "--images", "5", "--shots", "20", "--mitigation", mitigation, "--json")
    )
    config = AccessConfig(device="fake_manila", shots=20, mitigation=mitigation, ledger=str(tmp_path / "ledger"))
    actor = load_policy_model(run / "model")
    assert isinstance(actor, QuantumPolicy)
    compiled = actor.layer.compiled
    rows = torch.full((5, compiled.n_inputs + compiled.n_weights), 0.3, dtype=torch.float64)
    rows[:, 0] = torch.linspace(-1, 1, 5)
    with open_access(config, "mine") as access:
        cost = access.cost(compiled, 5, calls=2)
        usage = [access.engine(f"step {step}").estimate(compiled, rows).usage for step in range(2)]
        done = access.ledger.rows()
    assert len(done) == cost.jobs == 2
    assert [row.circuits for row in done] == [cost.circuits] * 2 == [each.circuits for each in usage]
    assert sum(each.shots for each in usage) == cost.executions
    assert 3 * cost.seconds == pytest.approx(shown["seconds"])
    assert (shown["jobs"], shown["circuits"], shown["all_circuits"]) == (6, cost.circuits, 6 * cost.circuits)


def test_the_count_with_mitigation_is_shown(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    flags = ("--images", "16", "--shots", "100", "--mitigation")
    text = told(capsys, "cost", run, *flags, "readout:measured+zne:linear:1,3")
    assert "16 circuits a call alone, 34 with mitigation, 2 of these for calibration" in text
    assert "6 jobs × 34 circuits × 100 shots = 20,400" in text
    text = told(capsys, "cost", run, *flags, "readout:correlated+twirling:2", "--resilience-level", "2")
    assert "16 circuits a call alone, 48 with mitigation, 16 of these for calibration; 48 circuits a job" in text
    assert "resilience level 2" in text


def test_folded_circuits_are_longer(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    plain, folded = (json.loads(told(capsys, "cost", run, "--json", *flags))["duration"]
                     for flags in ((), ("--mitigation", "zne:linear:1,3")))  # fmt: skip
    assert 1.5 * plain < folded < 2.5 * plain


def test_work_that_does_not_divide_evenly_is_counted_exactly(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    shown = json.loads(told(capsys, "cost", run, "--images", "2500", "--shots", "10000", "--json"))
    assert (shown["jobs"], shown["all_circuits"], shown["executions"]) == (18, 15_000, 150_000_000)
    text = told(capsys, "cost", run, "--images", "2500", "--shots", "10000")
    assert "15,000 circuits in 18 jobs × 10,000 shots = 150,000,000" in text


def folder_of(tmp_path: Path, kind: str) -> Path:
    RunFolder.create(tmp_path / kind, kind=kind, config={}).close()
    return tmp_path / kind


@pytest.mark.parametrize("kind", ["guidance-study", "denoising-study", "device-rollout", "backbone", "classifier"])
def test_other_runs_are_told_what_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    error = told(capsys, "cost", folder_of(tmp_path, kind), "--device", "fake_manila", code=2)
    assert f"is a run of kind {kind!r}" in error
    assert "takes run folders of quantum policies" in error


def test_ledgers_and_parts_of_runs_are_told_what_to_give(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path
) -> None:
    Ledger.open(tmp_path / "ledger").close()
    assert "is a ledger: `qhw ledger list" in told(capsys, "cost", tmp_path / "ledger", code=2)
    assert f"manifest.json is missing; give {run}" in told(capsys, "cost", run / "model", code=2)
    (tmp_path / "empty").mkdir()
    assert "takes run folders of quantum policies" in told(capsys, "cost", tmp_path / "empty", code=2)
    (tmp_path / "notes.txt").write_text("no circuit")
    assert "notes.txt" in told(capsys, "cost", tmp_path / "notes.txt", "--device", "fake_manila", code=2)


def test_dynamic_circuits_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    step = reverse_circuit(1, 1, depth=1)
    circuit = dynamic_circuit(
        step, 2, lambda t, outcome: [0.1] * (len(step.inputs) + len(step.weights)), feed_forward=True
    )
    measured = QuantumCircuit(1, 1)
    measured.measure(0, 0)
    measured.sx(0)
    for made, names in ((circuit, "if_else, measure"), (measured, "measure")):
        path, _ = save_circuit(made, tmp_path, "dynamic")
        error = told(capsys, "cost", path, "--device", "fake_manila", code=2)
        assert f"the circuit is dynamic ({names} before its end)" in error
    ends = QuantumCircuit(1, 1)
    ends.sx(0)
    ends.measure(0, 0)
    path, _ = save_circuit(ends, tmp_path, "ends")
    assert "QPU seconds" in told(capsys, "cost", path, "--device", "fake_manila")


@pytest.mark.parametrize("kind", ["mlp", "lookup"])
def test_a_classical_policy_has_no_circuit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path, kind: str
) -> None:
    quantum = load_policy_model(run / "model")
    assert isinstance(quantum, QuantumPolicy)
    actor = PolicyConfig(kind="mlp") if kind == "mlp" else PolicyConfig(device="fake_manila")
    config = {"guidance": GuidanceConfig().to_dict(), "reward": RewardConfig(**CALIBRATED).to_dict(),
              "ppo": PPOConfig().to_dict(), "policy": actor.to_dict()}  # fmt: skip
    with RunFolder.create(tmp_path / "classical", kind="guidance", config=config) as made:
        save_policy_model(build_policy(actor, seed=0) if kind == "mlp" else tabulate(quantum), made.path / "model")
    error = told(capsys, "cost", tmp_path / "classical", code=2)
    assert f"is classical ({kind}): it has no circuit to run, and takes no QPU time" in error


# -- with an account: the stand-in -------------------------------------------------------------------------------------


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn("fake_manila") as served:
        for name, value in served.environment().items():
            monkeypatch.setenv(name, value)
        yield served


@pytest.mark.slow
def test_live_devices_with_queue_errors_and_predictions(standin: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    device = Device.load("fake_manila")
    (shown,) = json.loads(told(capsys, "devices", "--json"))
    assert (shown["name"], shown["qubits"], shown["queue"], shown["status"]) == ("ibm_standin", 5, 0, "active")
    assert shown["medians"] == pytest.approx(Calibration.of(device).medians())
    circuit = published_circuit("policy_4q_2l_ring").circuit
    best = rank_layouts(device, circuit, top=1, seeds=3).layouts[0].error
    assert shown["predicted_errors"]["policy_4q_2l_ring"] == pytest.approx(best)
    text = told(capsys, "devices")
    assert "ibm_standin  Falcon r5.11       5  active      0" in text
    assert f"{best:.3f}" in text
    assert "fake_manila" in told(capsys, "devices", "--fake")
    assert TOKEN not in text


def test_a_device_that_cannot_be_read_is_listed_with_its_problem(
    standin: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    standin.inject("properties", Status(404))
    text = told(capsys, "devices")
    assert "ibm_standin: calibration of ibm_standin: not known to the service (404)" in text
    standin.inject("configuration", Status(404))
    assert "the account has no devices" in told(capsys, "devices")


@pytest.mark.parametrize(("key", "code", "words"), [
    ("QhwWrongKey-0123456789", 4, "the credentials are refused"),
    (None, 7, "cannot be reached"),
])  # fmt: skip
def test_exit_codes_of_refused_keys_and_of_silence(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str | None, code: int,
    words: str,
) -> None:  # fmt: skip
    if key is None:
        standin.stop()
        # which is 3 s of pauses between the client's attempts: devices/test_account_live.py has them
        monkeypatch.setattr("qiskit_ibm_runtime.api.session.PostForcelistRetry.get_backoff_time", lambda retry: 0.01)
    else:
        monkeypatch.setenv("QISKIT_IBM_TOKEN", key)
    error = told(capsys, "devices", code=code)
    assert words in error
    assert (key or TOKEN) not in error


def test_what_a_job_was_charged_corrects_the_next_cost(
    standin: StandIn, capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path
) -> None:
    """The stand-in charges 2 s + 0.35 ms an execution; after one job the estimate of such a job is exactly that."""
    isa = load_circuit(run / "model" / "isa.qpy")
    zs = [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], 4).apply_layout(isa.layout) for q in range(4)]
    parameters = tuple(isa.parameters)
    pub = Pub(isa, tuple(zs), parameters, np.zeros((20, len(parameters))), precision_of(1000))
    arguments = ("cost", run, "--device", "ibm_standin", "--images", "20", "--shots", "1000", "--json")
    before = json.loads(told(capsys, *arguments))
    with (
        Ledger.open(tmp_path / "runs" / "ledger") as ledger,
        open_runner("ibm_standin", ledger=ledger, run="r", max_qpu_seconds=60) as runner,
    ):
        runner.run([pub], options={"resilience_level": 0}, purpose="p")
    after = json.loads(told(capsys, *arguments))
    assert after["formula_seconds"] == pytest.approx(before["seconds"])
    assert after["seconds"] == pytest.approx(6 * (2 + 20 * 1000 * 0.35e-3))
    assert after["history_jobs"] == 1
    assert standin.charged_seconds == pytest.approx(9.0)


@pytest.mark.slow
def test_the_stand_in_as_a_command_and_a_saved_account(tmp_path: Path) -> None:
    """`qhw standin` prints what leads a client there; the key comes from the client's file of accounts."""
    command = [sys.executable, "-m", "qhw_diffusion.cli"]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    serving = subprocess.Popen(
        [*command, "standin", "--port", "0", "--name", "ibm_here"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert serving.stdout is not None
        told_to = {}
        for line in serving.stdout:
            if line.startswith("export "):
                name, value = line.removeprefix("export ").strip().split("=", 1)
                told_to[name] = value.strip("'")
            elif told_to:
                break
        key, url, instance = (told_to.pop(f"QISKIT_IBM_{name}") for name in ("TOKEN", "URL", "INSTANCE"))
        account = {"channel": "ibm_quantum_platform", "token": key, "url": url, "instance": instance}
        (tmp_path / ".qiskit").mkdir()
        (tmp_path / ".qiskit" / "qiskit-ibm.json").write_text(json.dumps({"default-ibm-quantum-platform": account}))
        done = subprocess.run([*command, "calibration", "snapshot", "ibm_here", "--out", "here.json.gz"],
                              env={**environment, **told_to}, capture_output=True, text=True, check=True)  # fmt: skip
        assert Device.load(tmp_path / "here.json.gz").name == "ibm_here"
        assert key not in done.stdout + done.stderr
        serving.send_signal(signal.SIGINT)
        assert serving.wait(timeout=20) == 130
    finally:
        serving.kill()
        serving.wait()


# -- wrong commands: a sentence, an exit code, and nothing made --------------------------------------------------------

BIG = "999999999999999999"  # beyond everything but 64 bits


def _everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


CAPS = [
    (["--max-qpu-seconds", "-1"], "max_qpu_seconds is -1.0"),
    (["--max-qpu-seconds", "0"], "max_qpu_seconds is 0.0"),
    (["--max-qpu-seconds", "nan"], "max_qpu_seconds is nan"),
    (["--max-qpu-seconds", "inf"], "max_qpu_seconds is inf"),
    (["--max-session-seconds", "0"], "max_session_seconds is 0"),
    (["--max-session-seconds", "-3"], "max_session_seconds is -3"),
    (["--resilience-level", "1"], "takes level 0 only"),
]
WORK = [
    (["--shots", BIG], f"shots is {BIG}; allowed: whole numbers from 1 to 1,000,000,000,000"),
    (["--shots", "0"], "shots is 0"),
    (["--mitigation", f"zne:linear:1,{BIG}"], "ascending, from 1 to 1000"),
    (["--mitigation", "zne:linear:1,1e9"], "ascending, from 1 to 1000"),
    (["--mitigation", f"twirling:{BIG}"], "allowed: up to 10,000"),
    (["--mitigation", "twirling:1000000000"], "allowed: up to 10,000"),
    (["--mitigation", f"mitiq-cdr:{BIG}"], "10,000"),
    (["--mitigation", f"mitiq-pec:{BIG}"], "10,000"),
]
ROLLOUT = [
    (["--images", BIG], "images is 999999999999999999; allowed: up to 1,000,000"),
    (["--images", "0"], "images is 0"),
    (["--mitigation", "zne:linear:1,1.0001"], "take factors further apart"),
]
DEVICE = [["evaluate", "guidance"], ["distill"], ["fine-tune"]]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "flags", "words"), [
    *((command, *each) for command in DEVICE for each in [*CAPS, *WORK]),
    *((DEVICE[0], *each) for each in ROLLOUT),
])  # fmt: skip
def test_nothing_is_made_before_the_settings_are_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path, command: list[str], flags: list[str], words: str
) -> None:
    places = ["--ledger", str(tmp_path / "ledger"), "--out", str(tmp_path / "out")]
    before = _everything(tmp_path)
    error = told(capsys, *command, run, "--device", "fake_manila", "--shots", "100", *places, *flags, code=2)
    assert error.startswith("qhw: error: ")
    assert words in error
    assert error.count("\n") == 1
    assert _everything(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "words"), [
    *WORK,
    (["--images", BIG], "--images must be at most 1,000,000"),
    (["--mitigation", "mitiq-lre:9:3"], "weights"),
    (["--mitigation", "mitiq-lre:99:3"], "circuits"),
])  # fmt: skip
def test_cost_refuses_what_no_device_could_run(
    capsys: pytest.CaptureFixture[str], run: Path, flags: list[str], words: str
) -> None:
    error = told(capsys, "cost", run, *flags, code=2)
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("flags", "words"), [
    (["--port", "99999"], "port is 99999; allowed: 0 for any free one, to 65535"),
    (["--port", "-1"], "port is -1"),
    (["--port", BIG], f"port is {BIG}"),
    (["--seed", "-1"], "seed is -1; allowed: whole numbers from 0"),
])  # fmt: skip
def test_the_stand_in_refuses_ports_and_seeds_that_are_none(
    capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert words in told(capsys, "standin", *flags, code=2)


@pytest.mark.parametrize("name", ["locks", "results"])
@pytest.mark.parametrize("verb", [["list"], ["cap", "5"], ["recover"], ["adopt", "aaa", "job"]])
def test_a_file_in_place_of_a_folder_of_the_ledger(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, verb: list[str]
) -> None:
    with Ledger.open(tmp_path / "ledger"):
        pass
    (tmp_path / "ledger" / name).write_text("")
    error = told(capsys, "ledger", *verb, "--ledger", tmp_path / "ledger", code=6)
    assert f"{name} is a file, and should be a folder of the ledger" in error


@pytest.mark.slow
@pytest.mark.parametrize("command", DEVICE)
def test_a_loop_of_links_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path, command: list[str]
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for places in ([run, "--out", loop / "x"], [loop], [run, "--ledger", loop, "--out", tmp_path / "out"]):
        error = told(
            capsys, *command, *places, "--device", "fake_manila", "--shots", "50", code=2 if len(places) < 4 else 6
        )
        assert error.startswith("qhw: error: ")
    assert _everything(tmp_path) == {str(loop)}


@pytest.mark.parametrize("command", DEVICE)
@pytest.mark.parametrize("here", ["", ".", "/"])
def test_a_run_may_be_the_folder_one_is_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str], here: str
) -> None:
    monkeypatch.chdir(tmp_path)
    error = told(capsys, *command, here, "--device", "fake_manila", "--shots", "50", code=2)
    assert "is not a run folder" in error or "is no run folder" in error


def test_a_nul_character_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "NUL" in told(capsys, "ledger", "list", "--ledger", "a\0b", code=2)
